"""The figure of the ablations has a line a record, the best on top."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.ablation_figure import Options, main, rows_of
from vi_flows.records import Record


def write(folder: Path, name: str, nll: float) -> None:
    figures = {"nll": nll, "interval": [nll - 1, nll + 1]}
    Record("vae", "key", "VAE", {}, figures, {"training_seconds": 60.0}).write(folder / f"{name}.json")


def test_lines_are_sorted_and_named_by_the_change(tmp_path: Path) -> None:
    for name, nll in {"a-one": 88.0, "a-two": 89.0, "a-three": 87.0, "b-one": 1.0}.items():
        write(tmp_path, name, nll)
    assert {name: record.figures["nll"] for name, record in rows_of(tmp_path, "a").items()} == {
        "two": 89.0, "one": 88.0, "three": 87.0,
    }  # fmt: skip
    assert list(rows_of(tmp_path, "a")) == ["two", "one", "three"]


def test_it_is_drawn_or_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="has no record whose name begins with a"):
        main(Options(tmp_path, tmp_path / "x.png", "a"))
    write(tmp_path, "a-one", 88.0)
    main(Options(tmp_path, tmp_path / "x.png", "a"))
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path / "x.png") in capsys.readouterr().out
