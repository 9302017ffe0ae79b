"""Wrong input of every kind: settings by Python and by the command line are refused in one sentence."""

from __future__ import annotations

import math
import re

import pytest

from vi_flows.cli import main
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


COMMANDS = [
    ("evaluate nowhere --limit 0", 2, "limit"),
    ("evaluate nowhere --limit -5", 2, "limit"),
    ("evaluate nowhere --num-samples 0", 2, "num-samples"),
    ("evaluate nowhere --threads -1", 2, "threads"),
    ("sample nowhere --temperature inf", 2, "temperature"),
    ("sample nowhere --temperature nan", 2, "temperature"),
    ("evaluate nowhere", 2, "no run"),
    ("train --out file/run", 1, "NotADirectoryError"),
    ("train --out run --device foo", 1, "RuntimeError"),
    ("train --out run --seed -1", 2, "seed"),
    ("train --out started --resume --batch-size 100", 2, "batch_size|no settings"),
]


@pytest.mark.parametrize(("line", "code", "word"), COMMANDS, ids=lambda value: str(value))
def test_command_lines_are_refused(line, code, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    Run.create(tmp_path / "started", TrainConfig(batch_size=50))
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == code
    assert re.search(word, capsys.readouterr().err)
