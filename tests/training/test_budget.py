"""Budgets: the clock by hand, and steps to the bit."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from tests.training.test_loop_by_hand import lines_of
from vi_flows.distributions.image_config import image_config
from vi_flows.training import ImageTrainConfig, Run
from vi_flows.training.budget import BudgetTrainer, CPUSeconds, Steps
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.errors import RunUnusableError
from vi_flows.training.status import status_of_run


class Clock:
    """Each look at the process' time is a quarter of a second after the last."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 0.25
        return self.now


def budget_run(folder, budget, validate_every=60.0, **options):
    config = ImageTrainConfig(epochs=2, batch_size=400, threads=1, schedule="step", learning_rate=1.0)
    trainer = BudgetTrainer(Run.create(folder, config), budget, validate_every, **options)
    trainer.take_step = lambda batch: trainer.state.update(step=trainer.state["step"] + 1)
    trainer.task.validate = lambda: 5.0 - trainer.state["step"]
    return trainer


@pytest.fixture
def quarter(monkeypatch):
    monkeypatch.setattr(time, "process_time", Clock())


@pytest.mark.usefixtures("quarter")
def test_a_budget_of_time_counts_the_steps_alone(tmp_path):
    """A step takes a quarter of a second, so that a budget of 1.25 s is five; a validation is not counted."""
    trainer = budget_run(tmp_path / "run", CPUSeconds(1.25), validate_every=0.5)
    trainer.start()
    state = trainer.fit()
    assert (state["step"], state["cpu_seconds"], state["finished"], trainer.used) == (5, 1.25, True, 1.0)
    assert 0 <= state["seconds"] < 600
    # After the first step, then every two steps, and at the end.
    assert [line["step"] for line in lines_of(trainer)] == [1, 2, 4, 5]
    assert [line["cpu_seconds"] for line in lines_of(trainer)] == [0.25, 0.5, 1.0, 1.25]
    assert state["validation_cpu_seconds"] == 1.0
    assert state["best"] == {"epoch": 1, "valid_loss": 0.0}  # 1297 rows: four steps are an epoch
    assert {path.name for path in trainer.run.folder.glob("*.safetensors")} == {
        "best.safetensors", "last.safetensors", "checkpoint.safetensors", "previous.safetensors",
    }  # fmt: skip


def test_a_budget_of_steps_ends_after_them_and_is_validated_in_equal_parts(tmp_path):
    trainer = budget_run(tmp_path / "run", Steps(7), validate_every=3)
    trainer.start()
    state = trainer.fit()
    assert (state["step"], state["finished"], trainer.used) == (7, True, 1.0)
    assert [line["step"] for line in lines_of(trainer)] == [1, 3, 6, 7]


@pytest.mark.usefixtures("quarter")
def test_the_rate_follows_the_used_share(tmp_path):
    """The step schedule divides by ten at half and at three quarters, here of the budget."""
    trainer = budget_run(tmp_path / "run", CPUSeconds(10.0))
    rates = []
    for step, seconds in ((0, 0.0), (1000, 4.9), (1001, 5.1), (1002, 7.4), (1003, 7.6), (1004, 20.0)):
        trainer.state["cpu_seconds"] = seconds
        trainer.set_learning_rate(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert trainer.used == 1.0
    trainer = budget_run(tmp_path / "steps", Steps(1000))
    rates = []
    for step in (0, 499, 500, 749, 750, 999):
        trainer.set_learning_rate(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("kind", [CPUSeconds, Steps])
def test_a_budget_is_positive(kind):
    for amount in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"must be positive, got {amount:g} {kind.__name__}"):
            kind(amount)
    assert kind(4.0).share({"step": 1, "cpu_seconds": 1.0}) == 0.25
    assert kind(4.0).share({"step": 9, "cpu_seconds": 9.0}) == 1.0


def test_the_line_of_a_validation(tmp_path):
    trainer = budget_run(tmp_path / "run", CPUSeconds(10.0))
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
    trainer = budget_run(tmp_path / "run", CPUSeconds(1.0))
    trainer.start()
    assert trainer.fit(until=2)["finished"] is False
    assert trainer.state["step"] == 2
    assert not (trainer.run.folder / "last.safetensors").exists()
    again = BudgetTrainer(Run.open(trainer.run.folder), CPUSeconds(1.0), 60.0)
    again.resume()
    assert (again.state["step"], again.state["cpu_seconds"]) == (2, 0.5)
    hurried = budget_run(tmp_path / "hurried", CPUSeconds(1.0), wall_seconds=-1.0)
    hurried.start()
    assert hurried.fit()["step"] == 1
    whole = budget_run(tmp_path / "whole", CPUSeconds(1e9), wall_seconds=900.0)
    whole.start()
    assert whole.fit()["step"] == whole.total_steps == 8


@pytest.mark.parametrize(("budget", "words"), [(Steps(9), "9 Steps"), (CPUSeconds(8), "8 CPUSeconds")])
def test_a_run_goes_on_with_its_own_budget(tmp_path, budget, words):
    trainer = budget_run(tmp_path / "run", Steps(8))
    trainer.start()
    trainer.fit(until=2)
    other = BudgetTrainer(Run.open(tmp_path / "run"), budget, 60.0)
    with pytest.raises(RunUnusableError, match=f"was begun with 8 Steps, not {words}: go on with that"):
        other.resume()
    again = BudgetTrainer(Run.open(tmp_path / "run"), Steps(8), 60.0)
    again.resume()
    again.state.pop("budget")  # as an older version wrote it
    again.save()
    with pytest.raises(RunUnusableError, match="was begun with a budget that it does not say, not 8 Steps"):
        BudgetTrainer(Run.open(tmp_path / "run"), Steps(8), 60.0).resume()


def test_a_stop_leaves_no_trace_in_a_run_of_steps(tmp_path):
    """Weights, bookkeeping and the lines of metrics: stopped within an epoch, between two validations, twice."""
    flow = image_config("glow", num_levels=1, num_steps=1, width=4)
    config = ImageTrainConfig(image=flow, epochs=9, batch_size=500, threads=1, ema_decay=0.9, valid_images=20)
    stops: dict[str, list[int | None]] = {"whole": [None], "stopped": [2, 4, None]}
    for name, untils in stops.items():
        Run.create(tmp_path / name, config)
        for until in untils:
            trainer = BudgetTrainer(Run.open(tmp_path / name), Steps(8), validate_every=3)
            trainer.resume()
            state = trainer.fit(until)
            assert state["step"] == until or state["finished"]
    (whole, state), (stopped, other) = (load_tensors(tmp_path / name / "checkpoint.safetensors") for name in stops)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    assert without_clocks(state) == without_clocks(other)
    lines, others = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in stops)
    assert [json.loads(line)["step"] for line in lines] == [1, 3, 6, 8]
    assert [without_clocks(json.loads(line)) for line in lines] == [without_clocks(json.loads(line)) for line in others]


def without_clocks(figures):
    return {name: value for name, value in figures.items() if not name.endswith("seconds")}


def test_until_is_of_the_whole_run(tmp_path):
    trainer = budget_run(tmp_path / "run", Steps(6), validate_every=100.0)
    trainer.start()
    assert trainer.fit(until=2)["step"] == 2
    assert trainer.fit(until=2)["step"] == 2
    assert trainer.fit(until=1)["step"] == 2
    assert trainer.fit()["step"] == 6


def test_a_run_without_validation_images_has_no_loss_in_its_lines(tmp_path):
    trainer = budget_run(tmp_path / "run", Steps(2), validate_every=1.0)
    trainer.task.validate = lambda: None
    trainer.start()
    trainer.fit()
    assert len(lines_of(trainer)) == 2
    assert not any("valid_loss" in line for line in lines_of(trainer))
    assert math.isnan(status_of_run(trainer.run.folder).best)
    with (trainer.run.folder / "metrics.jsonl").open("a") as file:  # as older versions wrote it
        file.write(json.dumps({**lines_of(trainer)[-1], "valid_loss": None}) + "\n")
    assert math.isnan(status_of_run(trainer.run.folder).best)
