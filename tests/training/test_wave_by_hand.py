"""What is said and drawn of a trained WaveNet, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.io import wavfile

from tests.data.speech_files import write_recordings
from vi_flows.training import Run, Trainer, WaveTrainConfig
from vi_flows.training.log import metrics_in
from vi_flows.training.tasks.base import DrawingSettings, EvaluationSettings, StepResult
from vi_flows.training.tasks.wave import WaveConfig, WaveTask


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return str(write_recordings(tmp_path_factory.mktemp("speech") / "few"))


def test_figures_of_a_wave_model_are_a_ratio_over_recordings(recordings):
    """Log-likelihoods −60 ln 2 b of lengths 60, 65, 70: bits 1, 2 and 3 a sample, linearised about their ratio."""
    config = WaveTrainConfig(dataset=recordings, wave=WaveConfig(width=4, skip_width=4, num_layers=2))
    data = config.load_data()
    task = WaveTask(config, data)
    rows = data.train[[int((data.train[:, -2] == n).nonzero()[0]) for n in sorted(set(data.train[:, -2].tolist()))[:3]]]
    lengths = rows[:, -2].double()
    bits = torch.tensor([1.0, 2.0, 3.0]).double()[: len(rows)] * lengths
    task.log_probs = lambda part: -bits * math.log(2)
    found = task.evaluate(rows, EvaluationSettings(), False)
    mean = (bits.sum() / lengths.sum()).item()
    assert found.figures["bits_per_sample"] == pytest.approx(mean)
    spread = ((bits - mean * lengths) / lengths.mean()).std().item()
    half = 1.96 * spread / math.sqrt(len(rows))
    assert found.figures["interval"] == pytest.approx([mean - half, mean + half])
    assert half < 1.96 * torch.tensor([1.0, 2.0, 3.0])[: len(rows)].std() / math.sqrt(len(rows)) * 1.2
    scores = found.scores["weighted_bits_per_sample"]  # their mean is the figure, so that `compare` compares that
    assert scores.tolist() == pytest.approx((bits / lengths.mean()).tolist())
    assert scores.mean().item() == pytest.approx(mean)
    assert found.figures["num_audio_samples"] == int(lengths.sum())
    assert found.figures["receptive_field"] == 2 + 1 + 2  # two taps at first, then dilations 1 and 2
    figures = {**found.figures, "bits_per_sample": 2.5, "interval": [2.0, 3.0], "trigram_bits_per_sample": 5.91}
    assert task.report(figures)[:2] == [
        "2.5000 bits/sample (exact), 95 % interval [2.0000, 3.0000]",
        "trigram model: 5.9100 bits/sample; uniform: 8",
    ]


def test_loss_and_sounds_of_a_wave_model(recordings, tmp_path):
    config = WaveTrainConfig(dataset=recordings, sample_seconds=0.01, wave=WaveConfig(4, 4, num_layers=2))
    task = WaveTask(config, config.load_data())
    rows = task.train_rows[:3]
    result = task.step(rows, 1.0, 1)
    expected = -task.log_probs(rows).sum() / rows[:, -2].sum() / math.log(2)
    assert result.loss.item() == pytest.approx(expected.item())
    assert result.bound.item() == -result.loss.item()
    assert task.weigh(rows) == rows[:, -2].sum().item()
    expected = -sum(task.log_probs(row[None]).item() for row in task.valid_rows) / task.valid_rows[:, -2].sum()
    assert task.validate() == pytest.approx(expected.item() / math.log(2), rel=1e-5)
    files = task.draw(tmp_path, DrawingSettings(1, 3))
    assert [path.name for path in files] == ["samples.wav", "data.wav", "continuations.wav"]
    assert task.draw(tmp_path, DrawingSettings(1, 3)) == files  # once more into the same folder
    sounds = {path.stem: wavfile.read(path) for path in files}
    assert {name: rate for name, (rate, _) in sounds.items()} == dict.fromkeys(sounds, 8000)
    steps, pause = 80, 2000  # 0.01 s and a quarter of a second
    assert len(sounds["samples"][1]) == len(sounds["continuations"][1]) == 3 * (steps + pause)
    for index in range(3):
        first = index * (steps + pause)
        assert (sounds["samples"][1][first + steps : first + steps + pause] == 0).all()
        begun = sounds["continuations"][1][first : first + steps // 4]
        assert (abs(begun.astype(int) - sounds["data"][1][: steps // 4]) < 700).all() or index > 0
    peak = max(abs(sounds["data"][1].astype(int)))
    assert 0.25 * 32767 < peak < 0.36 * 32767  # the recordings' tones are 0.3 loud


def test_the_training_bound_of_a_wave_model_is_a_mean_over_samples(recordings, tmp_path):
    """Of two steps, 1 bit a sample on the first and 3 on the second: weighed by samples, not by recordings."""
    config = WaveTrainConfig(dataset=recordings, epochs=1, batch_size=3, threads=1, wave=WaveConfig(4, 4, num_layers=2))
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    lengths, bounds = [], []
    task_step = trainer.task.step

    def step(rows, kl_weight, num_particles):
        lengths.append(rows[:, -2].sum().item())
        bounds.append(1.0 + 2.0 * len(bounds))
        return StepResult(task_step(rows, kl_weight, num_particles).loss, torch.tensor(bounds[-1]))

    trainer.task.step = step
    trainer.fit()
    assert len(set(lengths)) > 1
    expected = sum(bound * length for bound, length in zip(bounds, lengths, strict=True)) / sum(lengths)
    (line,) = metrics_in(tmp_path / "run" / "metrics.jsonl")
    assert line["train_bound"] == pytest.approx(expected)


def test_continuations_may_be_longer_than_the_recordings(recordings, tmp_path):
    """Recordings of at most 0.0125 s; asked for 0.05 s, whose first quarter is padded with silence."""
    config = WaveTrainConfig(dataset=recordings, sample_seconds=0.05, wave=WaveConfig(4, 4, num_layers=2))
    task = WaveTask(config, config.load_data())
    assert task.data.max_steps < 100
    seen = []
    steps = 400

    class Silent:
        def generate(self, context, progress):
            return torch.full((len(context), steps), 128.0)

        def extend(self, starts, known, context, progress):
            seen.append((starts, known))
            return starts

    task.module.with_length = lambda length: Silent() if length == steps else None
    files = task.draw(tmp_path, DrawingSettings(2, 6))  # two digits come again, with another take
    ((starts, known),) = seen
    assert known == 100
    assert starts.shape == (len(starts), steps)
    assert (starts[:, task.data.max_steps :] == 128).all()  # the level of zero: the least one is the loudest
    assert (starts[:, : task.data.max_steps] != 128).any()
    _, sound = wavfile.read(files[0])
    assert len(sound) == 12 * (steps + 2000)
