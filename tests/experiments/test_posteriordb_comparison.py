"""The comparison on posteriordb: errors, the collection's layouts, failures as rows, the table."""

import json
import zipfile

import pytest
import torch

from experiments.posteriordb import collection
from experiments.posteriordb.apart import one
from experiments.posteriordb.methods import Settings, measure
from experiments.posteriordb.programs import Program
from experiments.posteriordb.table import summary, table
from vi_flows.records import Record


def test_errors_are_in_reference_standard_deviations():
    grid = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    chains = {"a": torch.stack([grid, grid]), "b": torch.stack([10 * grid, 10 * grid])}
    found = measure({"a": grid + 0.5 * chains["a"].std(), "b": 12 * grid}, chains)
    assert found["largest_mean_error"] == pytest.approx(0.5, abs=1e-3)
    assert found["largest_mean_error_at"] == "a"
    assert found["mean_error"] == pytest.approx(0.25, abs=1e-3)
    assert (found["least_sd_ratio"], found["largest_sd_ratio"]) == (
        pytest.approx(1.0, abs=1e-3),
        pytest.approx(1.2, abs=1e-3),
    )
    # 0.9 of half the range times 0.2, in sd; the shift of a is larger.
    assert found["largest_quantile_error"] == pytest.approx(0.5, abs=1e-2)


def test_scalars_have_stans_names():
    program = Program("p", lambda: None, lambda data: (), lambda data, values: 0.0)
    found = program.scalars({"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "s": torch.tensor([5.0, 6.0])})
    assert {name: value.tolist() for name, value in found.items()} == {"b[1]": [1, 3], "b[2]": [2, 4], "s": [5, 6]}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, json.dumps(content))


DRAWS = [{"mu": [1.0, 2.0]}, {"mu": [3.0, 4.0]}]


def test_both_layouts_are_read(tmp_path):
    top = tmp_path / "posteriordb"
    put(top / "d-m" / "data.json.zip", {"N": 1})
    put(top / "d-m" / "reference_draws.json.zip", DRAWS)
    database = top / "posterior_database"
    put(database / "data" / "data" / "e.json.zip", {"N": 2})
    put(database / "reference_posteriors" / "draws" / "draws" / "other.json.zip", DRAWS)
    (database / "posteriors").mkdir()
    entry = {"data_name": "e", "model_name": "m", "reference_posterior_name": "other"}
    (database / "posteriors" / "e-m.json").write_text(json.dumps(entry))
    (database / "posteriors" / "f-m.json").write_text(json.dumps({**entry, "reference_posterior_name": None}))
    for name, size in (("d-m", 1), ("e-m", 2)):
        data, chains = collection.load(name, tmp_path)
        assert data["N"] == size
        assert chains["mu"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(FileNotFoundError, match="no reference draws of f-m"):
        collection.load("f-m", tmp_path)
    with pytest.raises(FileNotFoundError, match="VI_FLOWS_DATA"):
        collection.load("g-m", tmp_path)


@pytest.mark.slow
def test_what_a_method_raises_is_its_row(monkeypatch, tmp_path):
    monkeypatch.setenv("VI_FLOWS_DATA", str(tmp_path))
    row = one("arK-arK", "AutoConvFlow", Settings())
    assert row["method"] == "AutoConvFlow"
    assert row["failed"].startswith("FileNotFoundError: no arK-arK below")
    assert row["revision"]


def test_table_shows_failures(tmp_path):
    good = {
        "method": "AutoConvFlow", "largest_mean_error": 0.0123, "least_sd_ratio": 0.98, "largest_sd_ratio": 1.01,
        "cpu_seconds": 1.26, "steps": 300, "largest_quantile_error": 0.04, "k_hat": 0.3, "verdict": "ok",
    }  # fmt: skip
    rows = [good, {"method": "NUTS", "failed": "over 120 s of CPU time"}]
    figures = {"scalars": 3, "rows": rows}
    Record("posteriordb", "d-m-0", "d-m", {}, figures, {}).write(tmp_path / "d-m.json")
    lines = table(tmp_path).splitlines()
    assert lines[2] == (
        "| d-m | 3 | 0.01; 0.98 – 1.01; 1.3 s | 300 | 0.04 | 0.30 | ok | – | – | over 120 s of CPU time |"
    )
    assert lines[3] == "| **median** | | 0.012; 1.3 s | | | | | – | – | all 1 failed |"
    assert summary([good, rows[1]]) == "0.012; 1.3 s; 1 of 2 failed"
