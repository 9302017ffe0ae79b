"""What holds for every flow of the registry, with parameters of its own and with parameters from a context."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.transforms.case import randomise
from tests.transforms.cases import SMALL_FLOWS
from vi_flows import flows
from vi_flows.cli.main import _parse
from vi_flows.flows import (
    FLOWS,
    IAF,
    MAF,
    NICE,
    NSF,
    ConvFlow,
    Planar,
    Radial,
    RealNVP,
    Spline,
    Sylvester,
    flow_from_words,
    flow_in_words,
)
from vi_flows.training import VAETrainConfig
from vi_flows.training.config import config_from_dict, config_to_dict
from vi_flows.vae import VAEConfig, build_vae


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("context_dim", [None, 3])
def test_it_starts_at_the_identity_up_to_the_order_of_the_entries(name, context_dim):
    flow, x = FLOWS[name]().build(5, context_dim).double(), torch.randn(7, 5, dtype=torch.float64)
    y, ladj = flow.condition(torch.randn(7, 3, dtype=torch.float64)).forward_and_ladj(x)
    assert min((y - x).abs().max().item(), (y - x.flip(-1)).abs().max().item()) < 1e-12
    assert ladj.abs().max() < 1e-12


@pytest.mark.parametrize("name", SMALL_FLOWS)
def test_each_row_has_the_parameters_of_its_own_context(name):
    family = randomise(SMALL_FLOWS[name].build(4, 3).double(), 0.2)
    x, context = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    whole = family.condition(context)
    for run in (whole.forward_and_ladj, whole.inverse_and_ladj):
        y, ladj = run(x)
        assert ladj.shape == (2, 5)
        for row in range(5):
            single = family.condition(context[row])
            alone, its_ladj = getattr(single, run.__name__)(x[:, row])
            torch.testing.assert_close(y[:, row], alone, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(ladj[:, row], its_ladj, rtol=1e-9, atol=1e-9)
    other = family.condition(context.roll(1, 0)).forward_and_ladj(x)[0]
    assert (other - whole.forward_and_ladj(x)[0]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("name", [name for name in SMALL_FLOWS if name != "conv_flow"])
@pytest.mark.parametrize("context_dim", [None, 3])
def test_a_step_makes_no_tensor_on_the_host_and_reads_none(name, context_dim):
    """On the meta device both are errors, as in a CUDA graph. For ConvFlow see ``tests/training/test_captured.py``."""
    flow = SMALL_FLOWS[name].build(4, context_dim).to("meta")
    x = torch.empty(2, 5, 4, device="meta", requires_grad=True)
    y, ladj = flow.condition(torch.empty(5, 3, device="meta")).forward_and_ladj(x)
    (y.sum() + ladj.sum()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


@pytest.mark.parametrize("name", FLOWS)
def test_a_context_of_another_length_is_refused(name):
    family = FLOWS[name]().build(4, 3)
    with pytest.raises(ValueError, match="3"):
        family.condition(torch.zeros(5, 2)).forward_and_ladj(torch.zeros(5, 4))
    for sizes in ((0, None), (0, 3), (4, 0)):  # couplings need two entries
        with pytest.raises(ValueError, match=r"at least [12]"):
            FLOWS[name]().build(*sizes)


LABELS = {
    "ConvFlow (K = 8)": ConvFlow(8),
    "ConvFlow (K = 2, tanh)": ConvFlow(2, activation="tanh"),
    "planar (16)": Planar(16),
    "radial (3)": Radial(3),
    "Sylvester (4, M = 32, H = 8)": Sylvester(4, 32, 8),
    "IAF (2)": IAF(2),
    "MAF (3)": MAF(3),
    "RQ spline (2)": Spline(2),
    "NICE (4)": NICE(),
    "Real NVP (6)": RealNVP(6),
    "NSF (2)": NSF(2),
    "elementwise RQ spline (4 bins)": flows.ElementwiseSpline(4),
}
KEYS = {
    "k8": ConvFlow(8),
    "k2-tanh": ConvFlow(2, activation="tanh"),
    "k1-dilations1x4-rankNone": ConvFlow(dilations=(1, 4), rank=None),
    "k16": Planar(16),
    "k4-rank32-num_reflections8": Sylvester(4, 32, 8),
    "k2-hidden_dims64x64-exp": IAF(2, (64, 64), scale="exp"),
}


@pytest.mark.parametrize("label", LABELS)
def test_labels(label):
    assert LABELS[label].label() == label
    assert VAEConfig(flow=LABELS[label]).label == f"VAE + {label}, amortized"
    assert VAEConfig(flow=LABELS[label], amortized=False).label == f"VAE + {label}, global"


@pytest.mark.parametrize("key", KEYS)
def test_keys_tell_all_that_is_not_at_its_default(key):
    flow = KEYS[key]
    assert flow.key == key
    assert VAEConfig(flow=flow).name == f"g1-{flow.name}-amortized-{key}"


@pytest.mark.parametrize("name", FLOWS)
def test_it_is_on_the_command_line_and_survives_the_trip_through_json(name):
    length = dataclasses.fields(FLOWS[name])[0].name
    config = _parse(["train", "vae", "--out", "run", "--seed", "4", name, f"--{length.replace('_', '-')}", "3"])
    settings = config.command.config
    assert settings == VAETrainConfig(seed=4, vae=VAEConfig(flow=FLOWS[name](3)))
    assert config_from_dict(VAETrainConfig, json.loads(json.dumps(config_to_dict(settings)))) == settings


WORDS = {
    "real_nvp": RealNVP(),
    "real_nvp(6)": RealNVP(6),
    "maf(2, hidden_dims=(7,), scale='exp')": MAF(2, (7,), scale="exp"),
    " conv_flow( activation = 'tanh', dilations=(1, 2) ) ": ConvFlow(activation="tanh", dilations=(1, 2)),
    "none": None,
}


@pytest.mark.parametrize("words", WORDS)
def test_a_flow_as_a_single_word(words):
    """As the prior of a VAE on the command line, where the flow of the guide ends the line."""
    flow = WORDS[words]
    assert flow_from_words(words) == flow
    assert flow_from_words(flow_in_words(flow)) == flow
    config = _parse(["train", "vae", "--out", "run", "--prior", words, "planar"]).command.config
    assert config.vae == VAEConfig(prior=flow, flow=Planar())
    if flow is not None:
        assert VAEConfig(prior=flow).label == f"VAE, prior {flow.label()}"
        assert VAEConfig(prior=flow).name == f"g1-prior-{flow.name}-{flow.key}"


def test_flows_are_written_as_short_as_can_be():
    assert flow_in_words(MAF()) == "maf"
    assert flow_in_words(MAF(2, (7,))) == "maf(num_layers=2, hidden_dims=(7,))"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("glow", "a flow must be one of conv_flow, .* or none, got 'glow'"),
        ("maf(", r"written as NAME or NAME\(SETTING=VALUE, …\), got 'maf\('"),
        ("maf(open('x'))", "written as NAME or NAME"),
        ("maf(**{})", "written as NAME or NAME"),
        ("", "written as NAME or NAME"),
        ("maf(2, (7,))", "only the first setting of maf goes without its name"),
        ("maf(2, num_layers=3)", "num_layers of maf is given twice"),
        ("maf(num_layers=2, num_layers=3)", "num_layers of maf is given twice"),
        ("maf(scale='exp', scale='tanh')", "scale of maf is given twice"),
        ("maf(layers=3)", "maf has no layers; it takes num_layers, hidden_dims, activation, scale"),
        ("maf(0)", "num_layers must be at least 1, got 0"),
        ("none(3)", "or none, got 'none'"),
    ],
)
def test_words_that_are_no_flow_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        flow_from_words(words)


@pytest.mark.parametrize("name", SMALL_FLOWS)
@pytest.mark.parametrize("amortized", [False, True])
def test_a_vae_starts_like_the_plain_one_and_every_parameter_of_its_flow_learns(name, amortized):
    config = VAEConfig(latent_dims=(4,), hidden_dims=((6,),), flow=SMALL_FLOWS[name], amortized=amortized)
    vae, x = build_vae(config, 9), torch.bernoulli(torch.rand(5, 9))
    posterior = vae.guide.posterior(0, x)
    assert posterior.bijection is not None
    torch.manual_seed(1)
    flowed = posterior.rsample_and_log_prob((3,))[1]
    torch.manual_seed(1)
    plain = type(posterior)(posterior.loc, posterior.log_scale).rsample_and_log_prob((3,))[1]
    torch.testing.assert_close(flowed, plain, rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    before = {key: value.clone() for key, value in vae.guide.flows.state_dict().items()}
    trainable = [(key, value.requires_grad) for key, value in vae.named_parameters()]
    for _ in range(4):  # what is behind a zero weight moves one step later
        optimizer.zero_grad()
        (-vae.log_weight_terms(x, 2).log_weights()).mean().backward()
        optimizer.step()
    assert [(key, value.requires_grad) for key, value in vae.named_parameters()] == trainable
    still = [k for k, p in vae.guide.flows.named_parameters() if torch.equal(p, before[k])]
    assert still == []


def test_a_toy_flow_is_a_file_and_an_entry(tmp_path):
    """A flow that is registered trains a VAE by its name on the command line, and names the record."""
    script = """
        from dataclasses import dataclass
        from typing import ClassVar
        from vi_flows.flows import FLOWS, VectorFlow
        from vi_flows.settings import Positive
        from vi_flows.transforms import Affine, ConditionalChain, Revert

        @dataclass(frozen=True)
        class Toy(VectorFlow):
            "A toy."
            name: ClassVar[str] = "toy"
            num_flips: Positive = 1
            def make(self, input_dim): return Revert()
            def make_conditional(self, input_dim, context_dim): return ConditionalChain([Revert()] * self.num_flips)
            def label(self): return f"toy ({self.num_flips})"

        FLOWS["toy"] = Toy
        from vi_flows.cli import main
        import sys
        sizes = "--latent-dims 2 --hidden-dims 4 --epochs 1 --batch-size 500 --quiet".split()
        try:
            main(["train", "vae", "--out", sys.argv[1], *sizes, "toy", "--num-flips", "3"])
        except SystemExit as stopped:
            assert stopped.code == 0
        main(["evaluate", sys.argv[1], "--num-samples", "5", "--limit", "5", "--quiet"])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "run").glob("results/*.json")
    assert json.loads(record.read_text())["label"] == "VAE + toy (3), amortized"


@pytest.mark.gpu
@pytest.mark.parametrize("name", FLOWS)
def test_a_cuda_graph_replays_the_eager_gradients(name):
    flow = FLOWS[name]().build(8, 5).cuda()
    randomise(flow, 0.05)
    x, context = torch.randn(3, 16, 8, device="cuda"), torch.randn(16, 5, device="cuda")

    def gradients():
        flow.zero_grad(set_to_none=True)
        y, ladj = flow.condition(context).forward_and_ladj(x)
        (y.square().sum() - ladj.sum()).backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients()
    static = [parameter.grad for parameter in flow.parameters()]
    x.normal_()
    graph.replay()
    replayed = [gradient.clone() for gradient in static]
    gradients()
    for mine, parameter in zip(replayed, flow.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)
