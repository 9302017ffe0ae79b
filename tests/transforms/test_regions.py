"""Domains and codomains of composed layers: a density has no number outside of what a flow reaches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    StickBreakingTransform,
)  # fmt: skip

from tests.transforms.cases import CASES
from vi_flows import conditional_conv_flow
from vi_flows.distributions import FlowNormal
from vi_flows.transforms import (
    Affine,
    Bijection,
    Chain,
    Checkpointed,
    ConditionalChain,
    ConditionalCheckpointed,
    ConditionalInverse,
    FromPyro,
    ImageChain,
    Inverse,
    Logit,
    MultiScale,
    Revert,
    Squeeze,
)  # fmt: skip
from vi_flows.transforms.image.reshaped import Reshaped
from vi_flows.transforms.regions import is_real, same_support


def normal(*shape: int) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def affine(loc: float, scale: float, dim: int = 1) -> Affine:
    return Affine(torch.full((dim,), loc), scale, kind="diagonal")


def stretched() -> Chain:
    """Onto (3, 5), with all numbers for the codomain of its last part."""
    return Chain([FromPyro(SigmoidTransform()), affine(3.0, 2.0)])


def given(family: Callable[[nn.Module], nn.Module]) -> Bijection:
    return family(ConditionalChain([stretched(), Revert()])).condition(torch.zeros(3))


ONTO_THREE_TO_FIVE = {
    "a chain": stretched,
    "a chain in a chain": lambda: Chain([Revert(), Chain([stretched()]), Revert()]),
    "recomputed": lambda: Checkpointed(stretched()),
    "inverted twice": lambda: Inverse(Inverse(stretched())),
    "the inverse of the inverse parts": lambda: Inverse(
        Chain([Inverse(affine(3.0, 2.0)), FromPyro(SigmoidTransform().inv)])
    ),
    "a composition of PyTorch's": lambda: FromPyro(
        ComposeTransform([SigmoidTransform(), AffineTransform(torch.tensor([3.0]), 2.0, event_dim=1)])
    ),
    "conditioned": lambda: given(lambda family: family),
    "conditioned and recomputed": lambda: given(ConditionalCheckpointed),
    "conditioned and inverted": lambda: given(lambda family: ConditionalInverse(ConditionalInverse(family))),
}


@pytest.mark.parametrize("name", ONTO_THREE_TO_FIVE)
def test_a_density_is_refused_outside_of_what_the_flow_reaches(name: str) -> None:
    q = dist.TransformedDistribution(normal(1), [ONTO_THREE_TO_FIVE[name]()])
    # At 4 the sigmoid is ½: log N(0) − log(2 · ¼) = −½ log 2π + log 2.
    torch.testing.assert_close(
        q.log_prob(torch.tensor([4.0])), torch.tensor(-0.5 * math.log(2 * math.pi) + math.log(2))
    )
    for outside in (2.5, 5.1, math.nan):
        with pytest.raises(ValueError, match="within the support"):
            q.log_prob(torch.tensor([[4.0], [outside]]))
    assert q.support.event_dim == 1
    assert q.support.check(torch.tensor([[3.5], [5.5], [2.0]])).tolist() == [True, False, False]


def test_pixels_have_no_density_beyond_the_unit_interval() -> None:
    q = dist.TransformedDistribution(normal(1, 2, 2), [Chain([Squeeze(), Inverse(Squeeze())]), Inverse(Logit(0.05))])
    # σ = ½ at v = (½ − 0.05) / 0.95, with the slope ¼ / 0.95 in each of four pixels.
    expected = -2 * math.log(2 * math.pi) + 4 * math.log(4 * 0.95)
    torch.testing.assert_close(q.log_prob(torch.full((1, 2, 2), 0.45 / 0.95)), torch.tensor(expected))
    for value in (1.7, 1.001, -0.06, -1.0):
        with pytest.raises(ValueError, match="within the support"):
            q.log_prob(torch.full((1, 2, 2), value))
    chain = dist.TransformedDistribution(
        normal(1, 2, 2), [Chain([Squeeze(), Inverse(Squeeze()), Inverse(Logit(0.05))])]
    )
    assert same_support(chain.support, q.support)
    assert is_real(Inverse(chain.transforms[0]).codomain)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.1, 0.3, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_takes_no_pixel_beyond_its_ends(alpha: float, dtype: torch.dtype) -> None:
    logits = torch.cat([torch.linspace(-1000, 1000, 401), torch.linspace(10, 20, 401)]).to(dtype).reshape(1, 1, -1)
    layer = Logit(alpha)
    assert layer.domain.check(layer.inverse_and_ladj(logits)[0])


def test_the_inverse_of_a_chain_takes_what_the_chain_reaches() -> None:
    inverse = Inverse(stretched())
    assert inverse.domain.check(torch.tensor([[3.5], [5.5], [2.0]])).tolist() == [True, False, False]
    assert same_support(inverse.codomain, constraints.real_vector)
    # What can be taken through an affine layer into a logit: (−3/2, −1).
    into = Chain([affine(3.0, 2.0), FromPyro(SigmoidTransform().inv)])
    assert into.domain.check(torch.tensor([[-1.2], [-0.9], [-1.6]])).tolist() == [True, False, False]
    assert same_support(into.codomain, constraints.real_vector)


def test_parts_that_fit_lose_nothing() -> None:
    fitting = Chain([FromPyro(ExpTransform()), FromPyro(ExpTransform().inv), Revert(), FromPyro(ExpTransform())])
    assert same_support(fitting.codomain, constraints.independent(constraints.positive, 1))
    assert same_support(fitting.domain, constraints.real_vector)
    wide = Chain([FromPyro(ExpTransform())], event_dim=2)
    assert same_support(wide.codomain, constraints.independent(constraints.positive, 2))
    assert same_support(Chain([]).codomain, constraints.real_vector)


def test_parts_that_are_replaced_are_asked_anew() -> None:
    inner = Chain([FromPyro(AffineTransform(0.0, 2.0)), Revert()])
    chain = Chain([inner, affine(3.0, 2.0, 3)])
    assert is_real(chain.codomain)
    assert is_real(Inverse(chain).domain)
    inner.parts[0] = FromPyro(SigmoidTransform())  # within another chain, which asks it
    assert chain.codomain.check(torch.tensor([[3.5] * 3, [5.5] * 3])).tolist() == [True, False]
    density = dist.TransformedDistribution(normal(3), [chain])
    with pytest.raises(ValueError, match="within the support"):
        density.log_prob(torch.full((3,), 5.5))
    chain.parts.insert(0, FromPyro(SigmoidTransform().inv))
    assert chain.domain.check(torch.tensor([[0.5] * 3, [-0.5] * 3])).tolist() == [True, False]


@pytest.mark.parametrize("made", [lambda: Chain([FromPyro(AffineTransform(0.0, 2.0))]), lambda: ImageChain([])])
def test_a_part_of_larger_events_that_came_afterwards_is_refused(made: Callable[[], Chain]) -> None:
    chain = made()
    chain.parts.append(FromPyro(IndependentTransform(AffineTransform(0.0, 2.0), 4)))
    for step in (chain.forward_and_ladj, chain.inverse_and_ladj):
        # Square, so that sums over different dimensions would go through.
        with pytest.raises(ValueError, match="event dimensions more than the whole: make a new Chain"):
            step(torch.ones(2, 2, 2, 2, 2))


def test_two_images_are_not_taken_for_one() -> None:
    # The region and the codomain of both images are the same, the images (3, 5) and (0, 1) are not.
    through = Chain([stretched(), Inverse(Chain([FromPyro(SigmoidTransform()), affine(0.0, 1.0)]))])
    # 3.5 is no value of the second one's forward pass: nothing of (3, 5) goes through.
    assert not through.domain.check(torch.tensor([0.0]))
    same = Chain([stretched(), Inverse(stretched())])
    assert same.domain.check(torch.tensor([0.3]))
    assert same.codomain.check(torch.tensor([0.3]))


def test_draws_of_a_steep_map_are_its_own() -> None:
    """Their inverses in float32 are beyond a bound by more than rounding."""
    torch.manual_seed(0)
    flow = Chain([affine(0.0, 9.0), FromPyro(SigmoidTransform()), affine(7.3, 1e-5)])
    composed = ComposeTransform(
        [AffineTransform(0.0, 9.0), SigmoidTransform(), AffineTransform(torch.tensor([7.3]), 1e-5, event_dim=1)]
    )
    for wrapped in (flow, Checkpointed(flow), Inverse(Inverse(flow)), FromPyro(composed)):
        q = dist.TransformedDistribution(normal(1), [wrapped])
        sample = q.rsample((1000,))
        assert q.log_prob(sample).isfinite().all()
        assert not q.support.check(sample.clone()).all()


def test_reshaped_layers_and_levels() -> None:
    reshaped = Reshaped(FromPyro(StickBreakingTransform().inv), (4,))
    images = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.9]]).reshape(2, 1, 2, 2)
    assert reshaped.domain.check(images).tolist() == [True, False]
    assert reshaped.domain.event_dim == 3
    positive = Reshaped(Chain([FromPyro(ExpTransform())], event_dim=1), (4,))
    assert positive.codomain.check(torch.stack([images[0], -images[1]])).tolist() == [True, False]
    assert is_real(positive.domain)


def test_a_multi_scale_flow_is_one_of_real_latents() -> None:
    flow = MultiScale((2, 2, 2), [Chain([Logit(0.05), Squeeze()]), Squeeze(1)])
    assert same_support(flow.domain, Logit(0.05).domain)
    assert is_real(flow.codomain)
    assert same_support(Inverse(flow).codomain, Logit(0.05).domain)
    for levels, priors in (
        ([Squeeze(), Logit(0.05)], None),
        ([Inverse(Logit(0.05))], None),
        ([Squeeze(), Squeeze(1)], [Inverse(Logit(0.05))]),
    ):
        with pytest.raises(ValueError, match=r"levels and priors are bijections of all real images, .* in a Chain"):
            MultiScale((2, 2, 2), levels, priors)


def test_flow_normal_has_the_support_of_its_flow() -> None:
    q = FlowNormal(torch.zeros(1), torch.zeros(1), stretched())
    torch.testing.assert_close(
        q.log_prob(torch.tensor([4.0])), torch.tensor(-0.5 * math.log(2 * math.pi) + math.log(2))
    )
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.tensor([5.1]))
    assert same_support(FlowNormal(torch.zeros(2), torch.zeros(2), Revert()).support, constraints.real_vector)


def test_a_latent_site_on_an_image_is_refused_in_a_sentence() -> None:
    with pytest.raises(NotImplementedError, match=r"image of a bounded region .* pyro\.deterministic"):
        biject_to(stretched().codomain)


@pytest.mark.parametrize("name", CASES)
def test_values_are_within_the_codomain(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    flow = case.make()
    x: Tensor = torch.randn(5, *case.event_shape)
    assert flow.domain.event_dim == flow.codomain.event_dim == flow.event_dim
    assert flow.domain.check(x).all() == is_real(flow.domain)
    if not is_real(flow.domain):
        x = flow.inverse_and_ladj(x)[0]
    assert flow.codomain.check(flow.forward_and_ladj(x)[0]).all()


PROBABILITIES = {
    "exp": (lambda: FromPyro(ExpTransform()), 1.0, 0.5),
    "a falling one": (lambda: FromPyro(AffineTransform(0.0, -2.0)), 4.0, 0.9772499),  # P(−2z ≤ 4) = Φ(2)
    "a chain": (lambda: Chain([FromPyro(ExpTransform()), FromPyro(AffineTransform(0.0, -1.0))]), -2.0, 0.2441086),
    "two falling ones": (lambda: Chain([FromPyro(AffineTransform(0.0, -1.0))] * 2), 2.0, 0.9772499),
    "an inverse": (lambda: Inverse(FromPyro(AffineTransform(0.0, -0.5))), 4.0, 0.9772499),
    "recomputed": (lambda: Checkpointed(FromPyro(AffineTransform(0.0, -2.0))), 4.0, 0.9772499),
}
"""Flows, a value, and the probability of values up to it."""


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_below_a_value_follow_the_sign(name: str) -> None:
    make, value, probability = PROBABILITIES[name]
    q = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [make()])
    torch.testing.assert_close(q.cdf(torch.tensor(value)), torch.tensor(probability))


@pytest.mark.parametrize(
    ("flow", "name"),
    [
        (Revert(), "Revert"),
        (Chain([Revert(), FromPyro(ExpTransform())]), "Revert"),
        (FromPyro(StickBreakingTransform()), "StickBreakingTransform"),
        (conditional_conv_flow(2, 3).condition(torch.zeros(3)), "_ConditionedConvFlow"),
    ],
)
def test_a_missing_sign_is_named(flow: Bijection, name: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"^{name} has no sign, .* estimate them from samples$"):
        _ = flow.sign


class Holder(nn.Module):
    def __init__(self, flow: Bijection) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.forward_and_ladj(x)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "flow",
    [Revert(), stretched(), Inverse(affine(1.0, 2.0)), FromPyro(StickBreakingTransform()), Checkpointed(Revert())],
)
def test_modules_with_a_bijection_can_be_traced(flow: Bijection) -> None:
    x = torch.randn(3, 1)
    traced = torch.jit.trace(Holder(flow), x)
    y = torch.randn(4, 1)
    torch.testing.assert_close(traced(y), flow.forward_and_ladj(y)[0])
