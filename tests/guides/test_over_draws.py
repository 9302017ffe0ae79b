"""One pass over all draws, for programs that write in place or choose by masks, too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit, over_draws
from vi_flows.guides.over_draws import OverDraws

NAN = float("nan")


def nothing() -> None:
    """A program without a module."""


Draw = dict[str, Tensor]


def plain(draw: Draw) -> Tensor:
    return draw["z"].square().sum()


def written(draw: Draw) -> Tensor:
    x = torch.zeros(4, dtype=torch.float64)
    for t in range(1, 4):
        x[t] = 0.5 * x[t - 1] + draw["z"][t - 1].sin()
    return x.square().sum()


def written_into_new_ones(draw: Draw) -> Tensor:
    x = draw["z"].detach().new_ones(2, 3)
    x[1] = draw["z"].exp()
    y = torch.full_like(torch.ones(3, dtype=torch.float64), 2.0).clone()
    y += draw["z"]
    return (x * y).sum()


def masked(draw: Draw) -> Tensor:
    x = 2 * draw["z"]
    x[x > 0] = 0.5
    rows = draw["z"].reshape(3, 1) * torch.ones(2, dtype=torch.float64)
    rows[rows[:, 0] < 0] = torch.tensor(3.0, dtype=torch.float64)
    return x.sum() + rows.square().sum()


def ordered(draw: Draw) -> Tensor:
    return dist.OrderedLogistic(draw["z"], torch.tensor([-1.0, 0.0, 0.7]).double()).log_prob(torch.tensor([0, 2, 3]))


def multinomial(draw: Draw) -> Tensor:
    return dist.Multinomial(9, logits=draw["z"]).log_prob(torch.tensor([4.0, 0.0, 5.0]).double())


def with_gaps(draw: Draw) -> Tensor:
    return dist.NanMaskedNormal(draw["z"], 1.0).log_prob(torch.tensor([0.3, NAN, -1.0]).double())


def branching(draw: Draw) -> Tensor:
    return draw["z"].sum() if draw["z"][0] > 0 else draw["z"].prod()


PROGRAMS = [plain, written, written_into_new_ones, masked, ordered, multinomial, with_gaps]


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("program", [*PROGRAMS, branching])
def test_values_and_gradients_are_those_of_single_runs(program: Callable[[Draw], Tensor]) -> None:
    z = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for way in (OverDraws(nothing), OverDraws(nothing, at_once=False)):
        x = z.clone().requires_grad_()
        for _ in range(2):
            value = way(program, {"z": x})
        assert value.shape[0] == 7
        results.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
        assert way.at_once == (program is not branching and len(results) == 1)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_dictionaries_and_tuples() -> None:
    z = torch.randn(5, 3, dtype=torch.float64)

    def program(draw: Draw) -> Any:
        return {"a": written(draw), "b": draw["z"] > 0}, (draw["z"],)

    way = OverDraws(nothing)
    found, (same,) = way(program, {"z": z})
    assert way.at_once
    torch.testing.assert_close(found["a"], torch.stack([written({"z": row}) for row in z]))
    assert torch.equal(found["b"], z > 0)
    assert torch.equal(same, z)


def test_a_pass_that_differs_from_single_runs_is_not_taken() -> None:
    calls = []

    def program(draw: Draw) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("can't be mapped")
        return draw["z"] * (1.0 + (draw["z"] > 1) if len(calls) == 2 else 1.0)  # the first draws agree

    way, z = OverDraws(nothing), torch.arange(3.0)
    assert torch.equal(way(program, {"z": z}), z)
    assert not way.at_once


def test_only_the_first_pass_with_own_tensors_is_compared() -> None:
    runs = []

    def program(draw: Draw) -> Tensor:
        runs.append(1)
        return written(draw)

    way, z = OverDraws(nothing), torch.randn(6, 3, dtype=torch.float64)
    way(program, {"z": z})
    assert len(runs) == 4  # plain, own tensors, the first draw, the last
    way(program, {"z": z})
    assert len(runs) == 5


def test_large_tensors_are_not_made_for_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_draws, "MAX_ELEMENTS", 4 * 6)
    way, z = OverDraws(nothing), torch.randn(6, 3, dtype=torch.float64)
    way(written, {"z": z})
    assert way.at_once
    monkeypatch.setattr(over_draws, "MAX_ELEMENTS", 4 * 6 - 1)
    way = OverDraws(nothing)
    torch.testing.assert_close(way(written, {"z": z}), torch.stack([written({"z": row}) for row in z]))
    assert not way.at_once


def test_a_broken_program_raises_its_own_error() -> None:
    def program(draw: Draw) -> Tensor:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        OverDraws(nothing)(program, {"z": torch.zeros(2)})


def test_different_numbers_for_all_draws() -> None:
    def program(draw: Draw) -> Tensor:
        x = torch.zeros(2, dtype=torch.float64)
        x[0] = draw["z"][0]
        x[1] = torch.randn((), dtype=torch.float64)
        return x

    way, z = OverDraws(nothing, randomness="different"), torch.randn(50, 3, dtype=torch.float64)
    found = way(program, {"z": z})
    assert way.at_once
    assert torch.equal(found[:, 0], z[:, 0])
    assert len(found[:, 1].unique()) == 50


COUNTS = torch.tensor([[3.0, 5.0, 4.0], [1.0, 8.0, 3.0]])
SERIES = torch.linspace(-1, 1, 12).cumsum(0)


def counted() -> None:
    with pyro.plate("groups", 2):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("y", dist.Multinomial(12, p), obs=COUNTS)


def autoregressive() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 0.5))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    mean = torch.zeros(12)
    for t in range(1, 12):
        mean[t] = a * SERIES[t - 1]
    with pyro.plate("times", 12):
        pyro.sample("y", dist.Normal(mean, scale), obs=SERIES)


@pytest.mark.slow
def test_fits_and_diagnoses_of_such_models_take_one_pass() -> None:
    for model in (counted, autoregressive):
        pyro.set_rng_seed(0)
        guide = AutoConvFlow(model)
        joint = LogJoint(model)
        values = guide.sample_posterior(10)
        torch.testing.assert_close(joint(values), LogJoint(model, vectorize=False)(values))
        assert joint.vectorized
    fit(autoregressive, guide, progress=False)
    found = diagnose(autoregressive, guide)
    assert found.chains is not None
    assert found.verdict == "ok"
    tree = fit(counted, AutoConvFlow(counted), num_steps=5, progress=False).to_datatree(num_draws=7)
    p = torch.as_tensor(tree["posterior"]["p"].values[0]).double()
    expected = dist.Multinomial(12, p).log_prob(COUNTS)
    torch.testing.assert_close(torch.as_tensor(tree["log_likelihood"]["y"].values[0]), expected, rtol=1e-5, atol=0.0)


def test_the_evidence_of_counts_is_exact() -> None:
    """A Dirichlet prior of ones: each row has the probability ``2! 12! / 14!``, whatever its counts."""
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(counted)
    fit(counted, guide, progress=False)
    assert diagnose(counted, guide).log_evidence == pytest.approx(-2 * torch.tensor(91.0).log().item(), abs=0.02)


class Part(PyroModule):
    def forward(self, mean: Tensor) -> Tensor:
        self.seen = [mean]
        return mean


class Keeping(PyroModule):
    """Keeps what it computes on itself and on its part, and counts its runs."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.part, self.bounded, self.count = Part(), bounded, 0

    def forward(self) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if self.bounded:
            pyro.sample("b", dist.Uniform(0.0, 1 + a.exp()))
        self.count += 1
        self.last = self.part(2 * a)
        pyro.sample("y", dist.Normal(self.last, 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("use", ["set_up", "fit", "diagnose", "draw", "resample", "log_joint"])
def test_what_a_model_keeps_on_itself_can_be_used_afterwards(bounded: bool, use: str) -> None:
    pyro.set_rng_seed(0)
    model = Keeping(bounded)
    guide = AutoConvFlow(model, num_blocks=1, warm_start=use == "set_up")
    before = model.count
    match use:
        case "fit":
            fit(model, guide, num_steps=10, progress=False)
        case "diagnose":
            diagnose(model, guide, num_samples=100, num_paths=4)
        case "draw":
            guide.sample_posterior(5)
        case "resample":
            guide.resample(5)
        case "log_joint":
            LogJoint(model)(guide.sample_posterior(5))
    assert model.count > before or use == "set_up" or (use == "draw" and not bounded)
    again = copy.deepcopy(model)
    assert torch.isfinite(again.last + model.last)
    assert torch.isfinite(model.part.seen[0])
    assert model.last.shape == ()
    assert float(model.last) == float(model.part.seen[0])


def test_draws_that_break_a_program_do_not_cost_the_others_their_pass() -> None:
    """A matrix that is not positive definite at some draws; a value that is refused at some."""

    def factor(draw: dict[str, Tensor]) -> Tensor:
        ones = torch.ones(2, 2, dtype=torch.float64)
        return torch.linalg.cholesky(torch.eye(2, dtype=torch.float64) + draw["z"] * (ones - torch.eye(2)))

    runs: list[int] = []

    def refuses(draw: dict[str, Tensor]) -> Tensor:
        runs.append(1)
        if len(runs) < 4 and not runs.clear():  # in both passes and in the loop
            raise ValueError("no such value")
        return draw["z"]

    good, bad = torch.full((30,), 0.5, dtype=torch.float64), torch.linspace(0.0, 2.0, 30, dtype=torch.float64)
    way = OverDraws(nothing)
    with pytest.raises(torch.linalg.LinAlgError):
        way(factor, {"z": bad})
    assert way.at_once
    assert way(factor, {"z": good}).shape == (30, 2, 2)
    assert way.at_once
    way = OverDraws(nothing)
    with pytest.raises(ValueError, match="no such value"):
        way(refuses, {"z": good})
    assert way.at_once


def test_a_density_that_needs_a_factor_is_looked_at_in_few_runs() -> None:
    """Far out the covariance of a Gaussian process has no Cholesky factor in rounding."""
    runs = 0
    x = torch.linspace(0.0, 1.0, 12)

    def model() -> None:
        nonlocal runs
        runs += 1
        length = pyro.sample("length", dist.LogNormal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        covariance = scale**2 * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-6 * torch.eye(12).to(scale)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(12), covariance), obs=torch.sin(6 * x))

    pyro.set_rng_seed(0)
    AutoConvFlow(model, prototype_args=())
    assert runs < 3000
