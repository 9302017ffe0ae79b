"""Image flows that are told the class: the own class in training, Bayes' rule in tests, and old rows' keys."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.training.test_class_conditional import TOLD_FLOW as TOLD
from vi_flows.data import labelled, load
from vi_flows.distributions.image_config import image_config
from vi_flows.training import ImageTrainConfig, Run, Trainer
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.classes import by_bayes
from vi_flows.training.tasks.image import ImageDrawingSettings, ImageEvaluationSettings, ImageFlowTask


def test_rows_of_runs_without_labels_keep_their_keys():
    assert ImageTrainConfig().key == "digits-glow-l2-d8-w512-b1-clean-e100-s0-0fe9a16f"
    assert ImageTrainConfig(image=image_config("maf")).key == "digits-maf--clean-e100-s0-4ee3ea62"
    assert TOLD.slug == "digits-maf-num_layers2-hidden_dims70-labels-clean-e3-s0"
    assert TOLD.key != replace(TOLD, labels=False).key


def test_bayes_rule_of_several_draws_by_hand():
    """Shares ¾ and ¼; two draws of the noise: (−1, −1.5) and (−2, −0.5) nats of the first image, of the second 0, −3.

    Each draw's mixture has a density, and the mean of their logs bounds the image's.
    """
    given = torch.tensor([[[-1.0, 0.0], [-2.0, 0.0]], [[-1.5, -3.0], [-0.5, -3.0]]], dtype=torch.float64)
    figures, marginal = by_bayes(given, torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([1, 1]))
    first = math.log(0.75 * math.exp(-1) + 0.25 * math.exp(-1.5)), math.log(0.75 * math.exp(-2) + 0.25 * math.exp(-0.5))
    assert marginal.tolist() == pytest.approx([-sum(first) / 2, -math.log(0.75 + 0.25 * math.exp(-3))])
    # Means of −1.5 + log ¾ and −1 + log ¼ nats: class 0, and so the second; both are of class 1.
    assert (figures["class_accuracy"], figures["num_classes"], figures["classified_rows"]) == (0.0, 2, 2)
    assert figures["marginal_nll"] == pytest.approx(marginal.mean().item())


def test_a_step_is_the_density_under_the_own_classes(tmp_path):
    task = Run(tmp_path, TOLD).build_task()
    task.module.eval()
    for p in task.module.parameters():
        torch.nn.init.normal_(p, std=0.05)
    rows = task.train_rows[:8]
    torch.manual_seed(0)
    loss = task.step(rows, 1.0, 1).loss
    torch.manual_seed(0)
    under = task.module.condition(torch.eye(10)[rows[:, -1].long()])
    images = load("digits").images("train")[:8]
    assert loss.item() == pytest.approx(under.bits_per_dim(images).mean().item(), rel=1e-5)
    torch.manual_seed(0)
    other = task.module.condition(torch.eye(10)[(rows[:, -1].long() + 1) % 10])
    assert other.bits_per_dim(images).mean().item() != pytest.approx(loss.item(), rel=1e-5)


def test_evaluation_is_the_density_under_the_class_and_bayes_rule(tmp_path):
    trainer = Trainer(Run.create(tmp_path / "run", TOLD), progress=False)
    trainer.start()
    trainer.fit()
    run = Run.open(tmp_path / "run")
    record, _ = evaluate_run(run, ImageEvaluationSettings(limit=60, num_samples=3), progress=False)
    task = run.build_task()
    run.load_weights(task)
    plain = load("digits")
    x, own = plain.images("test")[2::5], plain.labels["test"][2::5]
    every = []
    for draw in range(3):
        scores = []
        for one in torch.eye(10):
            torch.manual_seed(draw)
            scores.append(task.module.condition(one).log_prob(x).detach().double())
        every.append(torch.stack(scores))
    joint = (
        torch.stack(every, 1)
        + (torch.bincount(plain.labels["train"], minlength=10) / len(plain.train)).log()[:, None, None]
    )
    assert record.figures["marginal_nll"] == pytest.approx(-joint.logsumexp(0).mean().item(), abs=1e-3)
    hit = (joint.mean(1).argmax(0) == own).double().mean().item()
    assert record.figures["class_accuracy"] == pytest.approx(hit)
    assert hit > 0.8
    assert record.scores["marginal_nll"].shape == (60,)
    torch.manual_seed(0)
    told = task.module.condition(torch.eye(10)[own]).bits_per_dim(x, 3).mean().item()
    assert record.figures["bits_per_dim"] == pytest.approx(told, abs=1e-5)
    assert "% are assigned to their own among 10 classes" in task.report(record.figures)[-1]


@pytest.mark.parametrize("flow", [TOLD.image, image_config("glow", num_levels=1, num_steps=1, width=4)])
def test_a_line_is_of_one_class_and_an_image_in_its_own_class_is_itself(flow):
    data = labelled(load("digits"))
    task = ImageFlowTask(replace(TOLD, image=flow), data)
    task.module.eval()
    for p in task.module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    grids = task.pictures(ImageDrawingSettings(12, 11))
    assert {name: len(grid) for name, grid in grids.items()} == {"samples": 132, "data": 132, "classes": 132}
    shown = (grids["data"] * (data.levels - 1)).round().to(torch.uint8).flatten(1)
    of = {tuple(row[:-1].tolist()): int(row[-1]) for row in data.split("clean").train}
    assert [of[tuple(row.tolist())] for row in shown] == [line % 10 for line in range(12) for _ in range(11)]
    lines, own = grids["classes"].reshape(12, 11, -1), data.labels["test"][12::25]
    images = data.images("test")[12::25].flatten(1).float() / (data.levels - 1)
    torch.testing.assert_close(lines[torch.arange(12), own], images)
    assert (lines[torch.arange(12), (own + 1) % 10] != images).any(1).all()
    assert (lines[:, 10] == 0).all()  # there is no eleventh class
    few = task.pictures(ImageDrawingSettings(12, 4))["classes"].reshape(12, 4, -1)
    torch.testing.assert_close(few, lines[:, :4])


def test_a_grid_of_samples_is_drawn_given_its_lines_classes(monkeypatch):
    task = ImageFlowTask(TOLD, labelled(load("digits")))
    asked = []
    condition = task.module.condition
    monkeypatch.setattr(task.module, "condition", lambda context: asked.append(context) or condition(context))
    task._drawn(torch.eye(10)[[3, 3, 7]], 0.5)
    assert asked[0].argmax(1).tolist() == [3, 3, 7]
