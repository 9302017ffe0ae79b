"""The evidence of VAEs with two latent numbers, by quadrature, against importance sampling and both annealed bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from vi_flows.evaluation import NOT_KEPT, AISResult, NLLResult, spread_evenly
from vi_flows.flows import MAF, ConvFlow
from vi_flows.vae import (
    VAE,
    AISSettings,
    AnnealingSpace,
    VAEConfig,
    VAEEvidence,
    annealed_vae,
    build_vae,
    evaluate_vae,
    evidence,
    simulated_bounds,
)

PIXELS, IMAGES = 7, 60
CONFIGS = {
    "g1": VAEConfig("g1", (2,), ((8,),), batch_norm=True),
    "g1-flow": VAEConfig("g1", (2,), ((8,),), flow=ConvFlow(kernel_size=2, activation="tanh", rank=4)),
    "g1-prior": VAEConfig("g1", (2,), ((8,),), prior=MAF(2, (6,))),
    "g2": VAEConfig("g2", (1, 1), ((6,), (8,))),
}
QUICK = AISSettings(chains=8, temperatures=60, leapfrog=3, model_images=0)


def random_vae(name: str) -> VAE:
    """A model with strong dependences and a guide that knows nothing of it, in float64."""
    torch.manual_seed(5)
    vae = build_vae(CONFIGS[name], PIXELS).double()
    with torch.no_grad():
        for part, parameter in vae.model.named_parameters():
            scale = 0.35 if part.startswith("prior_flow") else 0.8
            parameter.copy_(scale * torch.randn_like(parameter))
        for buffer in (b for b in vae.buffers() if b.dtype == torch.float64):
            buffer.copy_(0.5 + torch.rand_like(buffer))
        for parameter in vae.guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vae.eval()


def images(vae: VAE, size: int = IMAGES) -> Tensor:
    torch.manual_seed(6)
    return torch.bernoulli(vae.sample(size))


@torch.no_grad()
def quadrature(vae: VAE, x: Tensor) -> Tensor:
    """``log ∫∫ p(x, z) dz`` by the trapezoid rule on [−8, 8]², which for such integrands is exact to many digits."""
    line = torch.linspace(-8, 8, 161, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    model = vae.model
    # By hand, not by the model's own sums: N(0, 1) of the top, and what the networks say below. Where a flow makes the
    # prior, the grid is one of its base: no density and no inverse is asked for.
    top = Normal(0.0, 1.0)
    if len(model.latent_dims) == 1:
        log_prior, lowest = top.log_prob(z).sum(-1), z
        if model.prior_flow is not None:
            lowest = model.prior_flow.forward_and_ladj(z)[0]
    else:
        loc, log_scale = model.heads[0](model.networks[0](z[:, :1]))
        # The lower latent in units of its own spread, so that the grid resolves it.
        lowest = loc + log_scale.exp() * z[:, 1:]
        log_prior = top.log_prob(z).sum(-1)
    pixels = Bernoulli(logits=model.logits(model.networks[-1](lowest)))
    log_p = torch.stack([pixels.log_prob(row).sum(-1) for row in x], -1) + log_prior.unsqueeze(-1)
    return torch.logsumexp(log_p, 0) + 2 * math.log(line[1] - line[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_importance_sampling_and_annealing_find_the_evidence(name: str) -> None:
    vae = random_vae(name)
    x = images(vae)
    exact = quadrature(vae, x)
    found = evaluate_vae(vae, x, 3000, ais=QUICK)
    assert found.annealed is not None
    assert (found.importance.nll + exact).abs().mean() < 0.2  # some 700 effective draws
    assert (found.annealed.log_evidence - exact).abs().mean() < 0.2
    for start in ("prior", "guide"):
        result = annealed_vae(vae, x, replace(QUICK, start=start))
        assert (result.log_evidence - exact).abs().mean() < 0.2
        # Weights of 480 chains with a standard error of 0.01 to 0.04 are unbiased, whatever the start.
        assert (result.log_weights - exact).exp().mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_bounds_bracket_the_evidence_of_the_models_own_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = random_vae(name)
    drawn: list[Tensor] = []
    space = evidence.AnnealingSpace

    def noted(vae: VAE, x: Tensor, *args: object) -> AnnealingSpace:
        drawn.append(x)
        return space(vae, x, *args)

    monkeypatch.setattr(evidence, "AnnealingSpace", noted)
    # So few temperatures that both bounds are loose.
    below, above = simulated_bounds(vae, 600, AISSettings(chains=2, temperatures=6, leapfrog=2, start="prior"))
    exact = quadrature(vae, torch.cat(drawn))
    low, high = below.log_evidence - exact, above.log_evidence - exact
    assert low.mean() < -2 * low.std() / math.sqrt(600) < 0
    assert high.mean() > 2 * high.std() / math.sqrt(600) > 0
    assert low.exp().mean().item() == pytest.approx(1, abs=0.1)
    assert (-high).exp().mean().item() == pytest.approx(1, abs=0.15)
    close = simulated_bounds(vae, 600, AISSettings(chains=2, temperatures=80, leapfrog=2, start="prior"))
    assert 0 < (close[1].log_evidence - close[0].log_evidence).mean() < 0.5 * (high - low).mean()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_joint_density_is_the_pyro_models(name: str) -> None:
    vae = random_vae(name)
    x = images(vae, 4)
    latents = vae.model.sample_latents(4)
    values = dict(zip(vae.model.latent_names, latents, strict=True))
    trace = poutine.trace(poutine.condition(vae.model, data=values)).get_trace(x)
    trace.compute_log_prob()
    expected = sum(trace.nodes[site]["log_prob"] for site in [*vae.model.latent_names, "x"])
    z = torch.cat(latents, -1).detach().expand(3, -1, -1).requires_grad_()
    value = vae.model.log_joint(x, z)
    assert torch.allclose(value, expected.expand(3, -1))
    # What the chains follow is another value of the same gradient.
    surrogate = vae.model.log_joint_surrogate(x, z)
    assert not torch.allclose(value, surrogate)
    weight = torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64)
    (mine,), (theirs,) = (torch.autograd.grad((weight * v).sum(), z) for v in (surrogate, value))
    assert torch.allclose(mine, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_forces_of_lower_precision_touch_no_target(name: str) -> None:
    vae = random_vae(name)
    x = images(vae)
    exact = quadrature(vae, x)
    vae, x = vae.float(), x.float()
    with torch.no_grad():
        spaces = [AnnealingSpace(vae, x, "gaussian", forces=forces) for forces in ("float32", "bf16")]
        spaces[1].mean, spaces[1].factor = spaces[0].mean, spaces[0].factor
        u = spaces[0].rsample(torch.Size([3])).requires_grad_()
    (own,) = torch.autograd.grad(spaces[0].log_joint(u).sum(), u)
    plain, low = (torch.autograd.grad(space.surrogate(u).sum(), u)[0] for space in spaces)
    assert (plain - own).norm() < 1e-5 * own.norm()
    assert 1e-5 * own.norm() < (low - own).norm() < 0.02 * own.norm()
    assert torch.equal(spaces[1].log_joint(u), spaces[0].log_joint(u))  # what steps are accepted by
    # Unbiased weights, as from exact forces; few temperatures, so that a wrong target would not be annealed away.
    result = annealed_vae(vae, x, replace(QUICK, start="prior", forces="bf16"))
    assert (result.log_evidence - exact).abs().mean() < 0.2
    assert (result.log_weights - exact).exp().mean().item() == pytest.approx(1, abs=0.1)
    found = VAEEvidence(evaluate_vae(vae, x, 10).importance, replace(QUICK, forces="bf16"), result).summary()
    assert found["ais"]["forces"] == "bf16"


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_coordinates_and_the_starts(name: str) -> None:
    vae = random_vae(name)
    x = images(vae, 5)
    torch.manual_seed(0)
    space = AnnealingSpace(vae, x, "gaussian", draws_at_once=300)
    u = space.rsample(torch.Size([3]))
    z = space.to_latents(u)
    assert torch.allclose(space.from_latents(z), u)
    assert torch.allclose(space.from_latents(z[0]), u[0])
    assert torch.allclose(space.log_prob(u), MultivariateNormal(space.mean, scale_tril=space.factor).log_prob(z))
    assert torch.allclose(space.log_joint(u), vae.model.log_joint(x, z))
    # The moments are the guide's: 2000 draws against other 50 000, as long as the error of a mean and of a variance.
    draws = torch.cat(vae.guide.sample_and_log_prob(x, 50_000)[0], -1)
    assert ((space.mean - draws.mean(0)) / draws.std(0)).abs().max() < 4 / math.sqrt(2000)
    variance = space.factor.square().sum(-1)
    assert (variance / draws.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 2000)
    covariance = (space.factor @ space.factor.mT)[:, 0, 1]
    centered = draws - draws.mean(0)
    scale = draws.std(0).prod(-1)
    assert ((covariance - centered.prod(-1).mean(0)) / scale).abs().max() < 5 / math.sqrt(2000)
    latents = z.split(vae.model.latent_dims, -1)
    prior, guide = (AnnealingSpace(vae, x, start) for start in ("prior", "guide"))
    assert torch.allclose(prior.log_prob(prior.from_latents(z)), vae.model.log_prior(latents))
    assert torch.allclose(guide.log_prob(guide.from_latents(z)), vae.guide.log_prob(x, latents))


def test_how_many_images_are_annealed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image takes its chains and 24 d² numbers for its covariance: 6 + 24 · 4 // 105 points, or 6 + 2400 // 201."""
    cases = [(2, 60, [9, 9, 7]), (2, 6, [1] * 25), (2, 1000, [25]), (10, 25 * 17, [25]), (10, 25 * 17 - 1, [13, 12])]
    for latents, points, sizes in cases:
        vae = build_vae(VAEConfig(latent_dims=(latents,), hidden_dims=((3,),)), 9).eval()
        monkeypatch.setattr(evidence, "points_at_once", lambda vae, device, points=points: points)
        chunks: list[slice] = []

        def work(vae: VAE, chunk: slice, chunks: list[slice] = chunks) -> tuple[AISResult, ...]:
            chunks.append(chunk)
            assert not any(p.requires_grad for p in vae.parameters())
            rows = chunk.stop - chunk.start
            return (AISResult(torch.rand(rows), torch.ones(rows), torch.ones(rows), torch.ones(6, rows)),)

        settings = AISSettings(chains=6)
        (result,) = evidence._in_chunks(vae, 25, settings, torch.device("cpu"), 3, False, work, NOT_KEPT, "test")
        assert [chunk.stop - chunk.start for chunk in chunks] == sizes
        assert result.log_weights.shape == (6, 25)
        draws = []
        with torch.random.fork_rng():
            for chunk in chunks:  # each from a seed of its own
                torch.manual_seed(3 * 1_000_003 + chunk.start)
                draws.append(torch.rand(chunk.stop - chunk.start))
        assert torch.equal(result.log_evidence, torch.cat(draws))


def test_images_in_chunks_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = random_vae("g1")
    x = images(vae)
    expected = quadrature(vae, x)
    settings = replace(QUICK, temperatures=20)
    monkeypatch.setattr(evidence, "CPU_MEMORY", 2**18)
    assert evidence.points_at_once(vae, x.device) < 8 * IMAGES
    result = annealed_vae(vae, x, settings)
    assert result.log_weights.shape == (8, IMAGES)
    assert (result.log_evidence - expected).abs().mean() < 0.3
    torch.manual_seed(1)
    assert torch.equal(annealed_vae(vae, x, settings).log_evidence, result.log_evidence)
    assert not torch.equal(annealed_vae(vae, x, settings, seed=1).log_evidence, result.log_evidence)
    assert all(parameter.requires_grad for parameter in vae.parameters())
    assert annealed_vae(vae, x[:1], settings).log_evidence.shape == (1,)
    with torch.no_grad():
        vae.guide.heads[0].linear.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="row 0 have no finite covariance"):
        annealed_vae(vae, x, settings)


def test_annealed_images_are_spread_evenly_over_all() -> None:
    """Static MNIST's test images come class after class: the first thousand are zeros."""
    assert spread_evenly(10, 4).tolist() == [1, 3, 6, 8]
    assert spread_evenly(3, 2).tolist() == [0, 2]
    assert spread_evenly(5, 9).tolist() == spread_evenly(5, 5).tolist() == [0, 1, 2, 3, 4]
    classes = torch.arange(10_000) // 1000
    assert classes[spread_evenly(10_000, 1000)].bincount().tolist() == [100] * 10
    vae = random_vae("g1")
    x = images(vae)
    found = evaluate_vae(vae, x, 50, ais=replace(QUICK, temperatures=5, images=3, model_images=0))
    assert found.annealed is not None
    places = found.places()
    assert places.tolist() == spread_evenly(IMAGES, 3).tolist() != [0, 1, 2]
    again = annealed_vae(vae, x[places], replace(QUICK, temperatures=5))
    assert torch.equal(found.annealed.log_evidence, again.log_evidence)
    with pytest.raises(RuntimeError, match="no image was annealed"):
        evaluate_vae(vae, x, 50).places()


def test_the_summary_by_hand() -> None:
    """NLLs 10 and 14 by importance sampling, 9 and 12 by annealing: 1 and 2 lower; bounds −8, −6 and −7.5, −6.

    Of three images the two that are spread over all are the first and the last one.
    """
    zeros = torch.zeros(3, dtype=torch.float64)
    importance = NLLResult(torch.tensor([10.0, 30.0, 14.0]).double(), zeros, zeros, zeros, zeros, 5000, 100, 0)

    def result(*values: float) -> AISResult:
        column = torch.tensor(values, dtype=torch.float64)
        return AISResult(column, torch.full_like(column, 2.0), torch.full_like(column, 0.7), column.expand(8, -1))

    simulated = (result(-8, -6), result(-7.5, -6))
    found = VAEEvidence(importance, AISSettings(images=2), result(-9, -12), simulated, 1.25)
    ais = found.summary()["ais"]
    assert (ais["nll"], ais["nll_importance"], ais["gap"], ais["largest_gap"]) == (10.5, 12.0, 1.5, 2.0)
    assert (ais["chains"], ais["temperatures"], ais["num_rows"], ais["start"]) == (8, 800, 2, "gaussian")
    assert (ais["mean_effective_chains"], ais["seconds"]) == (2.0, 1.2)
    assert ais["gap_interval"] == (1.0, 2.0)
    assert ais["interval"] == (9.0, 12.0)
    assert ais["bdmc"] | {"gap_interval": 0} == {
        "num_rows": 2, "nll_upper": 7.0, "nll_lower": 6.75, "gap": 0.25, "gap_interval": 0,
    }  # fmt: skip
    assert found.summary()["nll"] == 18.0
    scores = found.scores()
    assert scores["ais_image"].tolist() == [0.0, 2.0]
    assert scores["ais_nll"].tolist() == [9.0, 12.0]
    assert scores["nll"].tolist() == [10.0, 30.0, 14.0]
    assert VAEEvidence(importance).annealing_seconds == 0.0
    assert "ais" not in VAEEvidence(importance).summary()
    assert "ais_nll" not in VAEEvidence(importance).scores()


def test_what_is_refused() -> None:
    vae = random_vae("g1")
    x = images(vae, 3)
    with pytest.raises(ValueError, match="call eval"):
        evaluate_vae(vae.train(), x)
    with pytest.raises(ValueError, match="temperatures must be at least 2"):
        AISSettings(temperatures=1)
    with pytest.raises(ValueError, match="start"):
        AISSettings(start="posterior")
    flow = random_vae("g1-flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(flow.guide.flows["0"]), "has_inverse", False)
        with pytest.raises(ValueError, match="has no inverse"):
            annealed_vae(flow, x, AISSettings(start="guide"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_finds_the_evidence_too(name: str) -> None:
    vae = random_vae(name)
    x = images(vae)
    exact = quadrature(vae, x)
    vae, x = vae.float().cuda(), x.float().cuda()
    found = evaluate_vae(vae, x, 3000, ais=replace(QUICK, model_images=20))
    assert found.annealed is not None
    assert found.simulated is not None
    assert (found.importance.nll + exact).abs().mean() < 0.2
    assert (found.annealed.log_evidence - exact).abs().mean() < 0.2
    assert all(not values.is_cuda for values in found.scores().values())
    gap = found.simulated[1].log_evidence - found.simulated[0].log_evidence
    assert -0.1 < gap.mean() < 0.5
