"""The defaults of the recipe, names and labels, and what speaks for several runs, by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from vi_flows.flows import IAF
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, Run, VAETrainConfig, WaveTrainConfig
from vi_flows.training.config import check_device
from vi_flows.training.distributed import speaks_here
from vi_flows.training.kinds import KINDS
from vi_flows.training.stacked import StackedTrainer
from vi_flows.training.tasks.base import BinaryDrawingSettings, DrawingSettings, EvaluationSettings
from vi_flows.training.tasks.image import ImageDrawingSettings, ImageEvaluationSettings
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.training.tasks.wave import PAUSE_SECONDS, WaveConfig
from vi_flows.vae import VAEConfig

COMMON = {
    "data_root": None, "protocol": "clean", "epochs": 100, "learning_rate": 1e-3, "schedule": "cosine",
    "lr_warmup_steps": 0, "weight_decay": 0.0, "ema_decay": None, "clip_norm": None, "validate_every": 1,
    "checkpoint_seconds": 60.0, "start_from": None, "seed": 0, "device": "cpu", "threads": None,
}  # fmt: skip
OWN = {
    "vae": {
        "dataset": "digits", "batch_size": 100, "objective": "elbo", "num_particles": 1, "particles_schedule": (),
        "particles_epochs": (), "kl_warmup_epochs": 0.0, "output_bias": True, "valid_particles": 1, "redrawn": 0.0,
        "cuda_graph": False,
    },
    "image": {"dataset": "digits", "batch_size": 100, "valid_images": 1_000_000, "labels": False},
    "pixel": {
        "dataset": "digits", "batch_size": 100, "precision": "float32", "cuda_graph": False, "labels": False,
    },
    "wave": {"dataset": "fsdd-jackson", "batch_size": 4, "precision": "float32", "sample_seconds": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", OWN)
def test_the_defaults_of_the_recipe(kind):
    """The README's commands and the records rely on them."""
    config = KINDS[kind].config()
    found = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("vae", "image", "pixel", "wave")}
    assert found == COMMON | OWN[kind]
    assert (config.kind, config.stackable) == (kind, kind == "vae")


def test_the_defaults_of_evaluation_and_drawing():
    assert EvaluationSettings() == EvaluationSettings("test", None, 0)
    assert (VAEEvaluationSettings().num_samples, ImageEvaluationSettings().num_samples) == (5000, 8)
    assert (DrawingSettings().rows, DrawingSettings().columns) == (10, 10)
    assert BinaryDrawingSettings().binary is False
    assert ImageDrawingSettings().temperature == 1.0
    wave = WaveConfig()
    assert (wave.width, wave.skip_width, wave.num_layers, wave.num_stacks, wave.kernel_size) == (32, 64, 10, 1, 2)
    assert (wave.output, wave.digit, PAUSE_SECONDS) == ("categorical", True, 0.25)


def test_names_and_labels():
    many = WaveConfig(width=8, skip_width=16, num_layers=3, num_stacks=2, output="logistic_mixture", digit=False)
    assert WaveTrainConfig(wave=many).name == "wavenet-w8-s16-l3x2-logistic_mixture-nodigit"
    assert WaveTrainConfig().name == "wavenet-w32-s64-l10"
    flow = VAETrainConfig(vae=VAEConfig(flow=IAF(2)), objective="iwae", num_particles=50)
    assert flow.name == "g1-iaf-amortized-k2-iwae50"
    assert flow.label == "VAE + IAF (2), amortized, IW = 50"
    assert VAETrainConfig(num_particles=5).label == "VAE, draws = 5"
    assert VAETrainConfig(objective="dreg", particles_schedule=(1, 5)).label == "VAE, dreg, draws = 5"
    assert VAETrainConfig(objective="stl").name == "g1-stl1"
    assert PixelTrainConfig(epochs=7, seed=3).slug == "digits-gated_pixel_cnn-w64-l7-clean-e7-s3"
    assert ImageTrainConfig().name == ImageTrainConfig().label == "glow-l2-d8-w512-b1"


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'nonsense' can't be used here \(.+\); choose cpu$"):
        check_device("nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"; choose cpu or cuda$"):
        check_device("nonsense")
    check_device("cpu")


def test_one_process_speaks_for_a_machine(monkeypatch):
    for size, rank, speaks in ((None, None, True), ("1", "1", True), ("2", "0", True), ("2", "1", False)):
        for name, value in (("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        assert speaks_here() == speaks


def test_stacked_runs_share_their_data(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=1, threads=1)
    runs = [Run.create(tmp_path / f"s{seed}", replace(config, seed=seed)) for seed in range(3)]
    trainer = StackedTrainer(runs, progress=False)
    assert [member.run for member in trainer.members] == runs
    assert all(run.data is runs[0].data for run in runs)
    assert not runs[0].data.train.eq(0).all()
