"""Wrong settings and arguments of every kind, from Python, are refused in one sentence."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import planar

from vi_flows.autoregressive import (
    MADE,
    Bernoulli,
    Categorical,
    GatedPixelCNN,
    LogisticMixture,
    PixelCNN,
    RowPixelRNN,
    mu_law_decode,
    mu_law_encode,
)
from vi_flows.data import DataNotFoundError, binarize, load
from vi_flows.diagnostics import diagnose
from vi_flows.distributions import BernoulliLogits, FlowNormal, bits_per_dim
from vi_flows.distributions.image_config import ImageFlowConfig
from vi_flows.evaluation import effective_sample_size, estimate_nll, paired_bootstrap, psis
from vi_flows.flows import FLOWS, IAF, ConvFlow, Spline, Sylvester, conv_flow, repeat_pyro
from vi_flows.flows.image import MCONV
from vi_flows.flows.image_steps import Glow
from vi_flows.guides import AutoConvFlow, AutoFlow, fit
from vi_flows.objectives import ELBO, IWAE, DReG, RenyiBound, StickingTheLanding
from vi_flows.plotting import save_image_grid
from vi_flows.records import Record
from vi_flows.training import ImageTrainConfig, Run, Trainer, VAETrainConfig
from vi_flows.transforms import Chain, FromPyro, Inverse
from vi_flows.vae import VAEConfig, build_vae

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


def model():
    pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))


def of_data(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def without_latents():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


PLANAR = FLOWS["planar"](2).build(3)
CONV_FLOW = ConvFlow(2).build(3)
MADE_4 = MADE((4,), Bernoulli(), (8,))
VAE_OF_4 = build_vae(VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), 4)


def weights(shape, value=0.0):
    return lambda rows, draws: torch.full(shape(draws, len(rows)), value)


def calls(word, *functions):
    return [(word, function) for function in functions]


CALLS = [
    *[
        (word, lambda flow=flow, value=value: flow.forward_and_ladj(value))
        for flow in (PLANAR, CONV_FLOW)
        for word, value in [
            ("acts on tensors, got list", [1.0, 2.0, 3.0]),
            ("acts on tensors, got ndarray", np.zeros(3)),
            ("acts on tensors, got NoneType", None),
            ("3 dimensions, got a tensor of .4", torch.zeros(4)),
            ("3 dimensions, got a tensor of .2, 4", torch.zeros(2, 4)),
            (r"3 dimensions, got a tensor of \(\)", torch.tensor(1.0)),
            ("floating-point tensors, got a torch.int64", torch.zeros(3, dtype=torch.int64)),
            ("floating-point tensors, got a torch.bool", torch.zeros(3, dtype=torch.bool)),
            ("floating-point tensors, got a torch.complex64", torch.zeros(3, dtype=torch.complex64)),
            ("floating-point tensors, got a sparse", torch.zeros(2, 3).to_sparse()),
        ]
    ],
    *[
        (rf"{size}|at least", lambda kind=kind, size=size: kind().build(size))
        for kind in FLOWS.values()
        for size in (0, -1)
    ],
    *[("context_dim", lambda kind=kind: kind().build(3, 0)) for kind in FLOWS.values()],
    *calls("5 entries a row, expected 4", lambda: ConvFlow(2).build(3, 4).condition(torch.zeros(5))),
    *calls("input_dim", lambda: conv_flow(0, 2)),
    *calls("init_scale", lambda: conv_flow(3, 2, init_scale=-1.0), lambda: conv_flow(3, 2, init_scale=math.nan)),
    *calls("at least 1", lambda: conv_flow(3, 0)),
    *calls("at least one layer", lambda: conv_flow(3, 2, dilations=())),
    *calls("unknown activation", lambda: conv_flow(3, 2, activation="foo")),
    *calls("wrap it in FromPyro", lambda: Chain([PLANAR, torch.nn.Linear(3, 3)]), lambda: Chain([1, 2])),
    *calls("bijection must be of type Bijection", lambda: Inverse(torch.nn.Linear(3, 3)), lambda: Inverse(3)),
    *calls("FromPyro wraps", lambda: FromPyro(3), lambda: FromPyro(None)),
    *calls("FlowNormal takes a Bijection", lambda: FlowNormal(torch.zeros(3), torch.ones(3), 5)),
    *calls("log_scale", lambda: FlowNormal(torch.zeros(3), torch.full((3,), math.nan), PLANAR)),
    *calls("3 dimensions", lambda: FlowNormal(torch.zeros(4), torch.ones(4), PLANAR).rsample()),
    *[
        ("num_particles must be a whole number", lambda kind=kind, value=value: kind(num_particles=value))
        for kind in (ELBO, IWAE, DReG, StickingTheLanding, RenyiBound)
        for value in (0, -1, 1.5, "2")
    ],
    *[("alpha must be finite", lambda value=value: RenyiBound(value)) for value in (1.0, math.nan, math.inf)],
    *[
        (next(iter(option)), lambda option=option: fit(model, AutoConvFlow(model), progress=False, **option))
        for option in [
            {"num_steps": 0},
            {"num_steps": -1},
            {"learning_rate": 0},
            {"learning_rate": -1},
            {"num_particles": 0},
            {"learning_rate": math.nan},
            {"learning_rate": math.inf},
            {"objective": "foo"},
            {"tolerance": -1},
            {"tolerance": math.nan},
        ]
    ],
    *calls(
        "the model has no latent sites, it observes all its sites",
        lambda: fit(without_latents, AutoConvFlow(without_latents), num_steps=1),
    ),
    *calls("flow_factory must be callable", lambda: AutoFlow(model, "foo"), lambda: AutoFlow(model, 3)),
    *calls("num_blocks must be at least 1", lambda: AutoConvFlow(model, 0), lambda: AutoConvFlow(model, -1)),
    *[
        ("at least 100", lambda count=count: diagnose(model, AutoConvFlow(model), num_samples=count))
        for count in (0, -5, 1)
    ],
    *calls("expected draws", lambda: psis(torch.zeros(0)), lambda: psis(torch.tensor(1.0))),
    *calls("expected draws", lambda: effective_sample_size(torch.zeros(0))),
    *[("NaN or .inf", lambda value=value: psis(torch.full((100,), value))) for value in (math.nan, math.inf)],
    *calls("zero: no draw", lambda: psis(torch.full((100,), -math.inf))),
    *calls("two vectors", lambda: paired_bootstrap(torch.zeros(3), torch.zeros(4))),
    *calls("two vectors", lambda: paired_bootstrap(torch.zeros(0), torch.zeros(0))),
    *calls("image 0 is not finite", lambda: paired_bootstrap(torch.zeros(3), torch.full((3,), math.nan))),
    *calls("resamples", lambda: paired_bootstrap(torch.zeros(3), torch.ones(3), resamples=0)),
    *calls("no rows", lambda: estimate_nll(weights(lambda p, b: (p, b)), torch.zeros(0, 4), 10)),
    *calls("at least 1", lambda: estimate_nll(weights(lambda p, b: (p, b)), torch.zeros(3, 4), 0)),
    *calls("draws, rows", lambda: estimate_nll(weights(lambda p, b: (p, b + 1)), torch.zeros(3, 4), 10)),
    *calls("draws, rows", lambda: estimate_nll(weights(lambda p, b: (b, p)), torch.zeros(3, 4), 10)),
    *calls("row 0 is NaN", lambda: estimate_nll(weights(lambda p, b: (p, b), math.nan), torch.zeros(3, 4), 10)),
    *[("Bernoulli means", lambda value=value: binarize(torch.tensor([value]))) for value in (2.0, math.nan, -0.1, 3)],
    *calls("no data set", lambda: load("foo"), lambda: load("")),
    *calls("no protocol", lambda: load("digits").split("foo")),
    *calls("event_shape", lambda: MADE((0,), Bernoulli()), lambda: PixelCNN((8, 8), Bernoulli())),
    *calls("hidden_dims", lambda: MADE((4,), Bernoulli(), (0,))),
    *calls("num_masks", lambda: MADE((4,), Bernoulli(), num_masks=0)),
    *calls("dropout", lambda: MADE((4,), Bernoulli(), dropout=1.0)),
    *calls("unknown activation", lambda: MADE((4,), Bernoulli(), activation="foo")),
    *[
        ("support", lambda value=value: MADE_4.distribution().log_prob(torch.full((2, 4), value)))
        for value in (0.5, 2.0, math.nan)
    ],
    *calls("x must have shape", lambda: MADE_4.distribution().log_prob(torch.zeros(2, 5))),
    *[("num_bins", lambda value=value: Categorical(value)) for value in (0, 1, -3, 2.5)],
    *calls("num_bins", lambda: LogisticMixture(1)),
    *calls("num_components", lambda: LogisticMixture(256, 0)),
    *[("width", lambda kind=kind: kind((1, 8, 8), Bernoulli(), width=0)) for kind in (PixelCNN, GatedPixelCNN)],
    *[
        ("positive multiple of twice the 2 channels, got 6", lambda kind=kind: kind((2, 4, 4), Bernoulli(), width=6))
        for kind in (PixelCNN, RowPixelRNN)
    ],
    *calls("must be odd", lambda: GatedPixelCNN((1, 8, 8), Bernoulli(), kernel_size=4)),
    *calls("num_layers", lambda: GatedPixelCNN((1, 8, 8), Bernoulli(), num_layers=-1)),
    *[("must lie in", lambda value=value: mu_law_encode(torch.tensor([value]))) for value in (2.0, math.nan)],
    *[("must lie in", lambda value=value: mu_law_decode(torch.tensor([value]))) for value in (300.0, -1.0, math.nan)],
    *calls("num_bins", lambda: mu_law_encode(torch.zeros(1), 1), lambda: mu_law_decode(torch.zeros(1), 0)),
    *calls("num_dims", lambda: bits_per_dim(torch.zeros(1), 0)),
    *calls("support", lambda: BernoulliLogits(torch.zeros(3)).log_prob(torch.full((3,), 255.0))),
    *calls("event_shape", lambda: BernoulliLogits(torch.zeros(3)).log_prob(torch.zeros(4))),
    *calls("logits", lambda: BernoulliLogits(torch.full((3,), math.nan))),
    *[("data_dim", lambda value=value: build_vae(VAEConfig(), value)) for value in (0, -5, 2.5, "64")],
    *calls("latent_dims", lambda: VAEConfig(latent_dims=())),
    *calls("hidden_dims", lambda: VAEConfig(hidden_dims=())),
    *calls("hidden_dims must be a list of lists of values", lambda: VAEConfig(hidden_dims=(4,))),
    *calls("holds no run", lambda: Run.open("nowhere")),
    # What is of another type altogether.
    *[("model must be a function", lambda value=value: fit(value, AutoConvFlow(model))) for value in (3, None, "a")],
    *calls("guide must be a function .*, got int", lambda: fit(model, 3), lambda: diagnose(model, 3)),
    *calls("guide must be .*, got the class AutoConvFlow", lambda: fit(model, AutoConvFlow)),
    *[
        ("observed site 'y' must be of type Tensor, got", lambda data=data: fit(of_data, AutoConvFlow(of_data), data))
        for data in (np.zeros(3), [1.0, 2.0, 3.0], (torch.zeros(3),))
    ],
    *calls("num_steps must be a whole number, got 10.5", lambda: fit(model, AutoConvFlow(model), num_steps=10.5)),
    *calls("num_steps must be a whole number, got '3'", lambda: fit(model, AutoConvFlow(model), num_steps="3")),
    *calls(
        "learning_rate must be of type int or float, got str",
        lambda: fit(model, AutoConvFlow(model), learning_rate="1"),
    ),
    *calls("num_blocks must be a whole number", lambda: AutoConvFlow(model, 1.5), lambda: AutoConvFlow(model, "2")),
    *calls("from the latent dimension, got a ConvFlowStack itself", lambda: AutoFlow(model, CONV_FLOW)),
    *calls("num_samples must be of type int", lambda: diagnose(model, AutoConvFlow(model), num_samples="100")),
    *[
        ("input_dim must be a whole number", lambda kind=kind, value=value: kind().build(value))
        for kind in FLOWS.values()
        for value in ("3", 3.5, None)
    ],
    *calls("context_dim must be a whole number", lambda: ConvFlow(2).build(3, 2.5)),
    *calls("a Chain is made of several Bijections", lambda: Chain(CONV_FLOW)),
    *calls("loc must be of type Tensor, got list", lambda: FlowNormal([0.0], [1.0], CONV_FLOW)),
    *calls(r"loc of shape \(3,\) and log_scale of shape \(2,\)", lambda: FlowNormal(torch.zeros(3), torch.zeros(2))),
    *calls("num_layers must be at least 1, got 0", lambda: repeat_pyro(lambda: planar(2), 0)),
    *calls("size must be at least 0, got -1", lambda: VAE_OF_4.sample(-1)),
    *[
        ("num_particles must be at least 1, got 0", lambda name=name: getattr(VAE_OF_4, name)(torch.zeros(2, 4), 0))
        for name in ("log_weight_terms", "path_log_weight_terms")
    ],
    *calls("config must be of type VAEConfig", lambda: build_vae(None, 64), lambda: build_vae({}, 64)),
    *calls("config must be of type TrainConfig, got dict", lambda: Run.create("nowhere", {})),
    *calls("run must be of type Run, got str; Run.open", lambda: Trainer("nowhere")),
    *calls("device 'foo' can't be used", lambda: Trainer(Run("nowhere", VAETrainConfig(device="foo")))),
    *[("name must be of type str or PathLike", lambda value=value: load(value)) for value in (3, None, ["digits"])],
    *calls("no file or folder nowhere; looked for .*--data-root", lambda: load(Path("nowhere"))),
    *calls("no record nowhere", lambda: Record.read("nowhere")),
    *calls("means must be of type Tensor, got list", lambda: binarize([0.5])),
    *calls("images must be of type Tensor", lambda: save_image_grid([1, 2], Path("x.png"))),
    *calls("columns must be at least 1", lambda: save_image_grid(torch.zeros(1, 1, 2, 2), Path("x.png"), 0)),
    *[("log_weights must be of type Tensor", lambda value=value: psis(value)) for value in ("a", [1.0], np.zeros(9))],
    *calls("log_weights must be of type Tensor", lambda: effective_sample_size([1.0])),
    *calls("first must be of type Tensor", lambda: paired_bootstrap([1.0], [2.0])),
    *[
        (
            "level must lie between 0 and 1",
            lambda value=value: paired_bootstrap(torch.zeros(3), torch.ones(3), level=value),
        )
        for value in (0, 1, 2, math.nan)
    ],
    *calls("data must be of type Tensor", lambda: estimate_nll(weights(lambda p, b: (p, b)), [[1.0]], 5)),
    *calls("log_weights gives must be of type Tensor", lambda: estimate_nll(lambda *_: [1.0], torch.zeros(2, 3), 5)),
    *calls("audio must be of type Tensor", lambda: mu_law_encode([0.1])),
    *calls("log_prob must be of type Tensor", lambda: bits_per_dim(1.0, 3)),
    *calls("num_dims must be a whole number", lambda: bits_per_dim(torch.zeros(1), 1.5)),
    *calls("event_shape must be of type Sequence, got int", lambda: MADE(4, Bernoulli())),
    *calls("event_shape.0. must be a whole number", lambda: MADE("4", Bernoulli()), lambda: MADE((4.0,), Bernoulli())),
    *calls("output must be of type Output, got the class Bernoulli", lambda: MADE((4,), Bernoulli)),
    *calls("output must be of type Output, got", lambda: MADE((4,), None), lambda: PixelCNN((1, 8, 8), "bernoulli")),
]


@pytest.mark.parametrize(("word", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_calls_are_refused(word, call):
    with pytest.raises((ValueError, TypeError, FloatingPointError, RuntimeError, DataNotFoundError)) as refused:
        call()
    assert re.search(word, str(refused.value)), str(refused.value)


def test_there_are_enough_calls():
    assert len(CALLS) >= 200
