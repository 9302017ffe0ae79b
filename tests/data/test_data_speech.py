"""Recordings from archives and folders."""

import io
import shutil
import zipfile

import numpy as np
import pytest
from scipy.io import wavfile

from tests.data.speech_files import write_recordings
from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.data.speech import load_speech


def wav(samples, rate=8000):
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def test_takes_decide_the_split_and_rows_hold_samples_length_and_digit(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for digit in (3, 7):
            for take in (0, 5, 10, 11):
                archive.writestr(f"recordings/{digit}_ann_{take}.wav", wav(np.arange(take + 1, dtype=np.int16)))
        archive.writestr("README.md", "no recording")
    data = load_speech("mine", tmp_path)
    assert (data.rate, data.max_steps) == (8000, 12)
    assert [len(rows) for rows in (data.train, data.valid, data.test)] == [4, 2, 2]
    assert data.train[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 11, 3]
    assert data.test[:, -1].tolist() == [3, 7]
    assert [len(rows) for rows in data.split("paper")] == [6, 0, 2]
    assert load_speech(str(tmp_path / "mine.zip")).sha256 == data.sha256


def test_a_folder_is_as_good_as_an_archive(tmp_path):
    folder = write_recordings(tmp_path / "few")
    data = load_speech("few", tmp_path)
    assert data.sha256 == load_speech(str(folder)).sha256
    assert len(data.train) == 20


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, DataNotFoundError, "train, valid, test"),
        ({"1_a_20.wav": b"RIFF"}, DataCorruptError, "can't be read"),
        ({"1_a_20.wav": wav(np.zeros((4, 2), np.int16))}, DataCorruptError, "mono"),
        ({"1_a_20.wav": wav(np.zeros(4, np.uint8))}, DataCorruptError, "16-bit"),
        ({"1_a_20.wav": wav(np.zeros(40000, np.int16))}, DataCorruptError, "32767"),
        ({"1_a_20.wav": wav(np.zeros(4, np.int16), 16000)}, DataCorruptError, "rates"),
    ],
)
def test_what_is_no_data_is_named(tmp_path, files, error, words):
    (tmp_path / "x").mkdir()
    others = {f"1_a_{take}.wav": wav(np.ones(3, np.int16)) for take in (0, 5)} if files else {}
    for name, content in {**others, **({"1_a_11.wav": wav(np.ones(3, np.int16))} if files else {}), **files}.items():
        (tmp_path / "x" / name).write_bytes(content)
    with pytest.raises(error, match=words):
        load_speech("x", tmp_path)


def test_missing_recordings_and_damaged_archives(tmp_path):
    with pytest.raises(DataNotFoundError, match="nothing_here"):
        load_speech("nothing_here", tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(DataCorruptError, match="not a readable zip archive"):
        load_speech("bad", tmp_path)


def test_recordings_of_other_names_or_cut_short_are_refused_and_what_others_left_is_not(tmp_path):
    folder = write_recordings(tmp_path / "few")
    before = load_speech(str(folder)).sha256
    (folder / "._1_ann_20.wav").write_bytes(b"left by a Mac")
    (folder / "3_ann_21.WAV").write_bytes((folder / "3_ann_10.wav").read_bytes())
    data = load_speech(str(folder))
    assert data.sha256 != before
    assert len(data.train) == 21
    (folder / "noise.wav").write_bytes(b"")
    with pytest.raises(DataCorruptError, match=r"noise\.wav is not named DIGIT_SPEAKER_TAKE\.wav"):
        load_speech(str(folder))
    (folder / "noise.wav").unlink()
    whole = (folder / "3_ann_10.wav").read_bytes()
    (folder / "3_ann_10.wav").write_bytes(whole[:-20])
    with pytest.raises(DataCorruptError, match=r"3_ann_10\.wav can't be read as a WAV file: Reached EOF"):
        load_speech(str(folder))


def test_a_folder_has_the_recordings_that_its_archive_has(tmp_path):
    folder = write_recordings(tmp_path / "few")
    before = load_speech(str(folder)).sha256
    (folder / ".old").mkdir()
    for name in ("0_me_0.wav", "3_me_13.wav"):
        (folder / ".old" / name).write_bytes((folder / "3_ann_10.wav").read_bytes())
    (folder / "further").mkdir()
    (folder / "further" / "3_bob_12.wav").write_bytes((folder / "3_ann_10.wav").read_bytes())
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    found = load_speech(str(folder))
    assert len(found.train) == 21  # the one below "further"
    assert found.sha256 == load_speech(str(tmp_path / "packed.zip")).sha256 != before


def test_a_folder_of_the_working_directory_is_named_as_a_path(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    write_recordings(tmp_path / "root" / "few")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few").mkdir()  # a run that is kept under the name of its data, for one
    assert len(load_speech("few", tmp_path / "root").train) == 20
    with pytest.raises(DataNotFoundError, match=r"few has no recordings"):
        load_speech("./few", tmp_path / "root")
    with pytest.raises(DataNotFoundError, match=r"or a path \(\./…\)"):
        load_speech("few", tmp_path / "nowhere")
