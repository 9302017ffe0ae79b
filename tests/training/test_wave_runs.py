"""WaveNet through the same loop, evaluation and command line as the other kinds, on short made-up recordings."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.io import wavfile

from tests.data.speech_files import write_recordings
from tests.training.whole_and_parts import check_same_in_parts
from vi_flows.autoregressive import mu_law_decode
from vi_flows.cli import main
from vi_flows.training import Run, Trainer, WaveTrainConfig
from vi_flows.training.kinds import KINDS
from vi_flows.training.tasks.base import DrawingSettings, EvaluationSettings
from vi_flows.training.tasks.wave import WaveConfig

WAVE = WaveConfig(width=8, skip_width=8, num_layers=3)
SMALL = WaveTrainConfig(wave=WAVE, epochs=2, learning_rate=1e-2, threads=1, sample_seconds=0.005)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("speech") / "few")


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    config = replace(SMALL, dataset=str(recordings), epochs=4)
    trainer = Trainer(Run.create(tmp_path_factory.mktemp("runs") / "run", config), progress=False)
    trainer.start()
    trainer.fit()
    return trainer.run


def test_where_no_test_take_is_of_a_digit_shown_others_are(run, tmp_path):
    task = run.build_task()
    only = task.splits.test[task.splits.test[:, -1] > 0]
    task.splits = task.splits._replace(test=only)
    files = task.draw(tmp_path, DrawingSettings(rows=1, columns=1))  # one sample, of digit 0
    assert [path.name for path in files] == ["samples.wav", "data.wav", "continuations.wav"]
    assert all(path.is_file() for path in files)


def test_training_lowers_bits_and_evaluation_scores_every_sample_of_the_recordings_alone(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"] < 8.5
    task = run.build_task()
    run.load_weights(task)
    found = task.evaluate(run.data.test, EvaluationSettings(limit=4), False)
    assert found.figures["num_audio_samples"] == 4 * 60
    total = 0.0
    places = [(2 * i + 1) * len(run.data.test) // 8 for i in range(4)]
    for i in places:  # each at its own length, without padding
        levels = task.splits.test[i, :60]
        x = torch.cat([_levels(levels), torch.zeros(0)])
        digit = torch.nn.functional.one_hot(run.data.test[i, -1].long(), 10).float()
        total -= task.module.with_length(60).condition(digit).log_prob(x).item() / math.log(2)
    assert found.figures["bits_per_sample"] == pytest.approx(total / 240, abs=1e-4)
    assert 0 < found.figures["trigram_bits_per_sample"] < 8.5


def _levels(samples):
    from vi_flows.autoregressive import mu_law_encode

    return mu_law_encode(samples.double() / 32768).float()


def test_padding_changes_nothing(run):
    task = run.build_task()
    rows = task.train_rows[:3].clone()
    scores = task.log_probs(rows)
    for row, length in zip(rows, rows[:, -2], strict=True):
        row[int(length) : -2] = 200
    assert torch.equal(task.log_probs(rows), scores)


def test_resumed_run_takes_the_same_steps(recordings, tmp_path):
    check_same_in_parts(tmp_path, replace(SMALL, dataset=str(recordings)), 3)


def test_sounds_can_be_read_and_continuations_keep_their_beginning(run, tmp_path):
    task = run.build_task()
    run.load_weights(task)
    torch.manual_seed(0)
    paths = task.draw(tmp_path, DrawingSettings(1, 10))
    assert [path.name for path in paths] == ["samples.wav", "data.wav", "continuations.wav"]
    pause, steps = 2000, 40
    rate, sounds = wavfile.read(paths[2])
    assert rate == 8000
    assert len(sounds) == 10 * (steps + pause)
    first = run.data.test[0]
    expected = (mu_law_decode(_levels(first[:10])) * 32767).round().to(torch.int16).numpy()
    assert (sounds[:10] == expected).all()
    assert (sounds[steps : steps + pause] == 0).all()
    with pytest.raises(ValueError, match="kind wave has no temperature; it takes rows, columns"):
        KINDS["wave"].drawing_settings({"temperature": 0.5})


def test_command_line(recordings, tmp_path, capsys):
    folder = str(tmp_path / "run")
    options = ["--dataset", str(recordings), "--width", "4", "--skip-width", "4", "--num-layers", "2", "--no-digit"]
    options += ["--output", "logistic_mixture"]
    commands = [
        ["train", "wave", "--out", folder, *options, "--epochs", "1", "--quiet", "--sample-seconds", "0.002"],
        ["evaluate", folder, "--quiet"],
        ["sample", folder, "--rows", "1", "--columns", "2"],
    ]
    for words in commands:
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0, words
    assert "bits/sample (exact)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["train", "wave", "--out", str(tmp_path / "none"), "--dataset", "no_such_recordings"])
    assert done.value.code == 1
    assert "no_such_recordings" in capsys.readouterr().err
