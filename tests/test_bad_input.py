"""Wrong input of every kind: settings by Python and by the command line are refused in one sentence."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from vi_flows.cli import main
from vi_flows.distributions.image_config import ImageFlowConfig
from vi_flows.flows import FLOWS, IAF, ConvFlow, Spline, Sylvester
from vi_flows.flows.image import MCONV
from vi_flows.flows.image_steps import Glow
from vi_flows.training import ImageTrainConfig, Run, VAETrainConfig
from vi_flows.vae import VAEConfig

SETTINGS = [
    *[
        (VAETrainConfig, {name: value})
        for name in ("lr_warmup_steps", "seed")
        for value in (-1, 0.5, math.nan, "1", True)
    ],
    *[
        (VAETrainConfig, {name: value})
        for name in ("kl_warmup_epochs", "checkpoint_seconds", "clip_norm", "learning_rate")
        for value in (-1, -0.5, math.nan, math.inf, "1", False)
    ],
    *[
        (VAETrainConfig, {name: value})
        for name in ("num_particles", "epochs", "batch_size", "validate_every", "valid_particles", "threads")
        for value in (0, -1, 2.0, math.nan, "3")
    ],
    *[(VAETrainConfig, {"ema_decay": value}) for value in (0, 1, 1.5, math.nan)],
    *[(VAETrainConfig, {name: "foo"}) for name in ("protocol", "objective", "schedule", "vae", "data_root")],
    *[(ImageTrainConfig, {name: "foo"}) for name in ("protocol", "schedule", "image", "epochs")],
    *[(VAEConfig, {name: "foo"}) for name in ("flow", "architecture", "activation", "amortized", "batch_norm")],
    *[(VAEConfig, {"latent_dims": value}) for value in (5, (0,), (-3,), (2.5,), "4", (math.nan,))],
    *[(VAEConfig, {"hidden_dims": value}) for value in (5, ((0,),), ((-1, 3),), (4,))],
    (VAEConfig, {"amortized": False}),
    *[(ConvFlow, {name: 0}) for name in ("num_blocks", "kernel_size", "rank")],
    *[(ConvFlow, {"dilations": value}) for value in ((1, 2.5), (0,), 3)],
    (ConvFlow, {"activation": "foo"}),
    *[(kind, {dataclasses.fields(kind)[0].name: value}) for kind in FLOWS.values() for value in (0, 1.5, "2")],
    (Sylvester, {"rank": 0}),
    (IAF, {"scale": "softplus"}),
    (Spline, {"bound": 0.0}),
    (VAEConfig, {"num_extra_layers": -1}),
    *[(Glow, {name: -1}) for name in ("num_levels", "num_steps", "width")],
    *[(MCONV, {name: -1}) for name in ("num_couplings", "num_final", "width")],
    (MCONV, {"num_couplings": 0}),
    (Glow, {"num_blocks": 2}),
    (Glow, {"coupling": "foo"}),
    (ImageFlowConfig, {"flow": "foo"}),
    (ImageFlowConfig, {"alpha": math.nan}),
]


@pytest.mark.parametrize(("kind", "values"), SETTINGS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_settings_are_refused_by_name(kind, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**values)


@pytest.mark.parametrize("values", [{"rank": 3}, {"amortize_weight": True}])
def test_settings_that_would_be_left_unused_are_refused(values):
    flow, name = ConvFlow(**values), next(iter(values))
    assert VAEConfig(flow=flow).flow == flow
    with pytest.raises(ValueError, match=f"{name} is for flows with a context"):
        VAEConfig(flow=flow, amortized=False)
    with pytest.raises(ValueError, match=f"{name} is for flows with a context"):
        flow.build(4)
    flow.build(4, 3)


COMMANDS = [
    ("evaluate started --limit 0", 2, "limit"),
    ("evaluate started --limit -5", 2, "limit"),
    ("evaluate started --num-samples 0", 2, "num-samples"),
    ("evaluate started --threads -1", 2, "threads"),
    ("sample started --temperature inf", 2, "temperature"),
    ("sample started --temperature nan", 2, "temperature"),
    ("evaluate nowhere", 1, "nowhere holds no run"),
    ("evaluate started", 1, "no usable best weights"),
    ("sample started", 1, "no usable best weights"),
    ("train vae --out file/run", 1, "Not a directory"),
    ("train vae --out run --device foo", 1, "RuntimeError"),
    ("train vae --out run --seed -1", 2, "seed"),
    ("train vae --out run --latent-dims 3 4", 2, "latent_dims"),
    ("train vae --out run --dataset minst", 2, "binarized_mnist"),
    ("train vae --out run --dataset mnist --data-root .", 1, "data download"),
    ("train vae --out started", 2, "--resume started"),
    # Settings of another kind are no settings of this one.
    ("train image --out run --objective iwae", 2, "Unrecognized.*--objective"),
    ("train image --out run --num-particles 50", 2, "Unrecognized.*--num-particles"),
    ("train image --out run --num-extra-layers 1", 2, "Unrecognized.*--num-extra-layers"),
    ("train image --out run nice --width 4", 2, "Unrecognized.*--width"),
    ("train image --out run glow --num-couplings 4", 2, "Unrecognized.*--num-couplings"),
    ("train image --out run glow-mnist9", 2, "glow-cifar10"),
    ("train vae --out run --num-levels 2", 2, "Unrecognized.*--num-levels"),
    ("train --out run", 2, "vae"),
    # … nor are those of another flow, or those of a flow where there is none.
    ("train vae --out run conv_flow --num-layers 4", 2, "Unrecognized.*--num-layers"),
    ("train vae --out run planar --num-blocks 4", 2, "Unrecognized.*--num-blocks"),
    ("train vae --out run --num-layers 4", 2, "Unrecognized.*--num-layers"),
    ("train vae --out run --no-amortized", 2, "amortized"),
    ("train vae --out run --no-amortized conv_flow --rank 3", 2, "rank"),
    ("train vae --out run plannar", 2, "planar"),
    # A run that goes on takes no settings, a default neither.
    ("train --resume started --batch-size 100", 2, "Unrecognized.*--batch-size"),
    ("train --resume started --batch-size 50", 2, "Unrecognized.*--batch-size"),
    ("train --batch-size 100 --resume=started", 2, "Unrecognized.*--batch-size"),
    ("train vae --out started --resume", 2, "Unrecognized.*vae|--resume"),
    ("train --resume nowhere", 1, "nowhere holds no run"),
]


@pytest.mark.parametrize(("line", "code", "word"), COMMANDS, ids=lambda value: str(value))
def test_command_lines_are_refused(line, code, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    Run.create(tmp_path / "started", VAETrainConfig(batch_size=50))
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    error = capsys.readouterr().err
    assert stopped.value.code == code
    assert re.search(word, error, re.DOTALL)
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_debug_shows_where_a_failure_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "nowhere", "--debug"])
    assert stopped.value.code == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--debug" in capsys.readouterr().out
