"""Amortised inference for simulators: draws of a program, the learnt posterior against exact ones, refusals, files."""

import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from vi_flows.diagnostics import diagnose
from vi_flows.flows import NSF, RealNVP, Spline
from vi_flows.guides.amortize import AmortizedPosterior, Simulator, fit_amortized

DESIGN = torch.tensor([[1.0, 0.5], [0.0, 1.0], [-1.0, 2.0]])
PRIOR_SD = torch.tensor([1.0, 2.0])


def linear(x=None):
    """θ ~ N(0, diag(1, 4)), x | θ ~ N(A θ, 1/4)."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), PRIOR_SD).to_event(1))
    mean = (DESIGN @ theta.unsqueeze(-1)).squeeze(-1)
    pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=torch.zeros(3) if x is None else x)


COVARIANCE = (torch.diag(PRIOR_SD**-2) + DESIGN.T @ DESIGN / 0.25).inverse()


@pytest.fixture(scope="module")
def fitted():
    return fit_amortized(linear, num_simulations=2000, num_epochs=25, flow=RealNVP(num_layers=1, hidden_dims=(16,)))


@pytest.mark.parametrize("x", [(1.0, 0.0, 2.0), (-1.0, 3.0, 4.0), (0.0, 0.0, 0.0)])
def test_a_linear_gaussian_program_gives_its_exact_posterior(fitted, x):
    x = torch.tensor(x)
    mean, sd = COVARIANCE @ DESIGN.T @ x / 0.25, COVARIANCE.diag().sqrt()
    draws = fitted.sample(x, (8000,), seed=1)["theta"]
    assert ((draws.mean(0) - mean) / sd).abs().max() < 0.2
    assert (draws.std(0) / sd - 1).abs().max() < 0.1
    correlation = COVARIANCE[0, 1] / sd.prod()
    assert abs(torch.corrcoef(draws.T)[0, 1] - correlation) < 0.1
    exact = torch.distributions.MultivariateNormal(mean, COVARIANCE)
    theta = exact.sample((2000,))
    kl = (exact.log_prob(theta) - fitted.log_prob({"theta": theta}, x)).mean()
    assert -0.02 < kl < 0.05


def test_the_loss_is_the_mean_entropy_of_the_exact_posterior(fitted):
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * COVARIANCE)
    assert fitted.loss == pytest.approx(float(entropy), abs=0.15)  # 200 held-out simulations
    assert len(fitted.losses) == len(fitted.held_out_losses) == fitted.num_epochs
    assert min(fitted.held_out_losses) == fitted.loss


def test_the_posterior_is_a_distribution_over_sites_for_any_batch_of_data(fitted):
    x = torch.randn(4, 1, 3)
    posterior = fitted.posterior(x)
    draws = posterior.sample((5,))
    assert draws["theta"].shape == (5, 4, 1, 2)
    log_q = posterior.log_prob(draws)
    assert log_q.shape == (5, 4, 1)
    alone = fitted.posterior(x[2, 0]).log_prob({"theta": draws["theta"][:, 2, 0]})
    torch.testing.assert_close(log_q[:, 2, 0], alone, rtol=1e-4, atol=1e-4)


def test_it_is_a_pyro_guide_for_the_data_at_hand(fitted):
    x = torch.tensor([1.0, 0.0, 2.0])
    guide = fitted.posterior(x).guide
    report = diagnose(pyro.poutine.condition(linear, data={"x": x}), guide)
    cov = DESIGN @ torch.diag(PRIOR_SD**2) @ DESIGN.T + 0.25 * torch.eye(3)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3), cov).log_prob(x)
    assert report.log_evidence == pytest.approx(float(evidence), abs=0.05)
    with pytest.raises(ValueError, match="one set of data"):
        fitted.posterior(torch.zeros(2, 3)).guide()


def test_data_unlike_the_simulations_are_told(fitted):
    with pytest.warns(UserWarning, match="2 of 3 entries"):
        fitted.posterior(torch.tensor([100.0, 0.0, -100.0]))


def test_seeds_and_generators(fitted):
    state = torch.get_rng_state()
    again = fit_amortized(linear, num_simulations=200, num_epochs=2)
    twin = fit_amortized(linear, num_simulations=200, num_epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.held_out_losses == twin.held_out_losses
    assert again.stopped == "num_epochs"
    x = torch.zeros(3)
    assert torch.equal(fitted.sample(x, (3,), seed=2)["theta"], fitted.sample(x, (3,), seed=2)["theta"])


def test_files(fitted):
    x, theta = torch.randn(3), torch.randn(6, 2)
    expected = fitted.log_prob({"theta": theta}, x)
    fresh = AmortizedPosterior(linear, flow=RealNVP(num_layers=1, hidden_dims=(16,)))
    fresh.load_state_dict(load_safetensors(save_safetensors(fitted.estimator.state_dict())))
    torch.testing.assert_close(fresh.posterior(x).log_prob({"theta": theta}), expected)
    file = io.BytesIO()
    torch.save(fitted.estimator, file)
    assert fitted.estimator.simulator.parameters == ("theta",)  # the live one keeps its program
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded.posterior(x).log_prob({"theta": theta}), expected)
    with pytest.raises(RuntimeError, match="holds no program"):
        loaded.simulator


def triangle():
    """a ~ U(0, 1), b | a ~ U(0, 1 − a), k ~ Poisson(20 (a + b)), and a nuisance."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(torch.zeros(()), 1 - a))
    pyro.sample("k", dist.Poisson(20 * (a + b)), obs=torch.tensor(3.0))


def test_supports_that_depend_on_other_sites_are_kept_to_draw_by_draw():
    result = fit_amortized(triangle, num_simulations=3000, num_epochs=15, flow=NSF(num_layers=2, hidden_dims=(16,)))
    k = torch.tensor(6.0)
    draws = result.sample(k, (4000,), seed=0)
    assert bool((draws["a"] + draws["b"] < 1).all())
    # By quadrature on the triangle: the prior's density is 1 / (1 − a).
    a, b = torch.meshgrid(torch.linspace(0.0005, 0.9995, 1000), torch.linspace(0.0005, 0.9995, 1000), indexing="ij")
    weight = torch.where(a + b < 1, torch.distributions.Poisson(20 * (a + b)).log_prob(k).exp() / (1 - a), 0.0)
    weight = weight / weight.sum()
    for name, grid in (("a", a), ("b", b)):
        mean = (weight * grid).sum()
        sd = (weight * (grid - mean) ** 2).sum().sqrt()
        assert abs(draws[name].mean() - mean) < 0.2 * sd
        assert float(draws[name].std() / sd) == pytest.approx(1.0, abs=0.12)
    # Densities integrate to one over the triangle, and are none beyond it.
    log_q = result.log_prob({"a": a[::5, ::5], "b": b[::5, ::5]}, k)
    assert bool((log_q[(a + b > 1.001)[::5, ::5]] == -math.inf).all())
    assert float(log_q.exp().sum() * 25e-6) == pytest.approx(1.0, abs=0.03)
    assert result.log_prob({"a": torch.tensor(-0.1), "b": torch.tensor(0.5)}, k) == -math.inf


def branching():
    """What only single runs can follow: a branch on a value, and noise from outside of Pyro."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("out", torch.stack([mu + (0.5 if mu > 0 else -0.5), torch.randn(())]))


def shared_noise():
    """One pass for all draws would give them all the same noise."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("out", mu + torch.randn(()))


def plates():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3, dim=-2), pyro.plate("rows", 4, dim=-1):
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.zeros(3, 4))
    pyro.deterministic("twice", 2 * scale)


def first_entry():
    """θ[0] is the first draw's, not the first entry's, where many are drawn at once."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta[0], 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize(("program", "data"), [
    (branching, "out"), (shared_noise, "out"), (first_entry, None), (plates, None), (linear, None)])  # fmt: skip
def test_draws_at_once_are_those_of_single_runs_or_not_made(program, data):
    pyro.set_rng_seed(0)
    simulator = Simulator(program, data=data)
    drawn = simulator.draw(800)
    single = simulator.draw(800, at_once=False)
    for one, other in ((drawn.latents, single.latents), (drawn.data, single.data)):
        for name in one:
            assert one[name].shape == other[name].shape
            assert (one[name].mean(0) - other[name].mean(0)).abs().max() < 0.2 * other[name].std()
            torch.testing.assert_close(one[name].std(0), other[name].std(0), rtol=0.2, atol=0.0)
    if data:
        pairs = torch.stack([drawn.latents["mu"].flatten(), drawn.data["out"].reshape(800, -1)[:, -1]])
        assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(0.5**0.5 if program is shared_noise else 0, abs=0.1)


def test_programs_made_for_it_run_once_for_all_draws():
    runs = []

    def counted():
        runs.append(1)
        plates()

    Simulator(counted).draw(1000)
    assert len(runs) < 10


def test_discrete_data_nuisance_and_an_embedding():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(x.shape[1:])
            return x.sum(-1)

    def counts():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("kind", dist.Bernoulli(0.5))
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.Poisson(rate), obs=torch.zeros(6))

    embed = Sums()
    result = fit_amortized(
        counts, parameters="rate", num_simulations=3000, num_epochs=15,
        embed=nn.Sequential(nn.Unflatten(-1, (1, 6)), embed), flow=Spline(num_layers=1, hidden_dims=(16,)),
    )  # fmt: skip
    assert embed.seen[0] == (1, 6)
    y = torch.tensor([1.0, 3.0, 2.0, 0.0, 4.0, 2.0])
    draws = result.sample(y, (8000,), seed=0)["rate"]
    exact = torch.distributions.Gamma(2.0 + y.sum(), 7.0)  # conjugate
    assert abs(draws.mean() - exact.mean) < 0.2 * exact.stddev
    assert float(draws.std() / exact.stddev) == pytest.approx(1.0, abs=0.12)


def two_moons():
    """Greenberg, Nonnenmacher and Macke (2019), appendix: two thin crescents."""
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1))
    angle = pyro.sample("angle", dist.Uniform(-math.pi / 2, math.pi / 2))
    radius = pyro.sample("radius", dist.Normal(0.1, 0.01))
    first = radius * angle.cos() + 0.25 - (theta[..., 0] + theta[..., 1]).abs() / 2**0.5
    second = radius * angle.sin() + (theta[..., 1] - theta[..., 0]) / 2**0.5
    pyro.deterministic("x", torch.stack([first, second], -1), event_dim=1)


def moons_at_zero(num_draws):
    """Exact posterior draws at x = 0 with their log density, by solving for θ (two to one, of determinant one)."""
    generator = torch.Generator().manual_seed(3)
    angle = (torch.rand(num_draws, generator=generator) - 0.5) * math.pi
    radius = 0.1 + 0.01 * torch.randn(num_draws, generator=generator)
    plus = 2**0.5 * (radius * angle.cos() + 0.25)
    plus = plus * torch.where(torch.rand(num_draws, generator=generator) < 0.5, 1.0, -1.0)
    minus = -(2**0.5) * radius * angle.sin()
    theta = torch.stack([(plus - minus) / 2, (plus + minus) / 2], -1)
    log_p = math.log(0.5) + torch.distributions.Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
    return theta, log_p


@pytest.mark.slow
def test_two_moons():
    result = fit_amortized(two_moons, parameters="theta", data="x")
    theta, log_p = moons_at_zero(4000)
    x = torch.zeros(2)
    kl = float((log_p - result.log_prob({"theta": theta}, x)).mean())
    assert -0.05 < kl < 0.45
    draws = result.sample(x, (4000,), seed=0)["theta"]
    assert float((draws.sum(-1) > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert (draws.std(0) / theta.std(0) - 1).abs().max() < 0.1


def discrete():
    pyro.sample("kind", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def factor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("f", -(a**2))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.0))


def masked():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2), pyro.poutine.mask(mask=torch.tensor([True, False])):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(2))


def in_part():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(2), obs_mask=torch.tensor([True, False]))


def scaled():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.0))


def flat_by_a_mask():
    a = pyro.sample("a", dist.Normal(0.0, 1.0).mask(False))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.0))


def improper():
    a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.0))


def circular():
    a = pyro.sample("a", dist.VonMises(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.0))


def unobserved():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0))


def subsampled():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 10, subsample_size=2):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(2))


def fails():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.deterministic("y", (a + 1).log())


def changes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.deterministic("y", torch.zeros(2 if a > 1 else 1))


@pytest.mark.parametrize(("program", "options", "words"), [
    (discrete, {}, r"'kind' is discrete"),
    (factor, {}, r"'f' is a pyro\.factor"),
    (masked, {}, r"'y' has a mask or a scale"),
    (in_part, {}, r"'y_observed' has a mask or a scale"),
    (scaled, {}, r"'y' has a mask or a scale"),
    (flat_by_a_mask, {}, r"'a' has a mask or a scale"),
    (improper, {}, r"'a' has an improper prior"),
    (circular, {}, r"'a' is circular"),
    (unobserved, {}, r"observes nothing.*data="),
    (unobserved, {"data": "z"}, r"no site 'z'; it has 'a', 'y'"),
    (unobserved, {"data": "y", "parameters": "y"}, r"'y' can't be parameter and datum"),
    (subsampled, {}, r"'y' lives in the subsampled plate 'rows'"),
    (fails, {"data": "y"}, r"'y' is not finite in \d+ of 200"),
    (changes, {"data": "y"}, r"'y' has not always the shape"),
    (triangle, {"parameters": "b"}, r"support of 'b' depends"),
    (linear, {"embed": nn.Flatten(0)}, r"embed must give rows"),
    (linear, {"hidden_dims": ()}, r"hidden layer"),
    (linear, {"held_out": 0.7}, r"held_out"),
    (linear, {"batch_size": 0}, r"batch_size"),
    (linear, {"learning_rate": -1.0}, r"learning_rate")])  # fmt: skip
def test_what_can_not_be_learnt_is_refused_by_name(program, options, words):
    with pytest.raises(ValueError, match=words):
        fit_amortized(program, num_simulations=200, num_epochs=1, progress=False, **options)


def test_data_of_other_shapes_are_refused(fitted):
    with pytest.raises(ValueError, match=r"'x' has shape \(3,\), got \(2,\)"):
        fitted.posterior(torch.zeros(2))
    with pytest.raises(ValueError, match=r"'x' has values that are not finite"):
        fitted.posterior(torch.full((3,), math.nan))
    with pytest.raises(ValueError, match=r"no value given for data site 'x'"):
        fitted.posterior({"y": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"no value given for site 'theta'"):
        fitted.log_prob({}, torch.zeros(3))


def test_a_program_with_arguments_and_keywords_of_its_own():
    def program(count, seed):
        a = pyro.sample("a", dist.Normal(float(seed), 1.0))
        with pyro.plate("rows", count):
            pyro.sample("y", dist.Normal(a, 1.0))

    result = fit_amortized(program, 3, data="y", num_simulations=500, num_epochs=3, model_kwargs={"seed": 5})
    assert abs(result.sample(torch.full((3,), 5.0), (500,), seed=0)["a"].mean() - 5) < 0.3
