"""The trained runs that are committed: their weights fit the model, and their figures come out again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from vi_flows.distributions import ImageDensity
from vi_flows.distributions.image_config import build_image_density
from vi_flows.evaluation import estimate_nll
from vi_flows.records import Record
from vi_flows.training import Run
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.base import EvaluationSettings
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import build_vae

FOLDER = Path(__file__).parents[2] / "experiments" / "pretrained"
EVERY = sorted(path.parent for path in FOLDER.glob("*/config.json"))
RUNS = [folder for folder in EVERY if Run.open(folder).config.kind == "vae"]
PIXEL = [folder for folder in EVERY if Run.open(folder).config.kind == "pixel"]
IMAGE = [folder for folder in EVERY if Run.open(folder).config.kind == "image"]
RESULTS = FOLDER.parent / "results"


def public_files() -> Path:
    """The folder of the public data sets, which can't be committed; skips the test where there is none."""
    if not (root := os.environ.get("VI_FLOWS_DATA")):
        pytest.skip("VI_FLOWS_DATA does not name a folder with the public files")
    return Path(root)


def test_there_are_some_and_they_are_small() -> None:
    assert RUNS
    assert PIXEL
    assert IMAGE
    assert {*RUNS, *PIXEL, *IMAGE} == {*EVERY}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors*")) <= 20e6


SHA256 = {
    "binarized_mnist-diagonal_bilstm": "54a4c7da4c44eb1a",
    "binarized_mnist-g1-amortized-k8-tanh-dreg5-iwae50": "ef7b61dea14c9e51",
    "binarized_mnist-g2-amortized-k8-tanh-iwae5": "7e570791bf6e1fc3",
    "digits-gated-labels": "72be2846b5991010",
    "mnist-flow_pp-spline-pixel_spline": "4b4232670e3e1cb3",
    "mnist-large-flow_pp-spline-pixel_spline": "a85fc7bb5f98de3e",
    "omniglot28-g1-amortized-k8-tanh": "b3bed8b363b3b48f",
    "omniglot28-g2-amortized-k8-tanh-iwae50": "8ad10362fcf2503e",
}
"""Of the files that the trainings wrote, before they were packed; the first sixteen digits."""


def test_the_weights_are_those_that_the_trainings_wrote() -> None:
    assert {folder.name: Run.open(folder).weights.sha256()[:16] for folder in EVERY} == SHA256


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_the_weights_fit_and_give_a_likelihood(folder: Path) -> None:
    run = Run.open(folder)
    vae = build_vae(run.config.vae, 784)
    run.weights.load_into(vae, "auto", run.check_settings)
    torch.manual_seed(0)
    blank = torch.zeros(4, 784)

    def nll(x: torch.Tensor) -> torch.Tensor:
        return estimate_nll(lambda rows, n: vae.log_weight_terms(rows, n).log_weights(), x, 64, progress=False).nll

    # A trained model of digits finds its own samples some hundred nats more likely than noise of as much ink.
    samples = torch.bernoulli(vae.sample(4))
    noise = torch.bernoulli(samples.mean().expand(4, 784))
    assert nll(samples).mean() + 100 < nll(noise).mean()
    assert nll(blank).mean() < 100


@pytest.mark.parametrize("folder", PIXEL, ids=lambda folder: folder.name)
def test_the_record_of_a_pixel_model_comes_out_again(folder: Path, tmp_path: Path) -> None:
    embedded = Run.open(folder).config.dataset == "digits"
    root = None if embedded else public_files()
    shutil.copytree(folder, tmp_path / "run")
    run = Run.open(tmp_path / "run", root)
    records = [Record.read(path) for path in (RESULTS / "pixel").glob("*.json")]
    named = run.key.rpartition("-")[0]  # without the digest of all settings: what trained it was another device
    (expected,) = [record for record in records if record.key.rpartition("-")[0] == named]
    count = 300 if embedded else 100  # all of the digits; a hundredth of MNIST, some seconds
    found, _ = evaluate_run(run, EvaluationSettings(limit=count), progress=False)
    assert found.provenance["data_sha256"] == expected.provenance["data_sha256"]
    assert {"nll"} <= expected.scores.keys() == found.scores.keys() - {"image"}
    for name in expected.scores:
        assert found.scores[name] == pytest.approx(expected.scores[name][found.images(name)], abs=1e-3)
        assert expected.scores[name].mean() == pytest.approx(expected.figures[name], abs=1e-4)
    if "class_accuracy" in expected.figures:
        assert found.figures["class_accuracy"] == pytest.approx(expected.figures["class_accuracy"], abs=0.004)


def trained_density(folder: Path) -> ImageDensity:
    run = Run.open(folder)
    density = build_image_density(run.config.image, (1, 28, 28))
    run.weights.load_into(density, "auto", run.check_settings)
    return density


@pytest.mark.parametrize("folder", IMAGE, ids=lambda folder: folder.name)
def test_the_weights_of_an_image_flow_know_digits(folder: Path) -> None:
    density = trained_density(folder)
    torch.manual_seed(0)
    samples, shuffled = density.sample(8), torch.rand(8, 28 * 28).argsort(-1)
    noise = samples.flatten(1).gather(1, shuffled).reshape(samples.shape)
    bits, scrambled = (density.bits_per_dim(images, 2).mean().item() for images in (samples, noise))
    # Its samples are about as likely as digits (1.06 bits/dim); the same grey values elsewhere are not.
    assert 0.8 < bits < 1.6
    assert scrambled > bits + 1


@pytest.mark.parametrize("folder", IMAGE, ids=lambda folder: folder.name)
def test_the_scores_of_an_image_flow_come_out_again(folder: Path) -> None:
    root = public_files()
    records = (RESULTS / "image_benchmark").glob("*/*-s0.json")  # mnist/glow-s0, mnist-large/glow-s0
    (path,) = [path for path in records if f"{path.parent.name}-{path.stem}" == f"{folder.name}-s0"]
    record = Record.read(path)
    data, density = Run.open(folder, root).data, trained_density(folder)
    assert data.sha256 == record.provenance["data_sha256"]
    torch.manual_seed(0)  # as the benchmark scores the first images of the test set
    with torch.no_grad():
        scores = density.bits_per_dim(data.images("test")[:250], record.figures["num_draws"])
    assert scores.numpy() == pytest.approx(record.scores["bits_per_dim"][:250], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_the_record_of_a_hundred_images_comes_out_again(folder: Path, tmp_path: Path) -> None:
    root = public_files()
    (path,) = folder.glob("results/*-spread100.json")
    expected = Record.read(path)
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("results"))
    found, _ = evaluate_run(Run.open(tmp_path / "run", root), VAEEvaluationSettings(limit=100), progress=False)
    assert found.provenance["data_sha256"] == expected.provenance["data_sha256"]
    assert found.figures["nll"] == pytest.approx(expected.figures["nll"], abs=1e-3)
    assert found.figures["elbo"] == pytest.approx(expected.figures["elbo"], abs=1e-3)
    # Image by image: the draws are those of the seed, and another processor's products round the weights alone.
    for name in ("nll", "elbo"):
        assert found.scores[name] == pytest.approx(expected.scores[name], abs=0.01)
