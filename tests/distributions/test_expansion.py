"""A plate asks every site for a larger batch: what is made anew keeps its validation, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from vi_flows.autoregressive import MADE, Bernoulli
from vi_flows.distributions import BernoulliLogits, Dequantized, FlowNormal, StandardNormal
from vi_flows.transforms import Revert

Make = Callable[[bool | None], dist.TorchDistribution]
MADE_ONCE = MADE((2,), Bernoulli(), (4,), context_dim=1)

KINDS: dict[str, tuple[Make, Tensor, Tensor]] = {
    "FlowNormal": (
        lambda v: FlowNormal(torch.zeros(1, 2), torch.zeros(2), Revert(), validate_args=v),
        torch.zeros(2), torch.tensor([0.0, math.nan]),
    ),
    "StandardNormal": (
        lambda v: StandardNormal(2, (1,), validate_args=v), torch.zeros(2), torch.tensor([0.0, math.nan])
    ),
    "BernoulliLogits": (
        lambda v: BernoulliLogits(torch.zeros(1, 2), validate_args=v), torch.ones(2), torch.full((2,), 200.0)
    ),
    "Dequantized": (
        lambda v: Dequantized(dist.Uniform(torch.zeros(1, 1, 1, 2), 1.0).to_event(3), 4, validate_args=v),
        torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5),
    ),
    "AutoregressiveDistribution": (
        lambda v: type(MADE_ONCE.condition(torch.zeros(1, 1)))(MADE_ONCE, torch.zeros(1, 1), v),
        torch.ones(2), torch.full((2,), 0.5),
    ),
}  # fmt: skip
"""Each with a value, and one outside of the support."""


@pytest.mark.parametrize("name", KINDS)
def test_an_expanded_distribution_validates_as_before(name: str) -> None:
    make, value, wrong = KINDS[name]
    strict, loose = make(True), make(False)
    for shape in ((3,), (4, 1), (4, 3)):
        expanded = strict.expand(shape)
        assert type(expanded) is type(strict)
        assert expanded.batch_shape == torch.Size(shape)
        assert expanded.event_shape == strict.event_shape
        torch.testing.assert_close(expanded.log_prob(value), strict.log_prob(value).expand(shape))
        with pytest.raises(ValueError, match=r"within the support|must be whole numbers from 0 to 3"):
            expanded.log_prob(wrong)
        assert loose.expand(shape).log_prob(wrong).shape == torch.Size(shape)


@pytest.mark.parametrize("name", KINDS)
def test_its_own_batch_needs_nothing_made_anew(name: str) -> None:
    q = KINDS[name][0](None)
    assert q.expand((1,)) is q
    assert q.expand(torch.Size([1])) is q
    for shape in ((4,), (), (3, 1)):
        with pytest.raises(RuntimeError, match=rf"^{name} of batch shape \(3,\) can't be expanded to \("):
            q.expand((3,)).expand(shape)
