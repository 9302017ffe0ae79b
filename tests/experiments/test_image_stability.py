"""The table of stability: a row before and after the bounds, from training to Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import image_benchmark_rows, image_stability
from experiments.image_stability import Render, RunAll, markdown_table
from vi_flows.records import Record
from vi_flows.transforms import coupling_maps


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One quick row of quick images."""
    monkeypatch.setattr(image_stability, "DATASETS", {"mnist": "digits"})
    monkeypatch.setattr(image_stability, "MODELS", {"mnist": ("glow",)})
    flow = {"flow": "glow", "num_levels": 1, "num_steps": 1, "width": 4}
    monkeypatch.setitem(image_benchmark_rows.SMALL, "glow", image_benchmark_rows.Row(flow, 1e-3, 9))


def test_rows_from_training_to_table(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = RunAll(tmp_path, budget_seconds=0.2, num_samples=30, num_images=20, datasets=("mnist",))
    assert command.run() == 0
    record = Record.read(tmp_path / "mnist.json")
    rows = record.figures["rows"]
    assert [(row["model"], row["bounds"]) for row in rows] == [("glow", "before"), ("glow", "today")]
    assert all(row["samples"]["num_samples"] == 30 and row["round_trip_error"] < 1e-3 for row in rows)
    assert all(row["far"]["saturated_pixels"] <= 1.0 and 0 < row["bits_per_dim"] < 9 for row in rows)
    assert record.settings["dataset"] == "digits"
    capsys.readouterr()

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(RunAll, "measure", never)
    assert command.run() == 0  # nothing is missing
    Render(tmp_path).run()
    assert capsys.readouterr().out.count("| mnist | glow |") == 2
    with pytest.raises(ValueError, match="other settings"):
        RunAll(tmp_path, budget_seconds=0.3, num_samples=30, num_images=20, datasets=("mnist",)).run()
    with pytest.raises(ValueError, match="unknown data set 'omniglot'"):
        RunAll(datasets=("omniglot",))


def test_before_is_another_definition() -> None:
    command = RunAll()
    old, new = (command.config("mnist", "glow", bounds).image.flow for bounds in ("before", "today"))
    assert (old.scale, new.scale) == ("sigmoid", "tanh")
    g = torch.tensor([-30.0])
    assert coupling_maps.SCALES["sigmoid"](g).item() == pytest.approx(-2.996, abs=1e-3)  # log 0.05
    with image_stability.as_before():
        assert coupling_maps.SCALES["sigmoid"](g).item() == pytest.approx(-28.0)
    assert command.config("cifar", "real_nvp", "before").image == command.config("cifar", "real_nvp", "today").image


def test_a_line_of_the_table() -> None:
    samples = {"finite_images": 0.83, "saturated_pixels": 0.0125, "saturated_images": 0.5, "largest_logit": 2e24}
    row = {
        "dataset": "mnist", "model": "glow", "bounds": "before", "bits_per_dim": 1.5, "half_width": 0.02,
        "round_trip_error": 1.5e-5, "samples": samples, "far": samples,
    }  # fmt: skip
    table = markdown_table([row | {"bounds": "today", "bits_per_dim": 1.4}, row]).splitlines()
    assert table[2] == "| mnist | glow | before | 1.500 ± 0.020 | 83.00 % | 1.25 % | 50.0 % | 2e+24 | 1.5e-05 |"
    assert table[3].startswith("| mnist | glow | today | 1.400")
