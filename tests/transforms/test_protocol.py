"""The adapter to PyTorch's and Pyro's Transform protocol, and its memo."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from tests.transforms.cases import randomise
from vi_flows import FlowNormal, conditional_conv_flow, conv_flow, flows
from vi_flows.flows import FLOWS
from vi_flows.transforms import (
    Bijection,
    Chain,
    Checkpointed,
    ConditionalChain,
    ConditionalCheckpointed,
    ConditionalInverse,
    ConvFlow,
    Inverse,
    QuadraticTails,
    Revert,
    TriangularScale,
)


class Counted(Bijection):
    """Shift by a conditioner's output; counts the conditioner's passes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conditioner = nn.Linear(1, dim)
        self.passes = 0

    def _shift(self, like):
        self.passes += 1
        return self.conditioner(like.new_ones(1))

    def forward_and_ladj(self, x):
        return x + self._shift(x), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y):
        return y - self._shift(y), y.new_zeros(y.shape[:-1])


def flow_distribution(flow, dim, dtype=torch.float32):
    return dist.TransformedDistribution(dist.Normal(torch.zeros(dim, dtype=dtype), 1.0).to_event(1), [flow])


@pytest.fixture
def flow():
    torch.manual_seed(0)
    return randomise(conv_flow(4, 2), 0.3)


@pytest.mark.parametrize(
    "make", [lambda: conv_flow(3, 1), lambda: flows.MAF(2).build(3), lambda: Inverse(conv_flow(3, 1))]
)
def test_fitting_the_same_full_batch_twice(make):
    torch.manual_seed(1)
    flow = randomise(make(), 0.3)
    data = torch.randn(50, 3)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -flow_distribution(flow, 3).log_prob(data).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[-1]
    # and twice without a step in between
    for _ in range(2):
        flow_distribution(flow, 3).log_prob(data).mean().backward()


def test_log_prob_is_fresh_after_an_update_under_no_grad(flow):
    distribution = flow_distribution(flow, 4)
    sample = distribution.rsample((5,))
    before = distribution.log_prob(sample)
    with torch.no_grad():
        flow.theta.add_(0.3)
    after = distribution.log_prob(sample)
    assert not torch.allclose(before, after)
    expected = flow_distribution(copy.deepcopy(flow), 4).log_prob(sample.clone())
    assert torch.allclose(after, expected)


def test_log_prob_is_fresh_after_the_sample_changed_in_place(flow):
    distribution = flow_distribution(flow, 4)
    with torch.no_grad():
        sample = distribution.sample((5,))
        before = distribution.log_prob(sample)
        sample.add_(1.0)
        assert not torch.allclose(distribution.log_prob(sample), before)


def test_sampling_under_no_grad_then_scoring_gives_gradients(flow):
    distribution = flow_distribution(flow, 4)
    with torch.no_grad():
        sample = distribution.sample((5,))
    distribution.log_prob(sample).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_scoring_under_no_grad_then_with_gradients(flow):
    data = torch.randn(5, 4)
    distribution = flow_distribution(flow, 4)
    with torch.no_grad():
        distribution.log_prob(data)
    assert distribution.log_prob(data).requires_grad
    frozen = flow_distribution(copy.deepcopy(flow).requires_grad_(False), 4)
    sample = frozen.sample((5,))
    frozen.log_prob(sample)
    sample.requires_grad_()
    assert frozen.log_prob(sample).requires_grad


def test_memo_follows_train_mode_and_parameter_swap(flow):
    distribution = flow_distribution(flow, 4)
    sample = distribution.rsample((5,))
    assert flow._recall(y=sample) is not None
    flow.eval()
    assert flow._recall(y=sample) is None
    flow.train()
    flow.bias = nn.Parameter(flow.bias.detach() + 1)
    assert flow._recall(y=sample) is None


def test_inference_mode_works_without_memo(flow):
    distribution = flow_distribution(flow, 4)
    with torch.inference_mode():
        sample = distribution.sample((5,))
        inside = distribution.log_prob(sample)
    assert torch.allclose(inside, distribution.log_prob(sample.clone()), atol=1e-4)


def test_vmap_and_functional_call(flow):
    x = torch.randn(6, 4)
    per_row = torch.vmap(lambda row: flow.forward_and_ladj(row))(x)
    whole = flow.forward_and_ladj(x)
    assert torch.allclose(per_row[0], whole[0], atol=1e-6)
    assert torch.allclose(per_row[1], whole[1], atol=1e-6)
    assert torch.allclose(torch.vmap(lambda row: flow(row))(x), whole[0], atol=1e-6)


def elbos():
    yield "Trace_ELBO", Trace_ELBO(), 1
    yield "Trace_ELBO 3 particles", Trace_ELBO(num_particles=3), 3
    yield "Trace_ELBO vectorised", Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=0), 1
    yield "TraceMeanField_ELBO", TraceMeanField_ELBO(), 1
    yield "RenyiELBO", RenyiELBO(alpha=0, num_particles=3), 3
    yield "RenyiELBO vectorised", RenyiELBO(0, num_particles=3, vectorize_particles=True, max_plate_nesting=0), 1


@pytest.mark.parametrize(("elbo", "passes"), [pytest.param(e, n, id=i) for i, e, n in elbos()])
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: Chain([c, Revert()]), lambda c: Inverse(Inverse(c))])
def test_one_pass_per_conditioner(elbo, passes, wrap):
    """A sample with its log-probability costs one pass of each conditioner, under every ELBO of Pyro's."""
    pyro.clear_param_store()
    counted = Counted(2)
    flow = wrap(counted)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(0.5))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow_distribution(flow, 2))

    elbo.loss_and_grads(model, guide)
    assert counted.passes == passes
    assert counted.conditioner.weight.grad is not None
    counted.passes = 0
    elbo.loss(model, guide)
    assert counted.passes == passes


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transformed_distribution_with_nested_batches(flow, shape, dtype):
    flow = flow.to(dtype)
    base = dist.Normal(torch.zeros(*shape, 4, dtype=dtype), 1.0).to_event(1)
    distribution = dist.TransformedDistribution(base, [flow])
    sample = distribution.rsample((2,))
    assert sample.shape == (2, *shape, 4)
    assert sample.dtype == dtype
    log_prob = distribution.log_prob(sample)
    assert log_prob.shape == (2, *shape)
    x, ladj = flow.inverse_and_ladj(sample)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert torch.allclose(log_prob, base.log_prob(x) + ladj, atol=tolerance)
    assert distribution.expand((7, *shape)).sample().shape == (7, *shape, 4)


def test_density_integrates_to_one_in_two_dimensions():
    torch.manual_seed(3)
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    for flow in (conv_flow(2, 4), conv_flow(2, 2, activation="tanh"), conv_flow(2, 2, activation="softplus")):
        flow = randomise(flow.double(), 0.4)
        density = flow_distribution(flow, 2, torch.float64).log_prob(points).exp()
        total = density.sum() * (grid[1] - grid[0]) ** 2
        assert abs(total - 1) < 5e-3


def test_pyro_sample_and_conditional_distribution():
    family = randomise(conditional_conv_flow(3, 2), 0.3)
    conditional = dist.ConditionalTransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [family])
    context = torch.randn(5, 2)
    with pyro.plate("rows", 5):
        z = pyro.sample("z", conditional.condition(context))
    assert z.shape == (5, 3)
    one = conditional.condition(context[2]).log_prob(z[2])
    assert torch.allclose(conditional.condition(context).log_prob(z)[2], one, atol=1e-5)


def test_stack_equals_a_chain_of_single_layers():
    stack = randomise(conv_flow(6, 2, 3, (1, 2)), 0.5)
    parts = []
    for layer, dilation in enumerate(stack.spec.dilations):
        single = ConvFlow(6, 3, dilation)
        single.load_state_dict({n: p[layer : layer + 1] for n, p in stack.state_dict().items()})
        parts.append(single)
        if stack.spec.reverts[layer]:
            parts.append(Revert())
    x = torch.randn(9, 6)
    for mine, theirs in zip(stack.forward_and_ladj(x), Chain(parts).forward_and_ladj(x), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_parameter_counts_of_the_paper():
    eight_layers = conv_flow(2, 4)
    assert eight_layers.spec.num_layers == 8
    assert sum(p.numel() for p in eight_layers.parameters()) == 40
    assert conv_flow(50).spec.dilations == (1, 2, 4, 8, 16, 32)
    assert conv_flow(100).spec.dilations == (1, 2, 4, 8, 16, 32, 64)
    assert conv_flow(50).spec.kernel_size == 5


def test_identity_at_initialization():
    x = torch.randn(5, 6)
    assert torch.equal(conv_flow(6, 2).forward_and_ladj(x)[0], x)  # two Reverts cancel
    assert torch.equal(conv_flow(6, 1).forward_and_ladj(x)[0], x.flip(-1))
    family = conditional_conv_flow(6, 3, 2)
    assert torch.equal(family.condition(torch.randn(5, 3)).forward_and_ladj(x)[0], x)
    assert not torch.equal(conv_flow(6, 2, init_scale=0.1).forward_and_ladj(x)[0], x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conv_flow(0), "input_dim"),
        (lambda: conv_flow(3, 0), "block"),
        (lambda: conv_flow(3, 1.5), "num_blocks must be a whole number, got 1.5"),
        (lambda: conv_flow(3, dilations=2), r"dilations must be of type Iterable, got int: one for each layer"),
        (lambda: conditional_conv_flow(3, 1.5), "context_dim must be a whole number, got 1.5"),
        (lambda: conditional_conv_flow(3, 2, rank=1.5), "rank must be a whole number, got 1.5"),
        (lambda: QuadraticTails(2.5), "input_dim must be a whole number, got 2.5"),
        (lambda: TriangularScale(2.5), "input_dim must be a whole number, got 2.5"),
        (lambda: conv_flow(3, 1, 0), "kernel_size"),
        (lambda: conv_flow(3, 1, 2, (0,)), "dilations"),
        (lambda: conv_flow(3, 1, 2, ()), "layer"),
        (lambda: conv_flow(3, activation="relu6"), "leaky_relu"),
        (lambda: conv_flow(3, negative_slope=-0.1), "negative_slope"),
        (lambda: conv_flow(3)(torch.zeros(5, 4)), "3 dimensions"),
        (lambda: conv_flow(3)(torch.tensor(0.0)), "3 dimensions"),
        (lambda: conditional_conv_flow(3, 2).condition(torch.zeros(5, 4)), "expected 2"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_chain_refuses_what_is_not_a_bijection():
    with pytest.raises(TypeError, match="FromPyro"):
        Chain([dist.transforms.Planar(3)])


@pytest.mark.parametrize("made", [Inverse, Checkpointed, lambda part: Chain([part])])
def test_compositions_say_what_takes_a_context(made):
    with pytest.raises(TypeError, match=r"got ConditionalConvFlow; .*use Conditional[A-Z].* for one with a context"):
        made(conditional_conv_flow(3, 2))


@pytest.mark.parametrize(
    "made",
    [
        Inverse, Checkpointed, ConditionalInverse, ConditionalCheckpointed,
        lambda part: Chain([part]), lambda part: ConditionalChain([part]),
    ],
)  # fmt: skip
def test_compositions_take_bijections_alone(made):
    for part in (torch.nn.ReLU(), dist.transforms.AffineTransform(0.0, 1.0), ConvFlow):
        with pytest.raises(TypeError, match=r"must be of type .*Bijection, got .*; wrap it in FromPyro"):
            made(part)
    with pytest.raises(TypeError, match="made of several parts"):
        ConditionalChain(Revert())


def test_flows_without_inverse_say_so():
    flow = flows.repeat_pyro(lambda: dist.transforms.planar(3), 2)
    distribution = flow_distribution(flow, 3)
    distribution.log_prob(distribution.rsample((4,)))
    with pytest.raises(NotImplementedError, match="no inverse"):
        distribution.log_prob(torch.zeros(4, 3))


@pytest.mark.parametrize("name", sorted(FLOWS))
@pytest.mark.parametrize("way", ["forward_and_ladj", "inverse_and_ladj"])
def test_rows_that_do_not_go_with_the_contexts_are_refused(name, way):
    flow = FLOWS[name]().build(4, 3).condition(torch.randn(3, 3))
    with pytest.raises(ValueError, match=r"batch of \(5,\), which doesn't go with \(3,\): one row is for each context"):
        getattr(flow, way)(torch.randn(5, 4))
    assert [tuple(t.shape) for t in flow.forward_and_ladj(torch.randn(5, 1, 4))] == [(5, 3, 4), (5, 3)]
    base = dist.Normal(torch.zeros(5, 4), 1.0).to_event(1)
    for made in (
        lambda: dist.TransformedDistribution(base, [flow]),
        lambda: FlowNormal(torch.zeros(5, 4), torch.zeros(4), flow),
    ):
        with pytest.raises(ValueError, match=r"batch of \(5,\), which doesn't go with \(3,\)"):
            made()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda part: Chain([part, Revert()]), Inverse, Checkpointed, lambda part: Inverse(Checkpointed(Chain([part]))),
        lambda part: Chain([Revert(), part], event_dim=2),
    ],
    ids=["chain", "inverse", "checkpointed", "nested", "wider"],
)  # fmt: skip
def test_compositions_have_the_batch_shape_of_their_contexts(wrap):
    part = conditional_conv_flow(4, 3).condition(torch.randn(5, 2, 3))
    flow = wrap(part)
    expected = (5, 2, 4)[: 3 - flow.event_dim]
    assert tuple(flow.batch_shape) == expected
    assert tuple(flow.forward_and_ladj(torch.randn(2, 4))[1].shape) == expected
    assert wrap(Revert()).batch_shape == torch.Size()
