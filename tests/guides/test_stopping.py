"""When a fit ends: the divergence that is left, interruptions, going on, and the progress bar."""

import io
import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.guides import AutoConvFlow, fit
from vi_flows.guides.progress import Progress
from vi_flows.guides.remaining import Remaining, remaining_kl
from vi_flows.guides.trainer import Trainer

DOUBLE = torch.float64


def test_remaining_by_hand():
    # Mean weight 1.5; relative weights 2/3 and 4/3 of points −1 and 1.
    found = remaining_kl(torch.tensor([0.0, math.log(2.0)], dtype=DOUBLE), torch.tensor([[-1.0], [1.0]], dtype=DOUBLE))
    assert found.elbo == pytest.approx(0.34657, abs=1e-5)
    assert found.kl == pytest.approx(0.05889, abs=1e-5)  # log 1.5 − log 2 / 2
    assert found.shift == pytest.approx(1 / 3)
    assert found.stretch == pytest.approx(1 / 9)  # the variance falls from 1 to 1 − 1/9


@pytest.mark.parametrize(("loc", "scale"), [(0.1, 1.0), (0.0, 1.1), (-0.2, 0.95)])
def test_remaining_is_the_divergence_of_gaussians(loc, scale):
    torch.manual_seed(0)
    x = torch.randn(40_000, 2, dtype=DOUBLE)
    normal = torch.distributions.Normal
    log_p = normal(loc, scale).log_prob(x[:, 0]) + normal(0.0, 1.0).log_prob(x[:, 1]) + 1234.5
    found = remaining_kl(log_p - normal(0.0, 1.0).log_prob(x).sum(-1), x)
    exact = math.log(scale) + (1 + loc**2) / (2 * scale**2) - 0.5
    assert abs(found.kl - exact) < 4 * found.kl_se < 0.002
    assert found.elbo == pytest.approx(1234.5 - exact, abs=0.01)
    assert found.shift == pytest.approx(abs(loc), abs=0.01)
    assert found.stretch == pytest.approx(abs(scale**2 - 1), abs=0.03)


def test_a_draw_outside_of_the_support_leaves_everything_to_gain():
    found = remaining_kl(torch.tensor([0.0, -math.inf]), torch.zeros(2, 1))
    assert found.kl == math.inf
    assert not found.below(1e9)


@pytest.mark.parametrize(
    ("change", "below"),
    [
        ({}, True),
        ({"kl": 0.009}, False),
        ({"kl_se": 0.004}, False),
        ({"shift": 0.021}, False),
        ({"stretch": 0.051}, False),
    ],
)
def test_noise_means_and_spreads_count(change, below):
    values = {"elbo": 0.0, "kl": 0.004, "kl_se": 0.001, "shift": 0.01, "stretch": 0.01, **change}
    assert Remaining(**values).below(0.01) is below


def conjugate():
    """The posterior is N(2, 1/2)."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(4.0))


def skewed():
    pyro.sample("scale", dist.Gamma(1.5, 2.0))
    pyro.sample("x", dist.Normal(5.0, 1.0))


def funnel():
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    pyro.sample("x", dist.Normal(5.0, scale))


def test_a_right_start_takes_no_step():
    guide = AutoConvFlow(conjugate)
    result = fit(conjugate, guide)
    assert (result.num_steps, result.stopped, result.losses) == (0, "nothing left to gain", [])
    assert result.converged
    assert result.elbo == pytest.approx(float(dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(4.0))), abs=1e-3)
    assert abs(guide.median()["x"] - 2) < 0.01
    assert fit(conjugate, guide, num_steps=4, tolerance=0.0).num_steps == 4
    with pytest.raises(ValueError, match="tolerance"):
        fit(conjugate, guide, tolerance=math.nan)


def test_training_ends_where_nothing_is_left():
    guide = AutoConvFlow(skewed, num_blocks=1)
    result = fit(skewed, guide)
    assert result.stopped == "nothing left to gain"
    assert 0 < result.num_steps < 1500
    assert result.elbo > -0.01  # the evidence is one
    steps, looks = zip(*result.remaining, strict=True)
    assert steps[0] == 0
    assert looks[0].kl > 0.05 > 0.005 > looks[-1].kl
    again = fit(skewed, guide)
    assert again.num_steps <= 300
    assert again.elbo > result.elbo - 4 * result.elbo_se


def test_parameters_of_the_model_move_though_the_guide_is_right():
    def model():
        loc = pyro.param("loc", torch.tensor(0.0))
        x = pyro.sample("x", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(4.0))

    pyro.clear_param_store()
    result = fit(model, AutoConvFlow(model, num_blocks=1), num_steps=100, learning_rate=0.05)
    assert result.num_steps == 100
    assert pyro.param("loc").item() > 1


def test_with_parameters_of_the_model_the_elbo_at_rest_ends_the_fit():
    """Empirical Bayes: x_i ~ N(m, 1) and y_i ~ N(x_i, 1) give m the mean of y, and the evidence of N(m, √2)."""
    y = torch.tensor([3.0, 4.0, 4.5, 6.5])

    def model():
        loc = pyro.param("loc", torch.tensor(3.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(loc, 1.0)), 1.0), obs=y)

    pyro.clear_param_store()
    result = fit(model, AutoConvFlow(model, num_blocks=1))
    assert [step for step, _ in result.remaining][:4] == [0, 100, 200, 300]
    assert result.stopped == "no further gain"
    assert result.num_steps < 1400
    assert pyro.param("loc").item() == pytest.approx(4.5, abs=0.02)
    evidence = dist.Normal(4.5, 2**0.5).log_prob(y).sum().item()
    assert result.elbo == pytest.approx(evidence, abs=0.01 + 4 * result.elbo_se)


def test_subsampled_data_are_not_weighed():
    y = torch.linspace(-1, 1, 50)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 50, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=y[index])

    result = fit(model, AutoConvFlow(model), num_steps=20)
    assert result.num_steps == 20
    assert result.remaining == []
    assert result.stopped == "num_steps"


def test_no_fit_leaves_the_guide_worse():
    guide = AutoConvFlow(skewed, num_blocks=1)
    before = [p.detach().clone() for p in guide.parameters()]
    result = fit(skewed, guide, num_steps=3, learning_rate=1.0)
    assert result.num_steps == 3
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_an_interrupted_fit_keeps_what_it_reached_and_goes_on():
    stop_at = 0

    def model():
        nonlocal stop_at
        stop_at -= 1
        if stop_at == 0:
            raise KeyboardInterrupt
        funnel()

    guide = AutoConvFlow(model, num_blocks=1)
    stop_at = 160
    with pytest.warns(UserWarning, match=r"interrupted after \d+ steps.*go on"):
        result = fit(model, guide)
    assert result.stopped == "interrupted"
    assert not result.converged
    assert 80 <= result.num_steps < 160
    assert result.elbo > result.remaining[0][1].elbo + 0.02
    again = fit(model, guide, num_steps=60)
    assert again.remaining[0][1].kl < 0.02
    assert again.elbo > result.elbo - 4 * (result.elbo_se + again.elbo_se)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_elbo_remaining_and_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(40, True) as bar:
        bar.look(Remaining(-3.0, 0.1234, 0.01, 0.0, 0.0))
        for _ in range(40):
            bar.step(-2.5)
        bar.expect(50)
        shown = sys.stderr.getvalue()
    assert "ELBO -2.500, to gain 0.123 ± 0.010 nats" in shown
    assert "40/50" in shown
    assert "<" in shown  # time spent < time left


def test_no_bar_where_none_is_wanted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(skewed, AutoConvFlow(skewed, num_blocks=1), num_steps=3, progress=False)
    assert sys.stderr.getvalue() == ""


def trained(probe_kl, num_steps=4000):
    """A trainer of one parameter, whose looks find what ``probe_kl`` says of the rate; with the rates at its looks."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    rates = []

    def probe(fresh):
        rate = trainer.take.optimizer.param_groups[0]["lr"] if trainer.losses else 1.0
        rates.append(rate)
        return Remaining(-1.0, probe_kl(rate), 0.0, 0.0, 0.0)

    def loss():
        return (parameter - 1).square().reshape(1)

    with Progress(num_steps, False) as bar:
        trainer = Trainer([parameter], loss, num_steps, 0.1, {}, probe, False, 0.01, bar)
        trainer.run()
    return trainer, rates


def test_a_descent_of_the_rate_ends_a_fit_with_little_left():
    trainer, rates = trained(lambda rate: 0.03 if rate > 0.01 else 0.004)
    assert (len(trainer.losses), trainer.stopped) == (200, "nothing left to gain")
    assert rates == pytest.approx([1.0, 0.1, 0.001, 0.001])  # the last twice, with fresh draws


def test_a_descent_in_vain_is_taken_back_and_an_elbo_at_rest_ends_the_fit():
    trainer, rates = trained(lambda rate: 0.03)
    # Looks at 0, 100, …, 500 show no rise; then the last descent.
    assert (len(trainer.losses), trainer.stopped) == (700, "no further gain")
    assert rates[:6] == pytest.approx([1.0, 0.1, 0.001, 0.1, 0.1, 0.001])  # again at twice the steps
    assert trainer.take.optimizer.param_groups[0]["lr"] < 0.001


def test_far_from_the_end_there_is_no_short_descent():
    trainer, rates = trained(lambda rate: 0.05, num_steps=300)
    assert rates[:3] == pytest.approx([1.0, 0.1, 0.1])
    assert len(trainer.losses) == 300  # 210 at the constant rate, and a last descent as far as the steps go


@pytest.mark.parametrize(("dim", "step"), [(20, 0.01), (200, 0.005)])
def test_many_dimensions_are_trained_at_a_lower_rate(dim, step):
    def model():
        pyro.sample("x", dist.Normal(torch.ones(dim), 1.0).to_event(1))

    guide = AutoConvFlow(
        model, num_blocks=1, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"x": torch.zeros(dim)})
    )
    result = fit(model, guide, num_steps=1)
    assert result.num_steps == 1
    # Adam's first step has the length of the rate.
    assert float(guide.location_scale.loc.detach().abs().mean()) == pytest.approx(step, rel=0.01)
