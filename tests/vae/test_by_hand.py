"""The VAEs' own figures and thresholds, by hand."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict

import pytest
import torch

from tests.image.small_flows import small_flow
from vi_flows.distributions.image import ImageDensity
from vi_flows.flows import IAF, MAF, ConvFlow
from vi_flows.objectives import DIRECT_OBJECTIVES
from vi_flows.vae import VAE, AmortizedGuide, GenerativeModel, VAEConfig, annealing, build_vae, evaluate_vae, evidence
from vi_flows.vae.annealing import AnnealingSpace
from vi_flows.vae.config import ARCHITECTURES
from vi_flows.vae.evidence import points_at_once
from vi_flows.vae.flow_likelihood import FlowLikelihoodVAE

TINY = VAEConfig(latent_dims=(2,), hidden_dims=((3,),))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def defaults(kind):
    return {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}


def test_the_defaults_are_those_of_the_paper():
    """G1: 50 latents below 200-200; G2: 50 and 100 below 100-100 and 200-200; tanh, no batch normalization."""
    assert ARCHITECTURES == {"g1": ((50,), ((200, 200),)), "g2": ((50, 100), ((100, 100), (200, 200)))}
    model = {"latent_dims": (50,), "hidden_dims": ((200, 200),), "activation": "tanh", "batch_norm": False}
    assert defaults(GenerativeModel) == model | {"prior_flow": None, "dropout": 0.0}
    assert defaults(AmortizedGuide) == model | {"flows": None, "num_extra_layers": 0}
    assert asdict(VAEConfig()) == {
        "architecture": "g1", "latent_dims": None, "hidden_dims": None, "activation": "tanh", "batch_norm": False,
        "num_extra_layers": 0, "flow": None, "amortized": True, "encoder_dims": None, "prior": None,
        "dropout": 0.0,
    }  # fmt: skip
    likelihood = defaults(FlowLikelihoodVAE)
    assert (likelihood["latent_dim"], likelihood["hidden_dims"], likelihood["activation"]) == (16, (200, 200), "tanh")
    assert defaults(VAE.log_weight_terms) == {"num_particles": 1}
    assert (evidence.CPU_MEMORY, evidence.GPU_MEMORY) == (2**26, 2**33)


def test_names_and_labels():
    full = VAEConfig("g2", (3, 4), ((8, 7), (16,)), "relu", True, 2, ConvFlow(4), False)
    assert full.name == "g2-z3x4-h8x7_16-relu-bn-plus2-conv_flow-global-k4"
    assert full.label == "VAE+ (2 layers) + ConvFlow (K = 4), global"
    beyond = VAEConfig("g2", encoder_dims=((9, 8), (7,)), flow=IAF(2), prior=MAF(3, (5,)))
    assert beyond.name == "g2-e9x8_7-iaf-amortized-k2-prior-maf-k3-hidden_dims5"
    assert beyond.label == "VAE + IAF (2), amortized, encoder 9-8 / 7, prior MAF (3)"
    assert VAEConfig(num_extra_layers=1).label == "VAE+ (1 layers)"
    assert (VAEConfig().name, VAEConfig().label) == ("g1", "VAE")
    assert VAEConfig(flow=IAF(2)).label == "VAE + IAF (2), amortized"
    with pytest.raises(ValueError, match="there is no flow"):
        VAEConfig(amortized=False)
    with pytest.raises(ValueError, match="at least one size"):
        VAEConfig(latent_dims=())


def test_the_memory_of_a_point():
    """9 pixels, a network 2 → 3 → 9: 5 · 9 + 3 · (3 + 9) + 12 · 2 = 105 numbers, 4 bytes each."""
    vae = build_vae(TINY, 9)
    assert vae.model.numbers_a_point == 105
    assert points_at_once(vae, torch.device("cpu")) == evidence.CPU_MEMORY // 420
    assert points_at_once(vae.double(), torch.device("cuda")) == evidence.GPU_MEMORY // 840
    g2 = build_vae(VAEConfig("g2", (2, 3), ((4,), (5,))), 9)
    # Networks 2 → 4, heads 4 → 3 (twice: mean and log-variance), 3 → 5 and 5 → 9.
    widths = 4 + 5 + 9 + sum(m.out_features for m in g2.model.heads.modules() if isinstance(m, torch.nn.Linear))
    assert g2.model.numbers_a_point == 5 * 9 + 3 * widths + 12 * 5


def test_importance_samples_come_in_small_parts_on_a_cpu(monkeypatch):
    seen = []
    vae = build_vae(TINY, 9).eval()
    inner = vae.log_weight_terms
    monkeypatch.setattr(
        vae, "log_weight_terms", lambda rows, draws: seen.append((len(rows), draws)) or inner(rows, draws)
    )
    found = evaluate_vae(vae, torch.zeros(25, 9), 150)
    assert seen == [(20, 100), (20, 50), (5, 100), (5, 50)]
    assert (found.importance.num_samples, found.importance.num_coarse) == (150, 100)


def test_the_output_bias_is_held_within_one_in_a_thousand():
    model = GenerativeModel(3, (2,), ((3,),))
    model.set_output_bias(torch.tensor([0.0, 0.5, 1.0]))
    logit = math.log(0.001 / 0.999)
    assert model.logits.bias.tolist() == pytest.approx([logit, 0.0, -logit], rel=1e-3)


def test_weights_of_terms_and_a_weighted_kl():
    terms = build_vae(TINY, 9).log_weight_terms(torch.ones(4, 9), 5)
    assert terms.log_likelihood.shape == (5, 4)
    both = terms.log_likelihood + 0.25 * (terms.log_prior - terms.log_posterior)
    torch.testing.assert_close(terms.log_weights(0.25), both)
    torch.testing.assert_close(terms.log_weights(), terms.log_likelihood + terms.log_prior - terms.log_posterior)


@pytest.mark.parametrize("name", DIRECT_OBJECTIVES)
@pytest.mark.parametrize("weight", [1.0, 0.3, torch.tensor([1.0]), torch.tensor([0.3])])
def test_the_bound_without_a_weight_is_reported_beside_the_weighted_one(name, weight):
    vae, x = build_vae(TINY, 9), torch.bernoulli(torch.full((6, 9), 0.5))
    torch.manual_seed(1)
    weighted, bound = DIRECT_OBJECTIVES[name].row_bounds(vae, x, 4, weight)
    torch.manual_seed(1)
    terms = vae.log_weight_terms(x, 4)

    def reduced(log_w):
        return log_w.mean(0) if name in ("elbo", "stl") else torch.logsumexp(log_w, 0) - math.log(4)

    torch.testing.assert_close(bound, reduced(terms.log_weights()).detach())
    torch.testing.assert_close(weighted, reduced(terms.log_weights(float(weight))))
    assert not bound.requires_grad
    assert weighted.requires_grad


def test_samples_and_reconstructions():
    vae, x = build_vae(TINY, 9), torch.ones(4, 9)
    assert vae.sample(7).shape == (7, 9)
    assert vae.reconstruct(x).shape == (4, 9)
    assert ((vae.sample(7) > 0) & (vae.sample(7) < 1)).all()
    assert vae.model(size=3).shape == (3, 9)
    assert vae.model().shape == (1, 9)
    assert [tuple(z.shape) for z in vae.model.sample_latents(5)] == [(5, 2)]


def test_the_encoder_of_images_sees_grey_values_between_zero_and_one():
    density = ImageDensity(small_flow("inv_conv3x3"), (1, 8, 8), num_levels=17)
    rows = FlowLikelihoodVAE(density, 4, (5,))._rows(torch.full((2, 1, 8, 8), 16))
    assert torch.equal(rows, torch.ones(2, 64))


# Annealing ----------------------------------------------------------------------------------------------------------


class TwoPoints(AmortizedGuide):
    """Draws that alternate between (−1, 0) and (3, 0): mean (1, 0), variances 4 and 0."""

    def sample_and_log_prob(self, x, num_particles):
        z = torch.tensor([[-1.0, 0.0], [3.0, 0.0]]).repeat(num_particles // 2, 1)
        return [z[:, None].expand(-1, len(x), -1)], torch.zeros(num_particles, len(x))


@pytest.mark.parametrize("at_once", [2000, 300, 100])
def test_the_space_has_the_mean_and_the_covariance_of_the_draws(at_once):
    """The diagonal is raised by 1e-6 of the mean variance, 2e-6: what does not vary has a factor of √2e-6."""
    vae = build_vae(TINY, 9)
    vae.guide = TwoPoints(9, (2,), ((3,),))
    space = AnnealingSpace(vae, torch.zeros(3, 9), "gaussian", at_once)
    torch.testing.assert_close(space.mean, torch.tensor([1.0, 0.0]).expand(3, 2))
    expected = torch.tensor([[math.sqrt(4 + 2e-6), 0.0], [0.0, math.sqrt(2e-6)]])
    torch.testing.assert_close(space.factor, expected.expand(3, 2, 2), rtol=1e-3, atol=1e-6)
    u = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]).expand(2, 3, 2)
    z = space.to_latents(u)
    torch.testing.assert_close(z[0], torch.tensor([3.0, 0.0]).expand(3, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space.from_latents(z), u, rtol=1e-4, atol=1e-4)
    # N(z; μ, L Lᵀ) at u: −½ uᵀu − log 2π − log det L.
    log_det = 0.5 * math.log((4 + 2e-6) * 2e-6)
    torch.testing.assert_close(
        space.log_prob(u)[:, 0], torch.tensor([-0.5, -2.0]) - math.log(2 * math.pi) - log_det, rtol=1e-3, atol=1e-3
    )
    assert space.rsample(torch.Size([6])).shape == (6, 3, 2)


def test_moments_come_from_two_thousand_draws(monkeypatch):
    seen = []
    inner = TwoPoints.sample_and_log_prob
    monkeypatch.setattr(TwoPoints, "sample_and_log_prob", lambda self, x, n: seen.append(n) or inner(self, x, n))
    vae = build_vae(TINY, 9)
    vae.guide = TwoPoints(9, (2,), ((3,),))
    AnnealingSpace(vae, torch.zeros(1, 9), "prior", 600)
    assert seen == [600, 600, 600, 600, 200]
    seen.clear()
    AnnealingSpace(vae, torch.zeros(1, 9), "prior", 10**9)
    assert seen == [annealing.MOMENT_DRAWS, annealing.MOMENT_DRAWS]
