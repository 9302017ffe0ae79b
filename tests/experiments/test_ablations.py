"""Changes of the recipe are compared on images that all were scored on, and with ``standard`` image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.ablation_figure import Options, main
from experiments.tables.ablations import ablation_table, ablations_in
from vi_flows.records import Record

K4 = "ablation-binarized_mnist-g1-amortized-k4-tanh"


def write(
    folder: Path, name: str, nlls: list[float], scores: bool = True, before: int = 0, seed: int = 0,
    data: str = "0a", image: list[int] | None = None, **figures: Any,
) -> None:  # fmt: skip
    """A record of ``len(nlls)`` images; it goes on from a run of ``before`` steps where there are any."""
    source = {"model": "g1", "epoch": 500, "steps": before, "started_from": None} if before else None
    figures = {"nll": float(np.mean(nlls)), "interval": [1.0, 2.0], "num_samples": 1000, "steps": 300, **figures}
    record = Record(
        "vae", "key", "VAE", {"seed": seed, "epochs": 30}, figures | {"num_rows": len(nlls)},
        {"training_seconds": 60.0, "device": "cpu", "started_from": source, "data_sha256": data},
        scores=({} if image is None else {"image": np.asarray(image, np.float32)})
        | ({"nll": np.asarray(nlls, np.float32)} if scores else {}),
    )  # fmt: skip
    record.write(folder / f"{name}.json")


def test_nlls_are_those_of_the_images_that_all_records_have(tmp_path: Path) -> None:
    write(tmp_path, f"{K4}-old-e30-s0", [4.0, 5.0], scores=False)
    write(tmp_path, f"{K4}-new-e30-s0", [3.0, 5.0, 10.0, 20.0])
    write(tmp_path, "ablation-binarized_mnist-g1-plain-ema-e30-s0", [9.0, 9.0])
    rows = ablations_in(tmp_path)
    assert [(row.model, row.change, row.nll, row.num_images) for row in rows] == [
        ("plain", "ema", 9.0, 2), ("amortized-k4-tanh", "new", 4.0, 2), ("amortized-k4-tanh", "old", 4.5, 2),
    ]  # fmt: skip
    assert [row.interval for row in rows] == [(1.0, 2.0), (3.0, 5.0), (1.0, 2.0)]


def test_standard_is_subtracted_image_by_image_and_from_its_own_finish_too(tmp_path: Path) -> None:
    write(tmp_path, f"{K4}-standard-e30-s0", [3.0, 4.0, 8.0])
    write(tmp_path, f"{K4}-ema-e30-s0", [2.5, 3.5, 7.5], steps=290)  # its best weights are not its last
    write(tmp_path, f"{K4}-finish-e30+30-s0", [1.0, 2.0, 6.0], before=300, steps=60)
    write(tmp_path, f"{K4}-stl-e60-s0", [1.0, 2.0, 6.0], steps=600)
    write(tmp_path, f"{K4}-paper-e30-s0", [1.0, 2.0, 6.0], scores=False)
    below = {row.change: row.below and (row.below.difference, row.below.interval) for row in ablations_in(tmp_path)}
    assert below == {
        "standard": None, "ema": (0.5, (0.5, 0.5)), "finish": (2.0, (2.0, 2.0)), "stl": None, "paper": None,
    }  # fmt: skip
    table = ablation_table(ablations_in(tmp_path)).splitlines()
    assert table[0].endswith("NLL of the first 3 validation images by 1000 samples, in nats)")
    assert "| amortized-k4-tanh | ema, seed 0 | 4.50 | 0.50, 0.50 – 0.50 (3) | 30 | 290 | 60, cpu |" in table
    finish = "| amortized-k4-tanh | finish, seed 0 | 3.00 | 2.00, 2.00 – 2.00 (3) | 500 + 30 | 300 + 60 | 60, cpu |"
    assert finish in table


def test_changes_stand_in_the_order_of_their_figures_under_their_own_names(tmp_path: Path) -> None:
    """A change's name may itself hold what looks like epochs."""
    plain = "ablation-binarized_mnist-g1-plain"
    write(tmp_path, f"{plain}-finish-rate-3e-4-e500+30-s0", [88.0], before=300, steps=60)
    write(tmp_path, f"{plain}-ema-e30-s3", [87.0], seed=3)
    assert ablation_table(ablations_in(tmp_path)).splitlines()[4:] == [
        "| plain | ema, seed 3 | 87.00 | – | 30 | 300 | 60, cpu |",
        "| plain | finish-rate-3e-4, seed 0 | 88.00 | – | 500 + 30 | 300 + 60 | 60, cpu |",
    ]


def test_seconds_are_the_processors_where_it_computes_and_they_were_counted(tmp_path: Path) -> None:
    for name, more, expected in (
        ("old", {}, 60.0), ("cpu", {"training_cpu_seconds": 25.0}, 25.0),
        ("gpu", {"training_cpu_seconds": 25.0, "device": "NVIDIA"}, 60.0),
    ):  # fmt: skip
        write(tmp_path / name, f"{K4}-ema-e30-s0", [3.0])
        row = ablations_in(tmp_path / name)[0]
        row.record.provenance.update(more)
        assert row.seconds == expected


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{K4}-long-e30-s0", [3.0, 4.0, 8.0], scores=False)
    write(tmp_path, f"{K4}-short-e30-s0", [3.0])
    with pytest.raises(ValueError, match=r"long-e30-s0.json has no scores of single images, to be compared on the"):
        ablations_in(tmp_path)
    write(tmp_path, f"{K4}-finer-e30-s0", [3.0], num_samples=5000)
    with pytest.raises(ValueError, match="have different numbers of importance samples"):
        ablations_in(tmp_path)
    write(tmp_path, "other", [3.0])
    with pytest.raises(ValueError, match=r"other.json has no name of an ablation, such as"):
        ablations_in(tmp_path)


def test_records_of_other_images_or_data_are_not_set_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "data", f"{K4}-standard-e30-s0", [3.0, 4.0], data="0a")
    write(tmp_path / "data", f"{K4}-ema-e30-s0", [3.0, 4.0], data="0b")
    with pytest.raises(ValueError, match=r"were scored on different data: 0[ab] and 0[ab]"):
        ablations_in(tmp_path / "data")
    write(tmp_path / "images", f"{K4}-ema-e30-s0", [3.0, 4.0])
    write(tmp_path / "images", f"{K4}-stl-e30-s0", [3.0, 4.0], image=[7, 22])
    with pytest.raises(ValueError, match=r"stl-e30-s0.json is of images spread over all, not of the first 2"):
        ablations_in(tmp_path / "images")


def test_the_figure_is_drawn_or_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="has no record of plain"):
        main(Options(tmp_path, tmp_path / "x.png", "plain"))
    write(tmp_path, f"{K4}-ema-e30-s0", [88.0])
    main(Options(tmp_path, tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path / "x.png") in capsys.readouterr().out
