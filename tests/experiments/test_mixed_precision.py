"""``experiments/mixed_precision``: what its record says, and that the two sides differ in the precision alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from experiments import mixed_precision
from vi_flows.distributions.image_config import build_image_density
from vi_flows.records import Record


def test_the_record_adds_up():
    record = Record.read(mixed_precision.Options().record)
    rows = record.figures["rows"]
    assert [row["seed"] for row in rows] == record.settings["seeds"] == [0, 1, 2]
    differences = [row["bfloat16"] - row["float32"] for row in rows]
    for row, difference in zip(rows, differences, strict=True):
        assert row["difference"] == pytest.approx(difference, abs=1e-9)
        assert 0 < row["half_width"] < 0.01
    mean = sum(differences) / 3
    assert record.figures["mean_difference"] == pytest.approx(mean, abs=1e-9)
    # Student's t with two degrees of freedom: 4.3027 s / √3.
    spread = (sum((difference - mean) ** 2 for difference in differences) / 2) ** 0.5
    assert record.figures["half_width"] == pytest.approx(4.3027 * spread / 3**0.5, rel=1e-3)


def test_the_sides_differ_in_their_networks_precision_alone():
    options = mixed_precision.Options()
    low, full = (mixed_precision.config_of(options, 1, mixed) for mixed in (True, False))
    assert low != full
    assert dataclasses.replace(low, image=full.image) == full
    densities = []
    for config in (low, full):
        torch.manual_seed(0)
        densities.append(build_image_density(config.image, (3, 8, 8)))
    states = [density.state_dict() for density in densities]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert sum(p.numel() for p in densities[0].parameters()) == 388_288  # as normflows' in `vi-flows bench --extra`


def test_a_record_of_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixed_precision, "SIZE", mixed_precision.SIZE | {"num_steps": 1, "width": 8})
    options = mixed_precision.Options(dataset="digits", seeds=(3, 4), num_samples=1, record=tmp_path / "record.json")
    mixed_precision.main(options)
    figures = json.loads((tmp_path / "record.json").read_text())["figures"]
    assert [row["seed"] for row in figures["rows"]] == [3, 4]
    assert all(row["num_images"] == 300 and row["float32"] != row["bfloat16"] for row in figures["rows"])
    assert "bfloat16 less float32" in capsys.readouterr().out
