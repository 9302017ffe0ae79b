"""A guide refined for each image, on models whose evidence and best Gaussian are known in closed form."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vi_flows.evaluation import NLLResult
from vi_flows.flows import ConvFlow
from vi_flows.vae import (
    VAE,
    AISSettings,
    AmortizedGuide,
    LatentChain,
    RefinedGuide,
    RefinementSettings,
    VAEConfig,
    VAEEvidence,
    build_vae,
    evaluate_vae,
    refine,
)

SCALE = 0.5


class LinearGaussian(LatentChain):
    """``z ~ N(0, I)``, ``x|z ~ N(W z, σ² I)``."""

    def __init__(self, loadings: Tensor) -> None:
        super().__init__(loadings.shape[0], (loadings.shape[1],), ((),))
        self.register_parameter("loadings", torch.nn.Parameter(loadings))

    def likelihood(self, z: Tensor, validate_args: bool | None = None) -> dist.TorchDistribution:
        """``p(x|z)``."""
        return dist.Normal(z @ self.loadings.mT, SCALE, validate_args=validate_args).to_event(1)

    def set_output_bias(self, mean: Tensor) -> None:
        """There is none."""

    def decode(self, z: Tensor) -> Tensor:
        """Means."""
        return self.likelihood(z).mean


def linear_gaussian(loadings: list[list[float]]) -> tuple[VAE, Tensor, Tensor]:
    """A model with an encoder that knows nothing, rows that it drew, and their exact evidence."""
    torch.manual_seed(3)
    model = LinearGaussian(torch.tensor(loadings, dtype=torch.float64))
    w = model.loadings.detach()
    vae = VAE(model, AmortizedGuide(len(w), (w.shape[1],), ((4,),))).double().eval().requires_grad_(False)
    evidence = MultivariateNormal(torch.zeros(len(w)).double(), w @ w.mT + SCALE**2 * torch.eye(len(w)).double())
    x = evidence.sample((30,))
    return vae, x, evidence.log_prob(x)


def test_where_the_posterior_is_in_the_family_the_bound_becomes_the_evidence() -> None:
    """Orthogonal loadings: the posterior's dimensions are independent."""
    vae, x, exact = linear_gaussian([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]])
    before = evaluate_vae(vae, x, 200)
    found = evaluate_vae(vae, x, 200, refinement=RefinementSettings(300, learning_rate=0.05))
    assert found.refined is not None
    assert torch.equal(found.importance.elbo, before.importance.elbo)
    assert (found.importance.elbo - exact).mean() < -1
    assert (found.refined.elbo - exact).abs().max() < 0.02
    assert (found.refined.nll + exact).abs().max() < 0.03
    assert found.refined.ess.min() > 180
    # The posterior by hand: precision I + WᵀW/σ² = diag(10, 3), mean (WᵀW/σ² + I)⁻¹ Wᵀx/σ².
    offsets = refine(vae, x, RefinementSettings(300, learning_rate=0.05), 10)
    posterior = RefinedGuide(vae.guide, offsets).posterior(0, x)
    w = vae.model.loadings
    assert (posterior.log_scale + 0.5 * torch.tensor([10.0, 3.0]).log()).abs().max() < 0.12
    mean = (x @ w / SCALE**2) / torch.tensor([10.0, 3.0], dtype=torch.float64)
    assert (posterior.loc - mean).abs().max() < 0.1


def test_where_it_is_not_the_bound_becomes_that_of_the_best_gaussian() -> None:
    """The best independent Gaussian has the posterior's mean and the variances 1/Λᵢᵢ of its precision Λ: its bound lies
    ½ (Σ log Λᵢᵢ − log det Λ) below the evidence."""
    vae, x, exact = linear_gaussian([[1.0, 0.8], [0.2, 0.6], [0.5, 0.0]])
    w = vae.model.loadings
    precision = torch.eye(2) + w.mT @ w / SCALE**2
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert gap > 0.25
    found = evaluate_vae(vae, x, 2000, refinement=RefinementSettings(300, learning_rate=0.05))
    assert found.refined is not None
    assert (found.refined.elbo - exact + gap).abs().max() < 0.06
    # … and importance sampling makes up for the rest.
    assert (found.refined.nll + exact).abs().max() < 0.3


def random_vae(config: VAEConfig) -> tuple[VAE, Tensor]:
    """Weights under which the encoder's guesses are bad."""
    torch.manual_seed(4)
    vae = build_vae(config, 9).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    vae.eval().requires_grad_(False)
    return vae, torch.bernoulli(vae.sample(12))


FLOW = ConvFlow(kernel_size=2, activation="tanh", rank=None)
CONFIGS = {
    "g1": (VAEConfig("g1", (2,), ((5,),), batch_norm=True), 4),
    "g1-flow": (VAEConfig("g1", (2,), ((5,),), flow=FLOW), 4 + 5),
    "g2": (VAEConfig("g2", (2, 3), ((5,), (6,))), 4 + 6),
    "g2-flow": (VAEConfig("g2", (2, 3), ((5,), (6,)), flow=FLOW), 4 + 5 + 6 + 6),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_offsets_of_zero_are_the_amortised_guide(name: str) -> None:
    config, size = CONFIGS[name]
    vae, x = random_vae(config)
    assert RefinedGuide.offsets_an_image(vae.guide) == size
    own = VAE(vae.model, RefinedGuide(vae.guide, torch.zeros(12, size, dtype=torch.float64)))
    torch.manual_seed(0)
    expected = vae.log_weight_terms(x, 5)
    torch.manual_seed(0)
    for mine, theirs in zip(own.log_weight_terms(x, 5), expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_offset_moves_its_own_image_alone(name: str) -> None:
    config, size = CONFIGS[name]
    vae, x = random_vae(config)
    offsets = (0.3 * torch.randn(12, size, dtype=torch.float64)).requires_grad_()
    torch.manual_seed(0)
    weights = VAE(vae.model, RefinedGuide(vae.guide, offsets)).log_weight_terms(x, 5).log_weights()
    (grad,) = torch.autograd.grad(weights[:, 3].sum(), offsets)
    assert (grad[3] != 0).all()
    assert (grad[[n for n in range(12) if n != 3]] == 0).all()
    # The density of a refined guide is that of its own draws.
    latents, log_q = RefinedGuide(vae.guide, offsets).sample_and_log_prob(x, 5)
    assert torch.allclose(RefinedGuide(vae.guide, offsets).log_prob(x, latents), log_q)


@pytest.mark.parametrize("name", CONFIGS)
def test_refinement_raises_the_bound_and_leaves_the_evidence(name: str) -> None:
    vae, x = random_vae(CONFIGS[name][0])
    found = evaluate_vae(vae, x, 2000, refinement=RefinementSettings(150, learning_rate=0.05))
    assert found.refined is not None
    gain = found.refined.elbo - found.importance.elbo
    assert gain.min() > -0.05
    assert gain.mean() > 0.15
    assert found.refined.ess.mean() > found.importance.ess.mean()
    if len(vae.guide.latent_names) == 1:  # of two, 2000 draws of the encoder's guesses find no evidence to compare with
        assert (found.refined.nll - found.importance.nll).abs().max() < 0.15
    summary = found.summary()["refined"]
    assert summary["elbo_gain"] == pytest.approx(gain.mean().item())
    assert summary["elbo_gain_interval"][0] < summary["elbo_gain"] < summary["elbo_gain_interval"][1]


def test_images_in_batches_keep_their_order_and_the_seed_decides() -> None:
    vae, x = random_vae(CONFIGS["g2"][0])
    settings = RefinementSettings(60, learning_rate=0.1)
    whole, parts = refine(vae, x, settings, 12), refine(vae, x, settings, 5)
    assert torch.equal(refine(vae, x, settings, 5), parts)
    assert not torch.equal(refine(vae, x, settings, 5, seed=1), parts)
    # Other draws, the same optimum, image by image; an image's offsets are of no use to another one.
    own, other, wrong = (VAE(vae.model, RefinedGuide(vae.guide, o)) for o in (whole, parts, parts.roll(1, 0)))
    bounds = [v.log_weight_terms(x, 1000).log_weights().mean(0) for v in (own, other, wrong)]
    assert (bounds[0] - bounds[1]).abs().max() < 0.4
    assert (bounds[0] - bounds[2]).mean() > 0.4


def test_the_summary_by_hand() -> None:
    """ELBOs −12 and −16 become −11 and −13, NLLs 10 and 14 become 9.5 and 13.5."""
    zeros = torch.zeros(2, dtype=torch.float64)

    def result(nll: list[float], elbo: list[float]) -> NLLResult:
        columns = (torch.tensor(nll).double(), zeros, torch.tensor(elbo).double(), zeros, zeros)
        return NLLResult(*columns, 50, 10, 0)

    before, after = result([10, 14], [-12, -16]), result([9.5, 13.5], [-11, -13])
    evidence = VAEEvidence(before, refinement=RefinementSettings(30, 4, 0.1), refined=after)
    found = evidence.summary()
    assert (found["nll"], found["elbo"]) == (12, -14)
    refined = found["refined"]
    assert (refined["nll"], refined["elbo"], refined["elbo_gain"], refined["nll_gain"]) == (11.5, -12, 2, 0.5)
    assert (refined["steps"], refined["particles"], refined["learning_rate"]) == (30, 4, 0.1)
    assert refined["elbo_gain_interval"] == (1, 3)
    assert evidence.scores()["refined_nll"].tolist() == [9.5, 13.5]
    assert "refined" not in VAEEvidence(before).summary()


def test_what_diverged_is_named_and_annealing_stays_what_it_was() -> None:
    vae, x = random_vae(CONFIGS["g1"][0])
    ais = AISSettings(chains=2, temperatures=5, leapfrog=1, model_images=0)
    plain, refined = (evaluate_vae(vae, x, 10, ais=ais, refinement=r) for r in (None, RefinementSettings(2)))
    assert torch.equal(plain.annealed.log_evidence, refined.annealed.log_evidence)
    vae, x, _ = linear_gaussian([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]])  # whose rows may be any numbers
    x[5] = math.nan
    with pytest.raises(FloatingPointError, match="the refined guide of row 5 is not finite"):
        refine(vae, x, RefinementSettings(2), 4)
