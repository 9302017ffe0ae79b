"""Configurations: through JSON and back, and what JSON can't be made into one is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest

from vi_flows.autoregressive import Categorical, LogisticMixture
from vi_flows.distributions.image_config import image_config
from vi_flows.flows import IAF, MAF, ConvFlow
from vi_flows.settings import Positive, check_at_least, check_settings
from vi_flows.training import ImageTrainConfig, Run, RunUnusableError, TrainConfig, VAETrainConfig
from vi_flows.training.config import config_from_dict, config_to_dict
from vi_flows.vae import VAEConfig, build_vae


@dataclass(frozen=True)
class Square:
    side: Positive = 1

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Circle:
    side: Positive = 1
    center: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class ToyConfig(TrainConfig):
    """A kind whose setting is one of several classes."""

    kind: ClassVar[str] = "toy"

    shape: Annotated[Square, "first"] | Circle | None = None
    other: Square = field(default_factory=Square)

    @property
    def name(self) -> str:
        return "toy"

    @property
    def model_settings(self) -> Square:
        return self.other


CONFIGS = {
    "vae": VAETrainConfig(data_root=Path("a/b"), clip_norm=3.0, vae=VAEConfig(hidden_dims=((3, 4),))),
    "prior": VAETrainConfig(vae=VAEConfig(prior=MAF(3, (7, 8)), encoder_dims=((30, 20),))),
    "flow": VAETrainConfig(vae=VAEConfig(flow=ConvFlow(2, dilations=(1, 2), rank=None), amortized=True)),
    "image": ImageTrainConfig(image=image_config("nice", hidden_dims=(3, 4), alpha=0.05)),
    "no class": ToyConfig(),
    "one class": ToyConfig(shape=Square(3)),
    "another class": ToyConfig(shape=Circle(3, ((1, 2), (3,)))),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_the_trip_through_json(name):
    config = CONFIGS[name]
    assert config_from_dict(type(config), json.loads(json.dumps(config_to_dict(config)))) == config


def test_numbers_of_numpy_are_pythons():
    """Sizes are often products and shapes of arrays; names, hashes and records are those of plain numbers."""
    config = VAETrainConfig(
        epochs=np.int32(7), learning_rate=np.float32(0.5), clip_norm=np.float64(3.0), num_particles=np.int64(2),
        vae=VAEConfig(latent_dims=(np.int64(5),), hidden_dims=((np.uint8(3), 4),), flow=IAF(num_layers=np.int64(2))),
    )  # fmt: skip
    vae = VAEConfig(latent_dims=(5,), hidden_dims=((3, 4),), flow=IAF(num_layers=2))
    plain = VAETrainConfig(epochs=7, learning_rate=0.5, clip_norm=3.0, num_particles=2, vae=vae)
    assert repr(config) == repr(plain)
    assert json.dumps(config_to_dict(config)) == json.dumps(config_to_dict(plain))
    for wrong in (np.float64(2.0), np.bool_(True), np.array([2]), np.str_("2")):
        with pytest.raises(ValueError, match="num_particles must be a whole number"):
            VAETrainConfig(num_particles=wrong)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        IAF(num_layers=np.int64(0))
    check_at_least(0, tolerance=np.float32(0.5), learning_rate=np.int64(1))


def test_sizes_of_numpy_build_models():
    size = np.prod((3, 2))
    vae = build_vae(VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), size)
    assert vae.sample(3).shape == (3, 6)
    assert type(vae.model.data_dim) is int
    assert Categorical(np.int64(4)).num_params == 4
    for make in (lambda: build_vae(VAEConfig(), 2.5), lambda: Categorical(2.0), lambda: LogisticMixture(256, 2.5)):
        with pytest.raises(ValueError, match="must be a whole number, got 2"):
            make()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": 3}, "unknown setting colour @ settings; correct it, or take the version of vi_flows that wrote it"),
        ({"other": {"side": 2, "colour": 3, "hue": 1}}, "unknown setting colour, hue @ settings.other"),
        ({"other": {"side": "3"}}, "side must be a whole number, got '3'"),
        ({"other": 3}, "settings.other"),
        ({"shape": {"type": "Triangle"}}, "Square, Circle, got .*Triangle.* @ settings.shape"),
        ({"shape": {"side": 3}}, "settings.shape"),
        ({"shape": {"type": "Square", "side": 0}}, "side must be at least 1"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"epochs": "4"}, "epochs must be a whole number, got '4'"),
        ({"protocol": "x"}, "protocol"),
        ({"data_root": 5}, "data_root"),
        ({"ema_decay": "0.1"}, "ema_decay must be a number"),
        ([], "settings"),
        (None, "settings"),
    ],
)
def test_what_is_no_configuration_is_refused_by_name(values, words):
    with pytest.raises(ValueError, match=words):
        config_from_dict(ToyConfig, values)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"kind": "vae"}',
        '{"kind": "toy", "settings": {}}',
        '{"kind": "vae", "settings": {"image": {}}}',
    ],
)
def test_a_run_whose_configuration_is_damaged_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunUnusableError, match=r"config\.json can't be read"):
        Run.open(tmp_path)
