"""The clock of a budget, by hand."""

from __future__ import annotations

import time

import pytest

from tests.training.test_loop_by_hand import lines_of
from vi_flows.training import ImageTrainConfig, Run
from vi_flows.training.budget import BudgetTrainer


class Clock:
    """Each look at the process' time is a quarter of a second after the last."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 0.25
        return self.now


def budget_run(folder, **options):
    config = ImageTrainConfig(epochs=2, batch_size=400, threads=1, schedule="step", learning_rate=1.0)
    trainer = BudgetTrainer(Run.create(folder, config), **options)
    trainer.take_step = lambda batch: trainer.state.update(step=trainer.state["step"] + 1)
    trainer.task.validate = lambda: 5.0 - trainer.state["step"]
    return trainer


@pytest.fixture
def quarter(monkeypatch):
    monkeypatch.setattr(time, "process_time", Clock())


@pytest.mark.usefixtures("quarter")
def test_a_budget_counts_the_steps_alone(tmp_path):
    """A step takes a quarter of a second, so that a budget of 1 s is four; a validation is not counted."""
    trainer = budget_run(tmp_path / "run", cpu_seconds=1.0, validate_seconds=0.5)
    trainer.start()
    state = trainer.fit()
    assert (state["step"], state["cpu_seconds"], state["finished"], trainer.used) == (4, 1.0, True, 1.0)
    assert 0 <= state["seconds"] < 600
    # After the first step, then every two steps: 1, 3 and at the end.
    assert [line["step"] for line in lines_of(trainer)] == [1, 3, 4]
    assert [line["cpu_seconds"] for line in lines_of(trainer)] == [0.25, 0.75, 1.0]
    assert state["validation_cpu_seconds"] == 0.75
    assert state["best"] == {"epoch": 1, "valid_loss": 1.0}  # 1297 rows: four steps are an epoch
    assert {path.name for path in trainer.run.folder.glob("*.safetensors")} == {
        "best.safetensors", "last.safetensors", "checkpoint.safetensors", "previous.safetensors",
    }  # fmt: skip


@pytest.mark.usefixtures("quarter")
def test_the_rate_follows_the_used_share(tmp_path):
    """The step schedule divides by ten at half and at three quarters, here of the budget."""
    trainer = budget_run(tmp_path / "run", cpu_seconds=10.0)
    rates = []
    for step, seconds in ((0, 0.0), (1000, 4.9), (1001, 5.1), (1002, 7.4), (1003, 7.6), (1004, 20.0)):
        trainer.state["cpu_seconds"] = seconds
        trainer.set_learning_rate(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert trainer.used == 1.0
    with pytest.raises(ValueError, match="must be positive"):
        budget_run(tmp_path / "other", cpu_seconds=0.0)


def test_the_line_of_a_validation(tmp_path):
    trainer = budget_run(tmp_path / "run", cpu_seconds=10.0)
    trainer.start()
    for images, bound in ((4, 1.5), (0, 6.0)):  # none since the last one: the sum is shown, of nothing
        trainer.state |= {"step": 8, "seconds": 12.34567, "cpu_seconds": 1.23456, "bound_sum": 6.0, "images": images}
        trainer.validate()
        assert lines_of(trainer)[-1] == {
            "epoch": 2, "step": 8, "train_bound": bound, "valid_loss": -3.0, "learning_rate": 1.0, "cpu_seconds": 1.23,
            "seconds": 12.35,
        }  # fmt: skip
        assert (trainer.state["bound_sum"], trainer.state["images"]) == (0.0, 0)


@pytest.mark.usefixtures("quarter")
def test_a_budget_can_be_left_and_gone_on_with(tmp_path):
    trainer = budget_run(tmp_path / "run", cpu_seconds=1.0)
    trainer.start()
    assert trainer.fit(until=2)["finished"] is False
    assert trainer.state["step"] == 2
    assert not (trainer.run.folder / "last.safetensors").exists()
    again = BudgetTrainer(Run.open(trainer.run.folder), cpu_seconds=1.0)
    again.resume()
    assert (again.state["step"], again.state["cpu_seconds"]) == (2, 0.5)
    hurried = budget_run(tmp_path / "hurried", cpu_seconds=1.0, wall_seconds=-1.0)
    hurried.start()
    assert hurried.fit()["step"] == 1
    whole = budget_run(tmp_path / "whole", cpu_seconds=1e9, wall_seconds=900.0)
    whole.start()
    assert whole.fit()["step"] == whole.total_steps == 8
