"""The image experiments run from start to record, on tiny settings."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vi_flows.distributions.image_config import build_image_density, image_config
from vi_flows.records import Record
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, Run, RunError

FOLDER = Path(__file__).parents[2] / "experiments"


def script(name):
    if str(FOLDER) not in sys.path:  # as where a script is run: its neighbors can be imported
        sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


def test_sampling_time(tmp_path, capsys):
    module = script("sampling_time")
    out = tmp_path / "record.json"
    module.main(module.Options((1, 8, 8), num_levels=2, num_steps=1, width=4, out=out, num_images=3, repetitions=1))
    record = Record.read(out).figures
    assert [line["shape"] for line in record["one_convolution"]] == [[4, 4, 4], [8, 2, 2]]
    rows = record["rows"]
    assert [row["model"] for row in rows] == list(module.SAMPLERS)
    assert all(row["round_trip_error_float32"] < 1e-3 for row in rows)
    assert "Glow" in capsys.readouterr().out


def test_mconv_throughput(tmp_path):
    module = script("mconv_throughput")
    out = tmp_path / "record.json"
    module.main(module.Options(out, width=4, num_blocks=1, num_couplings=1, batch_size=2, repetitions=1))
    assert set(Record.read(out).figures["ratio_to_affine"]) == {"affine", "mconv", "mconv-cosine"}


def test_epochs_of_rows():
    module = script("image_rows")
    found = {
        (row, budget): module.row_budget(row, budget)["epochs"]
        for row in ("mnist-glow", "cifar-glow", "mnist-maf10", "mnist-maf10-bounded", "mnist-maf5-bounded-labels")
        for budget in ("short", "small")
    }  # fmt: skip
    assert found == {
        ("mnist-glow", "short"): 6, ("mnist-glow", "small"): 40, ("cifar-glow", "short"): 8,
        ("cifar-glow", "small"): 40, ("mnist-maf10", "short"): 6, ("mnist-maf10", "small"): 40,
        ("mnist-maf10-bounded", "short"): 6, ("mnist-maf10-bounded", "small"): 24,
        ("mnist-maf5-bounded-labels", "short"): 6, ("mnist-maf5-bounded-labels", "small"): 24,
    }  # fmt: skip


def test_rows_and_table(tmp_path, capsys, monkeypatch):
    module = script("image_rows")
    monkeypatch.setitem(module.ROWS, "mnist-mconv", ("mconv", "digits"))
    tiny = {"num_levels": 1, "num_couplings": 1, "width": 4, "num_blocks": 1}
    monkeypatch.setitem(module.MASKED, "probe", tiny)
    monkeypatch.setitem(module.BUDGETS, "probe", {"epochs": 1, "batch_size": 500})
    row = module.RunRow("mnist-mconv", "probe", tmp_path / "runs", tmp_path / "results", num_draws=1)
    row.run()
    first = Record.read(tmp_path / "results" / "image-mnist-mconv-probe-seed0.json")
    module.ScoreRow("mnist-mconv", "probe", tmp_path / "runs", tmp_path / "results", num_draws=3).run()
    again = Record.read(tmp_path / "results" / "image-mnist-mconv-probe-seed0.json")
    assert (first.figures["num_draws"], again.figures["num_draws"]) == (1, 3)
    assert again.figures["steps"] == first.figures["steps"]
    assert again.provenance["trained_at_revision"] == first.provenance["trained_at_revision"]
    assert again.figures["bits_per_dim"] == pytest.approx(first.figures["bits_per_dim"], rel=0.02)
    module.Table(tmp_path / "results").run()
    table = capsys.readouterr().out
    assert "| mnist-mconv | probe |" in table
    assert "1.07" in table
    module.Samples("mnist", "probe", tmp_path / "runs", tmp_path / "figures", columns=3).run()
    assert (tmp_path / "figures" / "image-samples-mnist-probe.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no cifar run"):
        module.Samples("cifar", "probe", tmp_path / "runs").run()
    with pytest.raises(ValueError, match="mnist-nice"):
        module.RunRow("mnist-maf").run()
    with pytest.raises(RunError, match="mnist-nice-probe-seed0"):
        module.ScoreRow("mnist-nice", "probe", tmp_path / "runs").run()


def test_edited_images_are_of_all_classes_of_sorted_data(tmp_path):
    module = script("attribute_edit")
    data = SimpleNamespace(images=lambda _: torch.arange(100), labels={"test": torch.arange(100) // 10})
    images, labels = module.spread(data, "test", 10)
    assert labels.tolist() == [*range(10)]
    assert images.tolist() == [11 * i for i in range(10)]
    assert module.spread(data, "test", 300)[0].tolist() == [*range(100)]
    options = module.Options(tmp_path, shown=(2, 7))
    with pytest.raises(ValueError, match="none of the 2 test images is of class 7; --shown takes some of 2, 5"):
        module.draw(None, options, images[:2], torch.tensor([5, 2]), {})


@pytest.mark.parametrize(
    "config", [PixelTrainConfig(), ImageTrainConfig(image=image_config("nice", hidden_dims=(4,)), labels=True)]
)
def test_attributes_are_edited_in_image_flows_of_all_classes_alone(config, tmp_path):
    Run.create(tmp_path / "run", config)
    module = script("attribute_edit")
    with pytest.raises(ValueError, match=rf"is a run of {config.kind} .* without --labels"):
        module.main(module.Options(tmp_path / "run"))


def test_mafs_have_their_papers_size():
    module = script("image_rows")
    names = ("maf5", "maf10", "maf10-pixel_spline", "maf10-tanh", "maf10-bounded", "maf5-bounded-labels")
    configs = [module.row_config(model, "small") for model in names]
    assert [(c.flow.num_layers, c.flow.hidden_dims, c.flow.scale, c.pixel_spline) for c in configs] == [
        (5, (1024,), "exp", 0), (10, (1024,), "exp", 0), (10, (1024,), "exp", 96), (10, (1024,), "tanh", 0),
        (10, (1024,), "tanh", 0), (5, (1024,), "tanh", 0),
    ]  # fmt: skip
    assert [config.flow.bounded for config in configs] == [False] * 4 + [True] * 2
    assert module.row_config("maf5-bounded-labels", "small", "digits").flow.hidden_dims == (256,)


def test_every_seed_of_a_row_has_its_line(tmp_path):
    module = script("image_rows")
    record = json.loads((module.RESULTS / "image-mnist-glow-short-seed0.json").read_text("utf-8"))
    for seed, bits in ((0, 1.5), (1, 9.9)):
        record["figures"]["bits_per_dim"] = bits
        (tmp_path / f"image-mnist-glow-short-seed{seed}.json").write_text(json.dumps(record), "utf-8")
    (tmp_path / "image-mnist-glow-probe-seed2.json").write_text(json.dumps(record), "utf-8")
    (tmp_path / "image-mnist-nice-short-seed0.json").write_text(json.dumps(record), "utf-8")
    rows = [line.split(" | ")[:3] for line in module.markdown_table(tmp_path, "mnist").splitlines()[2:]]
    assert sorted(rows) == [
        ["| mnist-glow, seed 0", "short", "1.5000"],
        ["| mnist-glow, seed 1", "short", "9.9000"],
        ["| mnist-nice", "short", "9.9000"],
    ]


@pytest.mark.parametrize("budget", ["probe", "short", "small"])
def test_rows_have_about_equal_sizes(budget):
    """Within a family of rows the numbers of parameters are within 30 % of each other."""
    module = script("image_rows")

    def size(model):
        density = build_image_density(module.row_config(model, budget), (1, 28, 28))
        return sum(p.numel() for p in density.parameters())

    for family in (
        ("real_nvp", "mconv", "mconv-kernel", "mconv-cosine"),
        ("glow", "inv_conv3x3", "inv_conv3x3-quad", "emerging", "emerging-quad"),
    ):
        sizes = [size(model) for model in family]
        assert max(sizes) < 1.3 * min(sizes)
