"""Wrong input of every kind: settings by Python and by the command line are refused in one sentence."""

from __future__ import annotations

import math

import pytest

from vi_flows.distributions.image_config import ImageFlowConfig
from vi_flows.training import Run, TrainConfig
from vi_flows.training.config import config_from_dict, config_to_dict
from vi_flows.vae import VAEConfig

SETTINGS = [
    *[(TrainConfig, {name: value}) for name in ("lr_warmup_steps", "seed") for value in (-1, 0.5, math.nan, "1", True)],
    *[
        (TrainConfig, {name: value})
        for name in ("kl_warmup_epochs", "checkpoint_seconds", "clip_norm", "learning_rate")
        for value in (-1, -0.5, math.nan, math.inf, "1", False)
    ],
    *[
        (TrainConfig, {name: value})
        for name in ("num_particles", "epochs", "batch_size", "validate_every", "valid_particles", "threads")
        for value in (0, -1, 2.0, math.nan, "3")
    ],
    *[(TrainConfig, {"ema_decay": value}) for value in (0, 1, 1.5, math.nan)],
    *[(TrainConfig, {name: "foo"}) for name in ("model", "protocol", "objective", "schedule", "vae", "data_root")],
    *[(VAEConfig, {name: "foo"}) for name in ("flow", "architecture", "activation", "flow_activation", "batch_norm")],
    *[(VAEConfig, {"latent_dims": value}) for value in (5, (0,), (-3,), (2.5,), "4", (math.nan,))],
    *[(VAEConfig, {"hidden_dims": value}) for value in (5, ((0,),), ((-1, 3),), (4,))],
    *[(VAEConfig, {name: 0}) for name in ("num_blocks", "kernel_size", "flow_rank")],
    *[(VAEConfig, {"dilations": value}) for value in ((1, 2.5), (0,), 3)],
    (VAEConfig, {"num_extra_layers": -1}),
    *[(ImageFlowConfig, {name: -1}) for name in ("num_levels", "num_steps", "num_couplings", "num_final", "width")],
    (ImageFlowConfig, {"num_couplings": 0}),
    (ImageFlowConfig, {"flow": "foo"}),
    (ImageFlowConfig, {"alpha": math.nan}),
]


@pytest.mark.parametrize(("kind", "values"), SETTINGS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_settings_are_refused_by_name(kind, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**values)


FOREIGN = {
    "image": TrainConfig(image=ImageFlowConfig(width=8)),
    "objective": TrainConfig(model="image_flow", objective="iwae"),
    "num_particles": TrainConfig(model="image_flow", num_particles=5),
    "vae": TrainConfig(model="image_flow", vae=VAEConfig(flow="amortized")),
    "num_blocks": TrainConfig(vae=VAEConfig(num_blocks=2)),
    "flow_activation": TrainConfig(vae=VAEConfig(flow_activation="elu")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_of_another_model_start_no_run(name, tmp_path):
    with pytest.raises(ValueError, match=name):
        Run.create(tmp_path / "run", FOREIGN[name])
    assert not (tmp_path / "run").exists()
    # A run recorded with them in the past still opens.
    assert config_from_dict(TrainConfig, config_to_dict(FOREIGN[name])) == FOREIGN[name]
