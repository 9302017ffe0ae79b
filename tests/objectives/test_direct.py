"""The VAEs' own objectives: their gradients against the definitions, and their means against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vi_flows.flows import ConvFlow
from vi_flows.objectives import DIRECT_OBJECTIVES
from vi_flows.vae import VAEConfig, build_vae

SIZES = {
    "g1": dict(latent_dims=(2,), hidden_dims=((3,),)),
    "g2": dict(architecture="g2", latent_dims=(2, 3), hidden_dims=((3,), (4,))),
}
FLOW = {"flow": ConvFlow(activation="tanh", kernel_size=2, dilations=(1,), rank=2)}
X = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
OBJECTIVES = sorted(DIRECT_OBJECTIVES)


def make(size="g1", flow=True, **settings):
    """A VAE at random parameters: far from the identity, where all terms of the gradient matter."""
    torch.manual_seed(5)
    vae = build_vae(VAEConfig(**SIZES[size], **(FLOW if flow else {}), **settings), X.shape[1]).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return vae


def gradients(vae, objective, x, particles, kl_weight, seed):
    vae.zero_grad()
    torch.manual_seed(seed)
    weighted, bound = DIRECT_OBJECTIVES[objective].row_bounds(vae, x, particles, kl_weight)
    weighted.mean().backward()
    return torch.cat([p.grad.flatten() for p in vae.parameters()]), bound


@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
@pytest.mark.parametrize(("objective", "plain"), [("stl", "elbo"), ("dreg", "iwae")])
@pytest.mark.parametrize(("size", "flow"), [("g1", False), ("g1", True), ("g2", True)])
def test_the_mean_gradient_is_that_of_the_plain_bound(size, flow, objective, plain, kl_weight):
    """The same draws for both; their difference has mean zero, and is not zero."""
    vae = make(size, flow)
    x = X.repeat(5_000, 1)
    differences, sizes = [], []
    for seed in range(20):
        found, _ = gradients(vae, objective, x, 3, kl_weight, seed)
        expected, _ = gradients(vae, plain, x, 3, kl_weight, seed)
        differences.append(found - expected)
        sizes.append(expected)
    differences, size_of = torch.stack(differences), torch.stack(sizes).mean(0).norm()
    mean, error = differences.mean(0), differences.std(0) / len(differences) ** 0.5
    assert (mean.abs() <= 5 * error + 1e-12).all()
    assert error.max() > 0
    assert error.norm() < 0.02 * size_of  # else the test would see nothing


def by_hand(vae, x, particles, kl_weight, factors):
    """The two gradients from their formulas, with the draws as leaves between weights and guide."""
    own = copy.deepcopy(vae)
    torch.manual_seed(1)
    draws, _ = vae.guide.sample_and_log_prob(x, particles)
    leaves = [z.detach().requires_grad_() for z in draws]

    def log_weights(model, guide):
        above, log_prior = None, 0.0
        for index, z in enumerate(leaves):
            log_prior = log_prior + model.prior(index, above).log_prob(z)
            above = z
        return model.likelihood(above).log_prob(x) + kl_weight * (log_prior - guide.log_prob(x, leaves))

    for parameter in own.parameters():
        parameter.requires_grad_(False)
    path = log_weights(own.model, own.guide)
    for_guide, for_model = factors(path.detach())
    towards_draws = torch.autograd.grad(path, leaves, for_guide)
    vae.zero_grad()
    torch.autograd.backward(draws, towards_draws)
    log_weights(vae.model, own.guide).backward(for_model)
    return torch.cat([p.grad.flatten() for p in vae.parameters()])


def test_batch_statistics_leave_the_mean_gradient_of_dreg_what_it_is():
    """A hundred rows of three draws."""
    vae = make(flow=False, batch_norm=True)
    x = torch.bernoulli(torch.rand(100, X.shape[1], dtype=torch.float64))
    halves = {}
    for objective in ("dreg", "iwae"):
        each = [gradients(vae, objective, x, 3, 1.0, seed)[0] for seed in range(400)]
        halves[objective] = torch.stack(each[::2]).mean(0), torch.stack(each[1::2]).mean(0)
    of_guide = torch.cat([torch.full((p.numel(),), n.startswith("guide")) for n, p in vae.named_parameters()])
    size_of = torch.stack(halves["iwae"]).mean(0)[of_guide].norm()
    differences = [(a - b)[of_guide] for a, b in zip(halves["dreg"], halves["iwae"], strict=True)]
    assert differences[0] @ differences[1] < (0.04 * size_of) ** 2  # noise drops out of the product of halves


@pytest.mark.parametrize("size", ["g1", "g2"])
def test_draws_that_meet_on_their_way_into_one_another_are_refused(size):
    if size == "g2":
        with pytest.raises(ValueError, match="needs one latent"):
            make("g2", batch_norm=True).check_gated_gradient()
    make("g1", batch_norm=True).check_gated_gradient()
    make(size).check_gated_gradient()


@pytest.mark.parametrize("size", ["g1", "g2"])
def test_each_draw_of_dreg_enters_by_its_squared_weight_for_the_guide_and_by_its_weight_for_the_model(size):
    vae = make(size)

    def factors(log_w):
        share = log_w.exp() / log_w.exp().sum(0)
        return share**2 / len(X), share / len(X)

    expected = by_hand(vae, X, 4, 1.0, factors)
    found, _ = gradients(vae, "dreg", X, 4, 1.0, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", ["g1", "g2"])
def test_each_draw_of_stl_enters_by_one_over_their_number(size):
    vae = make(size)
    equal = torch.full((4, len(X)), 1 / 4 / len(X), dtype=torch.float64)
    expected = by_hand(vae, X, 4, 0.3, lambda _: (equal, equal))
    found, _ = gradients(vae, "stl", X, 4, 0.3, 1)
    torch.testing.assert_close(found, expected)


def test_stl_has_no_gradient_where_the_guide_is_the_posterior():
    """A decoder that ignores z leaves the prior as the posterior; a guide that is N(0, I) has then no gradient left."""
    vae = make(flow=False)
    with torch.no_grad():
        vae.model.logits.weight.zero_()
        vae.guide.heads[0].linear.weight.zero_()
        vae.guide.heads[0].linear.bias.zero_()
    for objective in ("stl", "elbo"):
        gradients(vae, objective, X, 1, 1.0, 0)
        largest = vae.guide.heads[0].linear.bias.grad.abs().max()
        assert (largest < 1e-14) == (objective == "stl")


@pytest.mark.parametrize(("objective", "plain"), [("stl", "elbo"), ("dreg", "iwae")])
def test_the_value_is_that_of_the_bound_and_batch_norm_sees_the_data_once(objective, plain):
    states = []
    for name in (objective, plain):
        vae = make("g2", batch_norm=True)
        before = [p.requires_grad for p in vae.parameters()]
        _, bound = gradients(vae, name, X.repeat(3, 1), 4, 0.5, 0)
        assert [p.requires_grad for p in vae.parameters()] == before
        assert all(p.grad is not None for p in vae.parameters())
        states.append((bound, dict(vae.named_buffers())))
    torch.testing.assert_close(states[0][0], states[1][0], rtol=1e-12, atol=0)
    assert states[1][1]["guide.networks.0.1.num_batches_tracked"] == 1
    for name, buffer in states[1][1].items():
        # Twice the draws have the same statistics; the running variance divides by one less than their number.
        tolerance = 0.01 if objective == "dreg" and name.endswith("running_var") else 1e-12
        torch.testing.assert_close(states[0][1][name], buffer, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({}, "leaky ReLU"), ({"flow": ConvFlow(activation="tanh")}, None), ({"flow": None, "amortized": True}, None)],
)
def test_flows_whose_log_determinant_jumps_are_refused(settings, reason):
    vae = build_vae(VAEConfig(**{"flow": ConvFlow(), "amortized": False, **settings}), 5)
    if reason is None:
        vae.guide.check_path_gradient()
    else:
        with pytest.raises(ValueError, match=reason):
            vae.guide.check_path_gradient()


class NothingRead(TorchDispatchMode):
    """Refuses operations whose results the host waits for: they can't be recorded as a CUDA graph."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_reads_nothing_back(objective):
    vae = make("g2", flow=False, batch_norm=True)
    weight = torch.tensor([0.5], dtype=torch.float64)
    with NothingRead():
        weighted, bound = DIRECT_OBJECTIVES[objective].row_bounds(vae, X, 4, weight)
        weighted.mean().backward()
    assert bound.shape == weighted.shape == (2,)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingRead():
        bound.sum().item()
