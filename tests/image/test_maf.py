"""Masked autoregressive flows of images, and bijections of another shape."""

import pytest
import torch

from tests.transforms.cases import randomise
from vi_flows.flows.image_maf import ImageMAF
from vi_flows.parallel import Divided, Ranks
from vi_flows.transforms import ImageBatchNorm
from vi_flows.transforms.image.reshaped import Reshaped
from vi_flows.transforms.vector.conv_flow import Revert


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(("num_layers", "reversed_order"), [(1, False), (2, None)])
def test_a_layer_sees_the_entries_before_and_two_see_all(num_layers, reversed_order, bounded):
    config = ImageMAF(num_layers=num_layers, hidden_dims=(40,), activation="tanh", bounded=bounded)
    flow = randomise(config.build((2, 2, 3)).double(), 0.3).eval()
    x = torch.randn(2, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse_and_ladj(v)[0], x).reshape(12, 12)
    if reversed_order is None:
        assert (jacobian.tril(-1) != 0).any()
        assert (jacobian.triu(1) != 0).any()
    else:
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.tril()[*torch.tril_indices(12, 12)] != 0).all()
    ladj = flow.inverse_and_ladj(x)[1]
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])


def test_bounded_networks_do_not_multiply_an_outlier():
    """One entry at 1000 moves the others by what the networks make of 8, layer after layer; unbounded ones of 1000."""

    def latents(bounded):
        torch.manual_seed(0)
        config = ImageMAF(num_layers=10, hidden_dims=(40,), scale="tanh", norm="none", bounded=bounded)
        flow = randomise(config.build((1, 4, 4)), 0.1).double().eval()
        x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
        x[..., 0, 0] = 1000.0
        z = flow.inverse_and_ladj(x)[0]
        torch.testing.assert_close(flow.forward_and_ladj(z)[0], x, atol=1e-3, rtol=1e-4)
        return z.flatten()[:-1].abs().max().item()  # the order was reversed nine times

    assert latents(True) < 50
    assert latents(False) > 1000


def test_networks_in_bfloat16_keep_masks_and_inverse():
    """What a rounded network gives for an entry still depends on the entries before it alone."""
    torch.manual_seed(0)
    config = ImageMAF(num_layers=2, hidden_dims=(40,), activation="tanh", norm="none")
    flow = randomise(config.build((2, 2, 3), conditioner_dtype=torch.bfloat16), 0.3).eval()
    exact = config.build((2, 2, 3)).eval()
    exact.load_state_dict(flow.state_dict())
    x = torch.randn(5, 2, 2, 3)
    z, ladj = flow.inverse_and_ladj(x)
    assert z.dtype == ladj.dtype == torch.float32
    in_float32 = exact.inverse_and_ladj(x)[0]
    assert 1e-6 < (z - in_float32).norm() / in_float32.norm() < 0.02
    assert flow.forward_and_ladj(z)[0].dtype == torch.float32
    torch.testing.assert_close(flow.forward_and_ladj(z)[0], x, atol=1e-4, rtol=1e-4)
    single = randomise(
        ImageMAF(num_layers=1, hidden_dims=(40,), activation="tanh").build((2, 2, 3), False, torch.bfloat16), 0.3
    ).eval()
    x = x[:1].requires_grad_()
    last = single.inverse_and_ladj(x)[0].flatten()[4]
    (grad,) = torch.autograd.grad(last, x)
    assert (grad.flatten()[5:] == 0).all()
    assert (grad.flatten()[:5] != 0).all()


def test_batch_norm_has_moments_of_its_own_for_every_entry():
    norm = Reshaped(ImageBatchNorm(6), (6, 1, 1)).train()
    x = torch.randn(500, 1, 2, 3) * torch.arange(1.0, 7).reshape(1, 2, 3) + 5
    y, _ = norm.forward_and_ladj(x)
    assert y.mean(0).abs().max() < 1e-4
    assert (y.std(0) - 1).abs().max() < 1e-2


def test_refusals():
    with pytest.raises(ValueError, match="1 event dimensions"):
        Reshaped(Revert(), (2, 3))
    with pytest.raises(ValueError, match="no shape"):
        Reshaped(Revert(), (5,)).forward_and_ladj(torch.zeros(1, 2, 3))


class TwoProcesses(Ranks):
    size = 2


def test_batch_norm_refuses_a_minibatch_without_a_variance():
    """Of a single value the variance is 0: whatever it is, it would become b, at a gain of 316 in the density."""
    norm, x = Reshaped(ImageBatchNorm(6), (6, 1, 1)).train(), torch.randn(1, 1, 2, 3)
    with pytest.raises(ValueError, match=r"needs two values of every channel.*two images at a time"):
        norm.forward_and_ladj(x)
    norm.forward_and_ladj(x.expand(2, -1, -1, -1))
    ImageBatchNorm(1).train().forward_and_ladj(x)  # the moments are over its pixels
    norm.eval().forward_and_ladj(x)
    with Divided(TwoProcesses(), 2, 0):  # one image each
        norm.train().forward_and_ladj(x)
