"""TensorBoard's events read back: curves, pictures and sounds; a run that went on after a stop has one curve."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.data.speech_files import write_recordings
from vi_flows.cli import main
from vi_flows.distributions.image import ImageOverflowError
from vi_flows.training import Run, Trainer, VAETrainConfig, WaveTrainConfig
from vi_flows.training.checkpoint import CheckpointError, load_tensors
from vi_flows.training.drawing import draw_grids
from vi_flows.training.kinds import KINDS
from vi_flows.training.log import metrics_in
from vi_flows.training.status import status_of_run
from vi_flows.training.tasks.base import DrawingSettings
from vi_flows.training.tasks.wave import WaveConfig
from vi_flows.vae import VAEConfig

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SMALL = VAETrainConfig(vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=3, batch_size=400, threads=1)


def events(folder):
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def train(folder, config=SMALL, tensorboard=True):
    trainer = Trainer(Run.create(folder, config), progress=False, tensorboard=tensorboard)
    trainer.start()
    return trainer


def test_curves_and_samples(tmp_path):
    train(tmp_path / "run").fit()
    train(tmp_path / "without", tensorboard=False).fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = events(tmp_path / "run")
    for name in ("valid_loss", "train_bound", "learning_rate", "seconds", "epoch"):
        assert [event.step for event in found.Scalars(name)] == [4, 8, 12]
        assert [event.value for event in found.Scalars(name)] == pytest.approx([line[name] for line in lines], rel=1e-5)
    assert set(found.Tags()["images"]) == {"samples", "data", "reconstructions"}
    assert found.Images("samples")[-1].step == 12
    assert (found.Images("samples")[0].height, found.Images("samples")[0].width) == (4 * 9 * 7 + 7, 8 * 9 * 7 + 7)
    # Drawing leaves the training as it is.
    weights = [load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("run", "without")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_run_that_goes_on_has_one_curve(tmp_path):
    trainer = train(tmp_path / "run")
    trainer.fit(until=5)
    trainer.log.add({"epoch": 2, "step": 8, "valid_loss": 1.0})  # killed before the checkpoint of this epoch
    again = Trainer(Run.open(tmp_path / "run"), progress=False, tensorboard=True)
    again.resume()
    again.fit()
    assert [event.step for event in events(tmp_path / "run").Scalars("valid_loss")] == [4, 8, 12]
    assert 1.0 not in [event.value for event in events(tmp_path / "run").Scalars("valid_loss")]


def test_a_line_that_is_no_epoch_is_shown_in_part(tmp_path):
    trainer = train(tmp_path / "run", tensorboard=False)
    trainer.log.path.write_text(json.dumps({"step": 4}) + "\n" + json.dumps("x" * 100) + "\n")
    with pytest.raises(CheckpointError, match=r"no epoch's metrics: \"x{59}; remove it$"):
        trainer.log.truncate(8)
    trainer.log.path.write_text('{"step": 4}\n{"step": 8}\n{"step": 12}\n{"ste')
    trainer.log.truncate(8)
    assert trainer.log.path.read_text() == '{"step": 4}\n{"step": 8}\n'


def test_sounds(tmp_path):
    recordings = write_recordings(tmp_path / "speech")
    wave = WaveConfig(width=4, skip_width=4, num_layers=2)
    config = WaveTrainConfig(dataset=str(recordings), wave=wave, epochs=1, threads=1, sample_seconds=0.001)
    train(tmp_path / "run", config).fit()
    assert set(events(tmp_path / "run").Tags()["audio"]) == {"samples", "data", "continuations"}


def test_samples_that_overflow_do_not_stop_the_training(tmp_path, monkeypatch):
    def overflow(*_):
        raise ImageOverflowError("3 of 32 images are not finite")

    monkeypatch.setitem(KINDS, "vae", KINDS["vae"]._replace(draw=overflow))
    state = train(tmp_path / "run", replace(SMALL, epochs=1)).fit()
    assert state["finished"]
    assert "samples/text_summary" in events(tmp_path / "run").Tags()["tensors"]


def test_no_failed_drawing_stops_the_training(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("expected (N, 1 or 3, H, W)")

    monkeypatch.setitem(KINDS, "vae", KINDS["vae"]._replace(draw=fail))
    assert train(tmp_path / "run", replace(SMALL, epochs=1)).fit()["finished"]
    assert "nothing was drawn at step 4: expected (N, 1 or 3, H, W); the training goes on" in caplog.text
    assert "samples/text_summary" in events(tmp_path / "run").Tags()["tensors"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_are_drawn(channels, tmp_path):
    class Shown:
        def pictures(self, settings):
            return {"samples": torch.arange(2 * channels).reshape(2, channels, 1, 1).expand(-1, -1, 5, 4) / 10}

    (path,) = draw_grids(Shown(), tmp_path, DrawingSettings(rows=1, columns=2))
    with Image.open(path) as picture:
        side_by_side = channels in (2, 4)
        assert picture.mode == ("RGB" if channels == 3 else "L")
        assert picture.width == (1 + 2 * (1 + 4 * (channels if side_by_side else 1))) * 11
        if side_by_side:  # the channels of the second image
            levels = [picture.getpixel(((1 + 4 * channels + 1 + 4 * c + 2) * 11, 20)) for c in range(channels)]
            assert levels == [round(255 * (channels + c) / 10) for c in range(channels)]


def test_damaged_bytes_in_the_metrics_are_left_out(tmp_path):
    trainer = train(tmp_path / "run", tensorboard=False)
    trainer.log.path.write_bytes(b'{"step": 4}\n\xff\xfe\x00garbage\n{"step": 8}\n' + b"[" * 100_000)
    assert metrics_in(trainer.log.path) == [{"step": 4}, {"step": 8}]
    assert status_of_run(trainer.run.folder).state == "interrupted"
    trainer.log.truncate(8)
    assert trainer.log.path.read_bytes() == b'{"step": 4}\n{"step": 8}\n'
    assert metrics_in(tmp_path / "nowhere") == []


def test_drawing_takes_little_of_the_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setitem(KINDS, "vae", KINDS["vae"]._replace(draw=lambda *_: drawn.append(1) or []))
    trainer = train(tmp_path / "run")
    trainer.log.show(trainer.task, 1, False)
    trainer.log._seconds = 1000.0
    trainer.log.show(trainer.task, 2, False)
    assert len(drawn) == 1
    trainer.log.show(trainer.task, 3, True)
    assert len(drawn) == 2
    # A drawing of one second: not within twenty of them.
    for ago, expected in ((19.5, 2), (20.5, 3)):
        trainer.log._seconds, trainer.log._drawn = 1.0, time.monotonic() - ago
        trainer.log.show(trainer.task, 4, False)
        assert len(drawn) == expected


def test_without_tensorboard_the_command_says_how_to_get_it_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "vae", "--out", str(tmp_path / "run"), "--epochs", "1", "--tensorboard"])
    assert stopped.value.code == 1
    assert "pip install 'vi_flows[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
