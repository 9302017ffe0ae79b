"""Pixel models that are told the class: rows with labels, Bayes' rule, one class a line, and old rows' keys."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_captured import NothingRead
from vi_flows.autoregressive.config import PIXEL_MODELS, Made, pixel_config
from vi_flows.cli import main
from vi_flows.data import labelled, load
from vi_flows.distributions.image_config import image_config
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, PixelVAETrainConfig, Run, Trainer
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.base import BinaryDrawingSettings, EvaluationSettings
from vi_flows.training.tasks.classes import lines_of_classes
from vi_flows.training.tasks.pixel import PixelTask

CNN = pixel_config("pixel_cnn", width=8, num_blocks=1)
TOLD = PixelTrainConfig(
    pixel=CNN, labels=True, epochs=2, batch_size=200, learning_rate=1e-2, threads=1, checkpoint_seconds=1e9
)

TOLD_FLOW = ImageTrainConfig(
    image=image_config("maf", num_layers=2, hidden_dims=(70,)), labels=True, epochs=3, batch_size=100,
    learning_rate=3e-3, threads=1, checkpoint_seconds=1e9,
)  # fmt: skip
each_kind = pytest.mark.parametrize("config", [TOLD, TOLD_FLOW], ids=["pixel", "image"])


def exit_code(*words):
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return done.value.code


def test_rows_of_runs_without_labels_keep_their_keys():
    assert PixelTrainConfig().key == "digits-gated_pixel_cnn-w64-l7-clean-e100-s0-126c5824"
    large = PixelTrainConfig(
        dataset="binarized_mnist", pixel=pixel_config("made", hidden_dims=(8000,), dropout=0.3), ema_decay=0.999,
        device="cuda", precision="bf16", cuda_graph=True,
    )  # fmt: skip
    assert large.key == "binarized_mnist-made-h8000-dropout0.3-clean-e100-s0-81f59eaa"
    order = pixel_config("made", order="random")
    assert PixelTrainConfig(pixel=order).key != PixelTrainConfig(pixel=pixel_config("made")).key
    assert PixelTrainConfig(pixel=pixel_config("made")).key == "digits-made-h500-clean-e100-s0-167a6f1f"
    assert PixelVAETrainConfig(decoder=order.model).key != PixelVAETrainConfig(decoder=Made()).key
    assert PixelVAETrainConfig(decoder=Made()).key == "digits-g1-made-h500-clean-e100-s0-8875a4e5"
    told = PixelTrainConfig(labels=True)
    assert told.slug == "digits-gated_pixel_cnn-w64-l7-labels-clean-e100-s0"
    assert told.key != PixelTrainConfig().key


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_rows_end_with_their_class_and_give_the_pixels_of_the_same_images(protocol):
    plain = load("digits")
    told = labelled(plain)
    assert told.sha256 != plain.sha256
    split = told.split(protocol)
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    for name, rows in parts.items():
        pixels = getattr(plain.split(protocol), name)
        assert rows.dtype == torch.int16
        assert torch.equal(told.pixels(rows).byte(), pixels)
        assert torch.equal(told.means(rows), plain.means(pixels))
        assert torch.equal(told.binarized(rows), plain.binarized(pixels))
        shown = told.class_indicators(rows)
        assert shown.shape == (len(rows), 10)
        assert (shown.sum(1) == 1).all()
    assert torch.equal(told.class_indicators(split.test).argmax(1), plain.labels["test"])
    first = plain.labels["train"] if protocol == "clean" else torch.cat([plain.labels["train"], plain.labels["valid"]])
    assert torch.equal(split.train[:, -1].long(), first)


def test_another_labelling_is_other_data():
    plain = load("digits")
    other = replace(plain, labels={name: (9 - of) for name, of in plain.labels.items()})
    assert labelled(other).sha256 != labelled(plain).sha256


@pytest.mark.parametrize(("labels", "words"), [(None, "digits has no labels"), (-1, "-1 … 9")])
def test_labels_that_are_none_are_refused(labels, words):
    plain = load("digits")
    found = None if labels is None else {**plain.labels, "valid": torch.full_like(plain.labels["valid"], labels)}
    with pytest.raises(ValueError, match=words):
        labelled(replace(plain, labels=found))


def test_labels_with_gaps_are_numbered_in_their_order_over_all_splits():
    plain = load("digits")
    assert plain.labels is not None
    gaps = labelled(replace(plain, labels={name: 1990 + 7 * found for name, found in plain.labels.items()}))
    told = labelled(plain)
    assert gaps.num_classes == told.num_classes == 10
    assert all(map(torch.equal, gaps.split("clean"), told.split("clean")))
    assert torch.equal(told.labels["test"], plain.labels["test"])
    assert told.sha256.startswith("7affbb93409328d2f0645c6e")  # of the version before, so that its runs go on
    only = {
        **plain.labels,
        "train": torch.full_like(plain.labels["train"], 30_000),
    }  # the others are in no training row
    apart = labelled(replace(plain, labels=only))
    assert apart.num_classes == 11
    assert set(apart.split("clean").train[:, -1].tolist()) == {10}
    assert torch.equal(apart.split("clean").test[:, -1].long(), plain.labels["test"])
    many = {name: torch.arange(len(found)) + 9000 * (name == "train") for name, found in plain.labels.items()}
    assert labelled(replace(plain, labels=many)).num_classes == 1297 + max(len(plain.valid), len(plain.test))


def test_more_labels_than_classes_can_be_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["vi_flows.data.labelled"], "MOST_CLASSES", 10)
    with pytest.raises(ValueError, match=r"digits has 10 different labels.*or group them: there may be 9"):
        labelled(load("digits"))


def test_a_data_set_without_labels_is_refused_before_a_folder_is_made(tmp_path, capsys):
    np.save(tmp_path / "own.npy", np.zeros((40, 8, 8), dtype=np.uint8))
    words = ["--dataset", str(tmp_path / "own.npy"), "--labels", "--quiet", "pixel_cnn", "--width", "4"]
    assert exit_code("train", "pixel", "--out", str(tmp_path / "run"), *words) == 2
    assert "has no labels: choose a data set that has them" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_step_is_the_mean_density_under_the_own_classes(tmp_path):
    task = Run(tmp_path, TOLD).build_task()
    rows = task.train_rows[:8]
    torch.manual_seed(0)
    loss = task.step(rows, 1.0, 1).loss
    torch.manual_seed(0)
    under = task.module.condition(torch.eye(10)[rows[:, -1].long()])
    assert loss.item() == pytest.approx(-under.log_prob(task._drawn(rows)).mean().item(), rel=1e-5)


@pytest.mark.parametrize("model", PIXEL_MODELS)
def test_every_model_is_told_the_class_and_a_step_reads_nothing_back(tmp_path, model):
    small = pixel_config("made", hidden_dims=(16,), num_masks=2) if model == "made" else pixel_config(model, width=8)
    task = Run(tmp_path, replace(TOLD, pixel=small)).build_task()
    rows = task.train_rows[:8].clone()
    task.module.train()
    with NothingRead():
        task.step(rows, 1.0, 1).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.module.parameters())
    seen = task._fixed(rows)
    rows[:, -1] = (rows[:, -1] + 1) % 10
    assert (task.log_probs(seen) != task.log_probs(task._fixed(rows))).all()


def test_evaluation_is_the_density_under_the_class_and_bayes_rule(tmp_path):
    trainer = Trainer(Run.create(tmp_path / "run", TOLD), progress=False)
    trainer.start()
    trainer.fit()
    run = Run.open(tmp_path / "run")
    record, _ = evaluate_run(run, EvaluationSettings(limit=60), progress=False)
    task = run.build_task()
    run.load_weights(task)
    plain = load("digits")
    x = plain.binarized("test")[2::5].reshape(60, 1, 8, 8)
    told = task.module.condition(torch.eye(10)[plain.labels["test"][2::5]]).log_prob(x)
    assert record.figures["nll"] == pytest.approx(-told.mean().item(), abs=1e-4)
    every = task.module.condition(torch.eye(10)[:, None]).log_prob(x)
    shares = torch.bincount(plain.labels["train"], minlength=10) / len(plain.train)
    joint = every + shares.log()[:, None]
    assert record.figures["marginal_nll"] == pytest.approx(-joint.logsumexp(0).mean().item(), abs=1e-4)
    hit = (joint.argmax(0) == plain.labels["test"][2::5]).float().mean().item()
    assert record.figures["class_accuracy"] == pytest.approx(hit)
    assert (record.figures["num_classes"], record.figures["classified_rows"]) == (10, 60)
    assert record.scores["marginal_nll"].shape == (60,)
    # By their own class at least as probable as by its share of the mixture.
    assert (record.scores["nll"] <= record.scores["marginal_nll"] - shares.min().log().item() + 1e-4).all()
    assert "% are assigned to their own among 10 classes" in task.report(record.figures)[2]


def test_bayes_rule_by_hand(monkeypatch):
    """Two classes of shares 3/4 and 1/4; images say −1 and −1.5 nats, and 0 and −3: ¾e⁻¹ + ¼e⁻¹·⁵, ¾ + ¼e⁻³."""
    plain = load("digits")
    classes = {name: torch.zeros(len(getattr(plain, name)), dtype=torch.long) for name in ("train", "valid", "test")}
    classes["train"][:4] = torch.tensor([0, 0, 0, 1])
    classes["test"][[75, 225]] = torch.tensor([0, 1])
    data = labelled(replace(plain, train=plain.train[:4], labels={**classes, "train": classes["train"][:4]}))
    task = PixelTask(TOLD, data)
    says = {0: torch.tensor([-1.0, 0.0]), 1: torch.tensor([-1.5, -3.0])}
    images = data.binarized(data.split("clean").test)[[75, 225]]

    def log_probs(seen):
        image = torch.where((seen[:, None, :64] == images).all(-1))[1]
        return torch.stack([says[int(of)][i] for i, of in zip(image, seen[:, -1], strict=True)])

    monkeypatch.setattr(task, "log_probs", log_probs)
    found = task.evaluate(data.split("clean").test, EvaluationSettings(limit=2), False)
    assert found.scores["nll"].tolist() == [1.0, 3.0]
    expected = [-math.log(0.75 * math.exp(-1) + 0.25 * math.exp(-1.5)), -math.log(0.75 + 0.25 * math.exp(-3))]
    assert found.scores["marginal_nll"].tolist() == pytest.approx(expected)
    assert found.figures["class_accuracy"] == 0.5  # the second is of class 1 and looks like class 0


def test_only_so_many_images_are_scored_under_every_class(monkeypatch):
    task = PixelTask(TOLD, labelled(load("digits")))
    monkeypatch.setattr("vi_flows.training.tasks.classes.MOST_CLASSIFIED", 57)
    monkeypatch.setattr(task, "log_probs", lambda seen: -torch.ones(len(seen)))
    figures, scores = task.evaluate(task.splits.test, EvaluationSettings(), False)
    assert (figures["num_rows"], figures["classified_rows"]) == (300, 5)
    assert scores["marginal_image"].tolist() == [30, 90, 150, 210, 270]
    assert scores["marginal_nll"].shape == (5,)


def test_a_line_of_the_grids_is_of_one_class(monkeypatch):
    data = labelled(load("digits"))
    task = PixelTask(TOLD, data)
    asked = []
    monkeypatch.setattr(
        task.module, "generate", lambda context, progress: asked.append(context) or torch.zeros(len(context), 1, 8, 8)
    )
    given = []
    monkeypatch.setattr(task.module, "extend", lambda starts, known, context, progress: given.append(context) or starts)
    torch.manual_seed(0)
    chosen, context = lines_of_classes(data, task.splits.train, 12, 3)
    lines = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert chosen[:, -1].reshape(12, 3).tolist() == [[line] * 3 for line in lines]
    assert context.argmax(1).reshape(12, 3).tolist() == [[line] * 3 for line in lines]
    grids = task.pictures(BinaryDrawingSettings(12, 3))
    assert asked[0].argmax(1).tolist() == [line for line in lines for _ in range(3)]
    assert given[0].argmax(1).tolist() == [int(of) for of in data.labels["test"][12::25] for _ in range(2)]
    assert {name: len(grid) for name, grid in grids.items()} == {"samples": 36, "data": 36, "completions": 36}


def test_a_class_of_few_training_images_leaves_its_line_black():
    plain = load("digits")
    few = {**plain.labels, "train": torch.zeros_like(plain.labels["train"])}
    few["train"][5] = 2
    data = labelled(replace(plain, labels=few))
    chosen, _ = lines_of_classes(data, data.split("clean").train, 3, 2)
    assert torch.equal(chosen[4, :64].byte(), plain.train[5])
    assert (chosen[[2, 3, 5], :64] == 0).all()


@each_kind
def test_weights_of_a_model_without_labels_are_no_start(config, tmp_path):
    trainer = Trainer(Run.create(tmp_path / "plain", replace(config, labels=False, epochs=1)), progress=False)
    trainer.start()
    trainer.fit()
    with pytest.raises(ValueError, match="labels=False, this one True"):
        Run.create(tmp_path / "told", replace(config, start_from=tmp_path / "plain"))


@each_kind
def test_runs_of_before_are_opened(config, tmp_path):
    run = Run.create(tmp_path / "run", replace(config, labels=False))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "labels" not in written["settings"]  # as of a run that was started before there were any
    assert Run.open(tmp_path / "run").config == run.config


@pytest.mark.parametrize(
    ("kind", "model", "draws", "third"),
    [
        (
            "pixel", ("gated_pixel_cnn", "--width", "4", "--num-layers", "1", "--first-kernel", "3"), (),
            "completions",
        ),
        ("image", ("nice", "--hidden-dims", "8"), ("--num-samples", "2"), "classes"),
    ],
)  # fmt: skip
def test_command_line(kind, model, draws, third, tmp_path, capsys):
    folder = str(tmp_path / "run")
    options = ["--labels", "--epochs", "1", "--batch-size", "500", "--quiet", *model]
    assert exit_code("train", kind, "--out", folder, *options) == 0
    assert exit_code("evaluate", folder, "--limit", "10", *draws, "--quiet") == 0
    assert "given the class" in capsys.readouterr().out
    assert exit_code("sample", folder, "--columns", "2") == 0
    for name in ("samples", "data", third):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 0
