"""What the tasks say of a trained model of images, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vi_flows.autoregressive.config import pixel_config
from vi_flows.data import load
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, VAETrainConfig
from vi_flows.training.tasks.base import BinaryDrawingSettings, EvaluationSettings
from vi_flows.training.tasks.image import ImageDrawingSettings, ImageEvaluationSettings, ImageFlowTask
from vi_flows.training.tasks.pixel import PixelTask
from vi_flows.training.tasks.vae import VAETask
from vi_flows.training.tasks.wave import WaveTask
from vi_flows.vae import VAEConfig


def test_lines_of_the_vae_report():
    task = VAETask(VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),))), load("digits"))
    record = {
        "nll": 87.1234, "interval": [86.5, 87.75], "num_samples": 500, "elbo": 90.5, "mean_ess": 12.6,
        "median_k_hat": 0.456, "share_k_hat_above_0.7": 0.1234,
    }  # fmt: skip
    assert task.report(record) == [
        "NLL  87.123 nats, 95 % interval [86.500, 87.750], 500 samples",
        "ELBO 90.500 nats; mean ESS 13",
        "Pareto k-hat: median 0.46, 12.3 % of the images above 0.7",
    ]
    few = task.report(record | {"share_k_hat_above_0.7": math.nan, "num_samples": 10})
    assert few[2] == "Pareto k-hat: 10 samples are too few to estimate it"
    ais = {
        "nll": 86.0, "num_rows": 50, "nll_importance": 86.5, "gap": 0.5, "chains": 8, "temperatures": 800,
        "start": "prior", "mean_effective_chains": 6.25, "mean_acceptance": 0.655,
        "bdmc": {"num_rows": 20, "nll_lower": 80.0, "nll_upper": 80.25},
    }  # fmt: skip
    assert task.report(record | {"ais": ais})[3:] == [
        "AIS  86.000 nats on 50 images spread over all, where 86.500 by importance sampling: 0.500 lower",
        "AIS: 8 chains of 800 temperatures from the prior, 6.2 effective, acceptance 0.66",
        "BDMC on 20 images of the model's own: NLL between 80.000 and 80.250",
    ]
    crossed = ais | {"bdmc": {"num_rows": 1, "nll_lower": 80.25, "nll_upper": 80.0}}
    assert task.report(record | {"ais": crossed})[-1] == (
        "BDMC on 1 images of the model's own: NLL between 80.250 and 80.000: bounds in the mean, which cross by 0.250; "
        "take more images or temperatures"
    )


def test_pictures_of_a_vae():
    data = load("digits")
    task = VAETask(VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),))), data)
    task.initialize()
    task.module.eval()
    grids = task.pictures(BinaryDrawingSettings(rows=2, columns=3))
    assert {name: tuple(images.shape) for name, images in grids.items()} == {
        "samples": (6, 1, 8, 8), "data": (6, 1, 8, 8), "reconstructions": (6, 1, 8, 8),
    }  # fmt: skip
    assert torch.equal(grids["reconstructions"][::2].flatten(1), data.binarized(task.test_rows)[[50, 150, 250]])
    assert ((grids["reconstructions"][1::2] > 0) & (grids["reconstructions"][1::2] < 1)).all()
    shown = {name: (images * (1 - images) > 0).any().item() for name, images in grids.items()}
    assert shown["samples"]  # means, not pixels
    drawn = task.pictures(BinaryDrawingSettings(1, 1, binary=True))
    assert drawn["reconstructions"].shape == (2, 1, 8, 8)  # one pair at least
    assert all((drawn[name] * (1 - drawn[name]) == 0).all() for name in ("samples", "data"))


class Flat(nn.Module):
    """An image density: half of the images come back, samples are their temperature."""

    num_dims = 64

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))

    def condition(self, context):
        assert context.shape[1] == 0
        return self

    def forward(self, images):
        return images.float().flatten(1).mean(1) / 255

    def bits_per_dim(self, images, num_draws):
        return torch.full((len(images),), float(num_draws)) + torch.arange(len(images)) % 2

    def encode(self, images):
        return images

    def decode(self, latents):
        return torch.where(torch.arange(len(latents))[:, None, None, None] % 2 == 0, latents, latents + 1)

    def sample(self, count, temperature):
        return torch.full((count, 1, 8, 8), 16 * temperature)

    def interpolate(self, first, second, columns):
        first, second = first.float(), second.float()
        return torch.stack([first + (second - first) * i / (columns - 1) for i in range(columns)])


def test_figures_and_pictures_of_an_image_flow():
    data = load("digits")
    task = ImageFlowTask(ImageTrainConfig(valid_images=7, batch_size=3), data)
    task.module = Flat()
    found = task.evaluate(data.test, ImageEvaluationSettings(limit=4, num_samples=3), False)
    assert (found.figures["bits_per_dim"], found.figures["num_draws"], found.figures["num_rows"]) == (3.25, 3, 4)
    assert found.scores["bits_per_dim"].tolist() == [3.0, 4.0, 3.0, 3.0]  # batches of three
    assert (found.figures["round_trip_exact"], found.figures["parameters"]) == (0.5, 3)
    assert task.report(found.figures | {"interval": [1.0, 2.0]}) == [
        "3.2500 bits/dim, 95 % interval [1.0000, 2.0000]",
        f"{3.25 * 64 * math.log(2):.2f} nats; 3 draws of the noise an image",
        "50 % of 4 images come back from their latents unchanged",
    ]
    valid = data.images(task.splits.valid[:7])
    assert task.validate() == pytest.approx((valid.double().flatten(1).mean(1) / 255).mean().item())
    assert task.weigh(data.test[:5]) == 5
    grids = task.pictures(ImageDrawingSettings(2, 3, temperature=0.5))
    assert (grids["samples"] == 8 / (data.levels - 1)).all()
    assert grids["data"].shape == (6, 1, 8, 8)
    assert grids["data"].max() <= 1
    test = data.images(task.splits.test)[[37, 112, 187, 262]].float() / (data.levels - 1)
    lines = grids["interpolations"].reshape(2, 3, 1, 8, 8)
    torch.testing.assert_close(lines[:, 0], test[:2])
    torch.testing.assert_close(lines[:, 2], test[2:])
    torch.testing.assert_close(lines[:, 1], (test[:2] + test[2:]) / 2)
    assert "interpolations" not in task.pictures(ImageDrawingSettings(2, 1))


def test_an_image_flow_is_initialized_from_256_training_images():
    data = load("digits")
    task = ImageFlowTask(ImageTrainConfig(), data)
    seen = []
    task.module = Flat()
    task.module.initialize = seen.append
    torch.manual_seed(4)
    task.initialize()
    torch.manual_seed(4)
    chosen = torch.randperm(len(task.train_rows))[:256]
    assert torch.equal(seen[0], data.images(task.train_rows[chosen]))
    assert seen[0].shape == (256, 1, 8, 8)


def test_figures_of_a_pixel_model():
    """Scores of 1 and 2 nats: mean 1.5, s = √½, 1.96 s/√2 = 0.98; 1.5 / (64 ln 2) bits a pixel."""
    data = load("digits")
    task = PixelTask(PixelTrainConfig(), data)
    task.log_probs = lambda rows: -1.0 - torch.arange(len(rows)).float()
    found = task.evaluate(data.test, EvaluationSettings(limit=2), False)
    assert found.figures["nll"] == 1.5
    assert found.figures["interval"] == pytest.approx([0.52, 2.48])
    assert found.figures["bits_per_dim"] == pytest.approx(1.5 / (64 * math.log(2)))
    assert found.figures["exact"] is True
    assert found.scores["nll"].tolist() == [1.0, 2.0]
    assert task.report(found.figures)[0] == "NLL  1.500 nats (exact), 95 % interval [0.520, 2.480]"


def test_pictures_of_a_pixel_model_are_between_black_and_white():
    """Grey values 0 … 16 are divided by 16."""
    data = load("digits")
    task = PixelTask(PixelTrainConfig(pixel=pixel_config("pixel_cnn", "categorical", width=4, num_blocks=0)), data)
    task.module.generate = lambda context, progress: torch.full((len(context), 1, 8, 8), 16.0)
    task.module.extend = lambda starts, known, context, progress: starts
    grids = task.pictures(BinaryDrawingSettings(2, 3))
    assert (grids["samples"] == 1).all()
    assert grids["data"].max() == 1
    assert grids["completions"].max() == 1
    assert grids["completions"].shape == (6, 1, 8, 8)
    grey = task.pictures(BinaryDrawingSettings(2, 3, binary=True))["data"]  # a grey model has no binary pixels
    assert ((grey > 0) & (grey < 1)).any()


def test_pictures_of_a_binary_pixel_model():
    data = load("digits")
    task = PixelTask(PixelTrainConfig(pixel=pixel_config("pixel_cnn", "bernoulli", width=4, num_blocks=0)), data)
    task.module.generate = lambda context, progress: torch.ones(len(context), 1, 8, 8)
    task.module.extend = lambda starts, known, context, progress: starts
    for binary in (False, True):
        grids = task.pictures(BinaryDrawingSettings(2, 3, binary=binary))
        assert ((grids["data"] > 0) & (grids["data"] < 1)).any().item() != binary
        assert grids["samples"].eq(1).all()
        assert grids["completions"].unique().tolist() == [0.0, 1.0]


def test_which_dimension_of_a_training_tensor_counts_rows():
    assert (VAETask.row_dim, ImageFlowTask.row_dim, PixelTask.row_dim, WaveTask.row_dim) == (-2, 0, 0, 0)
