"""Full disks and read-only folders: one sentence, no traceback, and what was there before is whole."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from vi_flows.cli import main
from vi_flows.records import Record, write_atomic
from vi_flows.training import Run, Trainer, VAETrainConfig
from vi_flows.training.checkpoint import load_tensors
from vi_flows.vae import VAEConfig


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_from_the_start_offers_a_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr("vi_flows.training.checkpoint.Checkpoints.write", no_room)
        with pytest.raises(SystemExit) as ended:
            main(["train", "vae", "--out", str(folder), *SETTINGS])
    assert ended.value.code == 1
    said = f"it has no checkpoint yet: make room, then go on with vi-flows train --resume {folder}"
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "--resume", str(folder), "--quiet"])
    assert ended.value.code == 0


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vi_flows.cli", "vi_flows.table.work", "sklearn.datasets"])
SETTINGS = [
    "--latent-dims", "3", "--hidden-dims", "8", "--epochs", "2", "--batch-size", "400", "--threads", "1",
    "--checkpoint-seconds", "0", "--quiet",
]  # fmt: skip
CONFIG = VAETrainConfig(
    vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=2, batch_size=400, threads=1, checkpoint_seconds=0.0
)


@dataclass(frozen=True)
class Ended:
    """A command's exit code and what it wrote to stderr."""

    code: int | None
    stderr: str


def command(words: list[str], limit: int, privileged: bool, stderr: Path) -> None:
    """The body of a process of its own."""
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(handle, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if not privileged:
        obey_permissions()
    main(words)


def obey_permissions() -> None:
    """Give up what lets root write everywhere: the capabilities 1 and 2, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    sets[0] &= ~0b110
    assert library.capset(header, sets) == 0


def run(*words: object, limit: int = 0, privileged: bool = True) -> Ended:
    """A command in a process that can't write files of more bytes than ``limit``."""
    with tempfile.NamedTemporaryFile() as file:
        process = CONTEXT.Process(target=command, args=(list(map(str, words)), limit, privileged, Path(file.name)))
        process.start()
        process.join()
        return Ended(process.exitcode, Path(file.name).read_text(encoding="utf-8"))


def in_one_sentence(ended: Ended, *words: str) -> None:
    assert ended.code == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("vi-flows: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk") / "whole"
    trainer = Trainer(Run.create(folder, CONFIG), progress=False)
    trainer.start()
    trainer.fit()
    return folder


def test_a_disk_that_fills_up_in_training_costs_only_time(tmp_path: Path, whole: Path) -> None:
    # The first checkpoint knows nothing of Adam as yet: a disk with room for it alone.
    first = Trainer(Run.create(tmp_path / "first", CONFIG), progress=False)
    first.start()
    room = (tmp_path / "first" / "checkpoint.safetensors").stat().st_size + 200
    assert room < (whole / "checkpoint.safetensors").stat().st_size
    folder = tmp_path / "run"
    ended = run("train", "vae", "--out", folder, *SETTINGS, limit=room)
    in_one_sentence(ended, "checkpoint.safetensors can't be written", "File too large", f"train --resume {folder}")
    assert load_tensors(folder / "checkpoint.safetensors")[1]["step"] == 0
    assert not list(folder.glob("*.tmp"))
    assert run("train", "--resume", folder, "--quiet").code == 0
    for name in ("last", "best"):
        mine, theirs = (load_tensors(place / f"{name}.safetensors")[0] for place in (folder, whole))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    in_one_sentence(run("train", "vae", "--out", tmp_path / "run", *SETTINGS, limit=3000), "checkpoint.safetensors")
    assert run("train", "--resume", tmp_path / "run", "--quiet").code == 0
    in_one_sentence(
        run("train", "vae", "--out", tmp_path / "none", *SETTINGS, limit=500), "config.json can't be written"
    )


def test_a_full_disk_in_a_line_of_metrics(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(Run.create(tmp_path / "run", CONFIG), progress=False)
    trainer.start()
    written = Path.open

    def full(path: Path, mode: str = "r", **words: object) -> object:
        if path.name == "metrics.jsonl" and mode == "a":
            with written(path, mode) as file:
                file.write('{"epoch": 1, "st')
            raise OSError(28, "No space left on device")
        return written(path, mode, **words)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match=r"stopped: .*No space left on device; its last checkpoint is whole"):
            trainer.fit()
    again = Trainer(Run.open(tmp_path / "run"), progress=False)
    again.resume()
    again.fit()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    mine, theirs = (load_tensors(place / "last.safetensors")[0] for place in (tmp_path / "run", whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_full_disk_at_a_record(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    words = ("evaluate", folder, "--num-samples", 3, "--quiet")
    in_one_sentence(run(*words, limit=700), "can't be written", "File too large")
    assert [path.name for path in (folder / "results").iterdir()] == []
    assert run(*words).code == 0
    (record,) = (folder / "results").glob("*.json")
    assert Record.read(record).figures["num_rows"] == 300


@pytest.mark.parametrize("write", ["picture", "figure", "sound"])
def test_pictures_and_sounds_are_written_whole_or_not_at_all(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    from matplotlib.figure import Figure

    from tests.data.speech_files import write_recordings
    from vi_flows.plotting import save_figure, save_image_grid
    from vi_flows.training.tasks.wave import WaveConfig, WaveTask, WaveTrainConfig

    config = WaveTrainConfig(
        dataset=str(write_recordings(tmp_path / "few")), wave=WaveConfig(width=4, skip_width=4, num_layers=2)
    )
    task, place = WaveTask(config, config.load_data()), tmp_path / "made" / "it"
    writers = {
        "picture": lambda: save_image_grid(torch.rand(2, 1, 4, 4), place),
        "figure": lambda: save_figure(Figure(), place, 100),
        "sound": lambda: task._write(place, [torch.full((9,), 128)]),
    }
    writers[write]()
    before = place.read_bytes()
    assert len(before) > 50
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"it can't be written: .*No space left"):
        writers[write]()
    assert [path.name for path in place.parent.iterdir()] == ["it"]
    assert place.read_bytes() == before


def test_what_a_failed_write_replaces_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.json", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.json can't be written: .*No space left"):
        write_atomic(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="root's privileges are given up in Linux's way")
def test_read_only_folders(tmp_path: Path, whole: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    folder = shutil.copytree(whole, tmp_path / "run")
    stopped = tmp_path / "stopped"
    trainer = Trainer(Run.create(stopped, CONFIG), progress=False)
    trainer.start()
    trainer.fit(until=2)
    for place in (folder, stopped):
        place.chmod(0o555)
    try:
        denied = "Permission denied"
        in_one_sentence(run("train", "vae", "--out", locked / "run", *SETTINGS, privileged=False), denied, "locked/run")
        in_one_sentence(run("evaluate", folder, "--num-samples", 3, "--quiet", privileged=False), denied, "run/results")
        in_one_sentence(run("train", "--resume", stopped, "--quiet", privileged=False), denied, "stopped")
        in_one_sentence(run("sample", folder, privileged=False), denied, str(folder))
    finally:
        for place in (folder, stopped, locked):
            place.chmod(0o755)
    assert load_tensors(stopped / "checkpoint.safetensors")[1]["step"] == 2
    assert run("train", "--resume", stopped, "--quiet").code == 0
