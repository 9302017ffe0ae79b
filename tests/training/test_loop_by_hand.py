"""What the loop writes, shows and says of a training, by hand."""

from __future__ import annotations

import json
import math

import pytest

from vi_flows.training import Run, Trainer, TrainingDivergedError, VAETrainConfig
from vi_flows.vae import VAEConfig


def test_the_bound_of_an_epoch_is_the_mean_over_its_own_images(tmp_path):
    """Three batches of 500, 500 and 297 images with bounds 1, 2, 3 and then 4, 5, 6."""
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=2, batch_size=500, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    bounds = iter(range(1, 7))

    def take_step(batch):
        trainer.advance(float(bound := next(bounds)), len(batch))
        return bound

    trainer.take_step = take_step
    trainer.start()
    trainer.fit()
    first, second = (line["train_bound"] for line in lines_of(trainer))
    assert first == pytest.approx((500 + 2 * 500 + 3 * 297) / 1297)
    assert second == pytest.approx((4 * 500 + 5 * 500 + 6 * 297) / 1297)


def lines_of(trainer):
    return [json.loads(line) for line in (trainer.run.folder / "metrics.jsonl").read_text().splitlines()]


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self, **options):
        self.options, self.steps, self.told, self.titles = options, [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, count):
        self.steps.append(count)

    def set_postfix_str(self, text, refresh):
        self.told.append((len(self.steps), text, refresh))

    def set_description(self, text, refresh):
        self.titles.append((text, refresh))


def test_what_the_bar_of_a_training_shows(tmp_path, monkeypatch):
    """33 batches of 40 images an epoch; the bound is told at every twentieth step."""
    bars = []
    monkeypatch.setattr(
        "vi_flows.training.loop.progress_bar", lambda **options: bars.append(Bar(**options)) or bars[-1]
    )
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=2, batch_size=40, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config))
    assert trainer.steps_per_epoch == 33
    trainer.take_step = lambda batch: trainer.advance(1.2345, len(batch)) or 1.2345
    losses = iter([7.126, 8.0])
    trainer.task.validate = lambda: next(losses)
    trainer.start()
    trainer.fit(until=5)
    trainer.fit()
    assert bars[0].options == {
        "total": 2640, "initial": 0, "unit": "img", "unit_scale": True, "shown": True, "smoothing": 0.05,
    }  # fmt: skip
    assert (bars[1].options["initial"], len(bars[0].steps)) == (200, 5)
    assert bars[1].steps == [40] * 61
    assert bars[1].told == [(step - 5, "bound 1.23 nats", False) for step in (20, 40, 60)]
    assert bars[1].titles == [("valid 7.13 (best 7.13)", False), ("valid 8.00 (best 7.13)", False)]
    quiet = Trainer(Run.create(tmp_path / "quiet", config), progress=False)
    quiet.take_step = lambda batch: quiet.advance(1.0, len(batch)) or 1.0
    quiet.start()
    quiet.fit(until=1)
    assert bars[-1].options["shown"] is False


def test_the_line_of_an_epoch(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=9, batch_size=500, threads=1,
                            validate_every=2, learning_rate=0.5)  # fmt: skip
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    trainer.task.validate = lambda: 3.5
    for epoch, expected in ((1, {}), (2, {"valid_loss": 3.5})):
        trainer.state |= {"step": 3 * epoch, "seconds": 12.34567, "bound_sum": 6.0, "images": 4}
        trainer.end_epoch(Bar())
        line = lines_of(trainer)[-1]
        assert line == {
            "epoch": epoch, "step": 3 * epoch, "train_bound": 1.5, "learning_rate": 0.5, "seconds": 12.346, **expected,
        }  # fmt: skip
        assert (trainer.state["bound_sum"], trainer.state["images"], trainer.state["finished"]) == (0.0, 0, False)
    assert trainer.state["best"] == {"epoch": 2, "valid_loss": 3.5}


def test_where_a_training_diverged(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=9, batch_size=500, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    words = "bound nan, gradient norm 2.5. Nothing was saved of it; no checkpoint was written yet. Try a lower"
    for step, epoch in ((0, 1), (2, 1), (3, 2), (8, 3)):
        trainer.state["step"] = step
        with pytest.raises(TrainingDivergedError, match=rf"^step {step} \(epoch {epoch}\): {words}"):
            trainer.stop_diverged([[1.0, math.nan, 2.5]])
