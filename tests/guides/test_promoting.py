"""Models in single precision whose densities are computed in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.guides.at_once import run_in_double
from vi_flows.guides.log_joint import LogJoint, in_double
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.pairs import pair_of
from vi_flows.guides.promoting import DefaultType, Promoting, Within, double_precision, precision

DOUBLE = torch.float64
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
NETWORK = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).requires_grad_(False)
GRU = nn.GRU(3, 2, batch_first=True).requires_grad_(False)


def inplace(z: Tensor) -> Tensor:
    x = torch.zeros(3)
    x[0] = z[0]
    x[1:] += z[1:] ** 2
    return x.cumsum(0)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda z: X @ z,
    "network": lambda z: NETWORK(z[None] + X),
    "recurrent": lambda z: GRU((X + z)[None])[0],
    "einsum": lambda z: torch.einsum("ij,j->i", X, z),
    "stacked": lambda z: torch.stack([X[0], z, 2 * z], -1),
    "lists": lambda z: torch.cat([X, z[None]]).logsumexp(0),
    "tuples": lambda z: torch.linalg.multi_dot((X, z)),
    "keywords": lambda z: torch.matmul(other=z, input=X),
    "types": lambda z: torch.zeros(3, dtype=X.dtype) + z.to(torch.float32) + z.type_as(X) + z.float(),
    "smallest": lambda z: z.sigmoid() + torch.finfo(z.dtype).eps,
    "in place": inplace,
    "operators": lambda z: (1.0 - X[0] / 3) ** z.exp() + X[0].exp().log1p() * z,
    "attributes": lambda z: X.T[:, 0] * X.mT[:, 1] * z,
    "gamma": lambda z: torch.lgamma(torch.full((3,), 1e7)) * z + torch.lgamma(X[0].exp() + 1e6) * z,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_double_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = FUNCTIONS[name]
    z = torch.tensor([0.3, -1.2, 0.7], dtype=DOUBLE, requires_grad=True)
    with Promoting(DOUBLE):
        found = function(z)
        (slope,) = torch.autograd.grad(found.sum(), z)
        many = OverDraws(function)(lambda draw: function(draw["z"]), {"z": torch.stack([z, z])})
    monkeypatch.setitem(globals(), "X", X.double())
    for each in (NETWORK, GRU):
        each.double()
    torch.set_default_dtype(DOUBLE)
    try:
        if name == "types":
            wanted = torch.zeros(3) + 3 * z
        else:
            wanted = function(z)
        (wanted_slope,) = torch.autograd.grad(wanted.sum(), z)
    finally:
        torch.set_default_dtype(torch.float32)
        for each in (NETWORK, GRU):
            each.float()
    assert found.dtype is DOUBLE
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many, torch.stack([found, found]), rtol=1e-12, atol=1e-12)


def test_what_is_left_alone() -> None:
    known, whole, out = {X: "data"}, torch.arange(3), torch.zeros(1)
    with Promoting(DOUBLE):
        assert known[X] == "data"
        assert (whole + 1).dtype is torch.int64
        assert torch.zeros(2, dtype=torch.int32).dtype is torch.int32
        assert torch.get_default_dtype() is DOUBLE
        buffer = torch.zeros(3, dtype=torch.float32)
        buffer.add_(1.0).mul_(torch.tensor([1.0, 2.0, 3.0]))
        torch.add(torch.ones(1, dtype=torch.float32), 4.0, out=out)
    assert buffer.tolist() == [1.0, 2.0, 3.0]
    assert out.tolist() == [5.0]
    assert torch.get_default_dtype() is torch.float32
    with precision(torch.float32):
        assert (X + 1).dtype is torch.float32
    with precision(DOUBLE):
        assert (X + 1).dtype is DOUBLE


def trials(num: float, counts: list[float]) -> Callable[[], None]:
    """Its evidence is ``(num + 1)^{-K}``, its posterior of Beta laws."""
    y = torch.tensor(counts)

    def model() -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0).expand([len(counts)]).to_event(1))
        pyro.sample("y", dist.Binomial(torch.tensor(num), p).to_event(1), obs=y)

    return model


def exact_of(model: Callable[..., Any], values: Callable[[Tensor], dict[str, Tensor]], x: Tensor) -> LogJoint:
    return in_double(model, (), {}, lambda joint: lambda x: joint(values(x)), x, LogJoint(model))


def test_a_density_of_many_trials_is_exact() -> None:
    y = [1.2e6, 1.3e6]
    p = torch.tensor([[0.12, 0.13], [0.1, 0.14]])
    exact = exact_of(trials(1e7, y), lambda x: {"p": x}, p)
    wanted = stats.binom.logpmf(y, 10_000_000, p.double().numpy()).sum(-1)
    assert exact({"p": p.double()}).tolist() == pytest.approx(wanted.tolist(), rel=1e-9)
    assert abs(LogJoint(trials(1e7, y))({"p": p})[0].item() - wanted[0]) > 5


def through_views(z: Tensor, buffer: Tensor) -> Tensor:
    buffer.zero_()
    first = buffer.reshape(3, 1)[0]
    first.add_(1.0)
    return (buffer * z).sum()


def through_numpy(z: Tensor, buffer: Tensor) -> Tensor:
    buffer.zero_()
    buffer.numpy()[:] = 0.5
    return (buffer * z).sum()


def in_single_only(z: Tensor) -> Tensor:
    if z.detach().numpy().dtype != "float32":
        raise TypeError("only float32")
    return z.sum()


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (partial(through_views, buffer=torch.zeros(3)), False), (partial(through_numpy, buffer=torch.zeros(3)), True),
        (in_single_only, True), (lambda z: (X @ z).sum(), False),
        (lambda z: torch.where(z > 10, math.inf, z).sum(), False),
    ],
    ids=["views", "numpy", "single", "product", "finite"],
)  # fmt: skip
def test_a_program_that_double_precision_would_change_is_left_alone(function: Any, kept: bool) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", function(z))

    z = torch.randn(2, 3)
    plain = LogJoint(model, vectorize=False)
    found = in_double(model, (), {}, lambda joint: lambda x: joint({"z": x}), z, plain)
    assert (found is plain) == kept
    torch.testing.assert_close(found({"z": z if kept else z.double()}).float(), plain({"z": z}), rtol=1e-5, atol=1e-5)
    assert in_double(model, (), {}, lambda joint: lambda x: joint({"z": x}), z.double(), plain) is plain


@pytest.mark.parametrize(
    ("function", "within"),
    [
        (lambda z: (X[0] * z).sum(), DefaultType), (lambda z: torch.ones(3) @ z, DefaultType),
        (lambda z: (X[0].exp() * z).sum(), DefaultType), (lambda z: 1e6 * (X[0].exp() * z).sum(), Promoting),
        (lambda z: torch.lgamma(X[0] + 1e5).sum() * z[0], Promoting), (lambda z: (X @ z).sum(), Promoting),
    ],
    ids=["mixes", "made", "hardly rounded", "rounded", "cancels", "product"],
)  # fmt: skip
def test_the_mode_is_left_out_where_types_mix_and_hardly_anything_is_rounded(function: Any, within: type) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", function(z))

    found = exact_of(model, lambda x: {"z": x}, torch.tensor([[0.3, -1.2, 0.7], [1.1, 0.4, -0.6]]))
    assert isinstance(found.within(), within)
    assert found({"z": torch.randn(2, 3, dtype=DOUBLE)}).dtype is DOUBLE
    assert torch.get_default_dtype() is torch.float32


def test_a_density_that_is_finite_in_single_precision_alone_is_left_alone() -> None:
    """The ``float32`` nearest to a tenth is greater than a tenth."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(z <= 0.1, z, -math.inf))

    z = torch.tensor([0.1, -1.0])
    plain = LogJoint(model)
    assert bool(plain({"z": z}).isfinite().all())
    assert in_double(model, (), {}, lambda joint: lambda x: joint({"z": x}), z, plain) is plain
    assert in_double(model, (), {}, lambda joint: lambda x: joint({"z": x}), z[1:], plain) is not plain


def test_generators_are_left_as_they_were() -> None:
    def evaluate(_: Within, dtype: torch.dtype) -> Tensor:
        return torch.zeros(2, dtype=dtype) * torch.rand(2, dtype=dtype)

    pyro.set_rng_seed(0)
    before = torch.rand(3)
    pyro.set_rng_seed(0)
    assert double_precision(evaluate, torch.float32) is not nullcontext
    assert torch.equal(torch.rand(3), before)


def test_fits_bounds_and_weights_are_those_of_double_precision() -> None:
    """PyTorch cuts probabilities off at 1.2e-7 in single precision: a median was off by 0.39 spreads, and called ok."""
    pyro.set_rng_seed(0)
    model = trials(1e7, [3.0, 0.0, 7.0])
    guide = AutoConvFlow(model)
    result = fit(model, guide, progress=False)
    found = diagnose(model, guide)
    assert found.verdict == "ok"
    assert result.elbo == pytest.approx(-3 * math.log(1e7 + 1), abs=0.05)
    assert found.log_evidence == pytest.approx(-3 * math.log(1e7 + 1), abs=0.03)
    wanted = torch.tensor([4.0, 1.0, 8.0]) / 1e7
    spread = wanted / torch.tensor([4.0, 1.0, 8.0]).sqrt()
    drawn, weighted = found.draws["p"].mean(0), found.weighted_mean(lambda draws: draws["p"])
    for mean in (drawn, weighted, guide.resample(4000)["p"].mean(0)):
        assert float(((mean - wanted) / spread).abs().max()) < 0.08


@pytest.mark.parametrize(("num", "dtype"), [(1e7, DOUBLE), (100.0, torch.float32)])
def test_training_is_in_double_precision_where_rounding_changes_the_density(num: float, dtype: torch.dtype) -> None:
    model = trials(num, [3.0, 0.0])
    pair = pair_of(model, AutoConvFlow(model), (), {})
    pair.check()
    assert pair.loss_terms(4, "stl")().dtype is dtype
    assert pair.bound_terms(4)().dtype is DOUBLE


def test_weights_of_a_guide_of_ones_own_are_those_of_double_precision() -> None:
    """The exact posterior: all weights are the evidence. In single precision they are off by up to 16 nats."""
    y = [1.2e6, 1.3e6]
    counts, seen = torch.tensor(y), []

    def guide() -> None:
        seen.append(pyro.sample("p", dist.Beta(counts + 1, 1e7 + 1 - counts).to_event(1)))

    found = diagnose(trials(1e7, y), guide, num_samples=200)
    assert found.log_evidence == pytest.approx(-2 * math.log(1e7 + 1), abs=1e-6)
    assert float(found.log_weights.std()) < 1e-6
    assert seen[0].dtype is torch.float32
    assert seen[-1].dtype is DOUBLE
    bound = -pair_of(trials(1e7, y), guide, (), {}).bound_terms(4)()
    assert float(bound.detach()) == pytest.approx(-2 * math.log(1e7 + 1), abs=1e-6)


def test_a_guide_that_double_precision_would_change_is_left_alone() -> None:
    def guide(count: Callable[[Tensor], Tensor]) -> None:
        pyro.sample("z", dist.Normal(count(torch.zeros(3)), 1.0).to_event(1))

    def model(count: Callable[[Tensor], Tensor]) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    buffer = torch.zeros(3)

    def written(x: Tensor) -> Tensor:
        buffer.zero_()
        buffer.numpy()[0] = 1.0
        return buffer

    assert run_in_double(model, guide, (written,), {}) is nullcontext
    assert run_in_double(model, guide, (lambda x: x,), {}) is not nullcontext
    assert run_in_double(lambda _: None, lambda _: None, (written,), {}) is nullcontext
