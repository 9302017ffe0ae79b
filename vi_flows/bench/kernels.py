"""Rows about the fused ConvFlow alone: against plain PyTorch, its own inverse, and other libraries' flows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor, nn

from vi_flows import flows
from vi_flows.bench.measure import Measurement, compare
from vi_flows.bench.rows import Unavailable
from vi_flows.kernels import active_kernel, use_kernel
from vi_flows.transforms import ConvFlowStack

__all__ = ["PEERS", "import_peer", "inverse_over_forward", "peer_over_fused", "plain_over_fused"]

DIM, BLOCKS = 50, 8
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def trained_like_flow() -> ConvFlowStack:
    """K = 8 blocks of 6 layers on 50 dimensions, away from the identity."""
    torch.manual_seed(0)
    return flows.conv_flow(DIM, BLOCKS, init_scale=0.1)


def training_pass(evaluate: Evaluate, module: nn.Module, num_rows: int) -> Callable[[], None]:
    """Forward, log-determinant and backward to the input and all parameters."""
    torch.manual_seed(1)
    z = torch.randn(num_rows, DIM, requires_grad=True)
    g_y, g_ladj = torch.randn(num_rows, DIM), torch.randn(num_rows)
    leaves = [z, *module.parameters()]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        y, ladj = evaluate(z)
        torch.autograd.backward((y, ladj), (g_y, g_ladj))

    return run


def plain_over_fused(num_rows: int, rounds: int, kernel: str | None = None) -> tuple[Measurement, str]:
    """Goal 1; or the same of another kernel than the active one, such as the fallback ``torch``."""
    flow = trained_like_flow()
    run, kernel = training_pass(flow.forward_and_ladj, flow, num_rows), kernel or active_kernel()

    def by(name: str) -> Callable[[], None]:
        def work() -> None:
            with use_kernel(name):
                run()

        return work

    return compare(by("reference"), by(kernel), rounds), f"kernel {kernel}"


def inverse_over_forward(num_rows: int, rounds: int) -> tuple[Measurement, str]:
    """Goal 3, with the round trip's error relative to the largest entry."""
    flow = trained_like_flow().requires_grad_(False)
    torch.manual_seed(1)
    z = torch.randn(num_rows, DIM)
    y, _ = flow.forward_and_ladj(z)
    error = ((flow.inverse_and_ladj(y)[0] - z).abs().max() / z.abs().max()).item()
    measured = compare(lambda: flow.inverse_and_ladj(y), lambda: flow.forward_and_ladj(z), rounds)
    return measured, f"round trip within {error:.1e} in float32 ({'meets' if error <= 1e-5 else 'misses'} 1e-5)"


def import_peer(name: str) -> ModuleType:
    """Another library.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed (the extra `bench`): {error}") from error


def _pyro_iaf() -> tuple[nn.Module, Evaluate]:
    flow = flows.repeat_pyro(lambda: pyro_transforms.affine_autoregressive(DIM), 4, revert=True)
    return flow, flow.forward_and_ladj


def _pyro_planar() -> tuple[nn.Module, Evaluate]:
    flow = flows.repeat_pyro(lambda: pyro_transforms.planar(DIM), 8)
    return flow, flow.forward_and_ladj


def _zuko_maf() -> tuple[nn.Module, Evaluate]:
    flow = import_peer("zuko").flows.MAF(DIM, transforms=4)
    return flow, lambda x: flow().transform.call_and_ladj(x)


def _normflows(make_layer: Callable[[ModuleType], nn.Module], layers: int) -> tuple[nn.Module, Evaluate]:
    normflows = import_peer("normflows")
    parts = nn.ModuleList(make_layer(normflows) for _ in range(layers))

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(())
        for part in parts:
            z, ladj = part(z)
            total = total + ladj
        return z, total

    return parts, evaluate


def _normflows_planar() -> tuple[nn.Module, Evaluate]:
    return _normflows(lambda nf: nf.flows.Planar((DIM,), act="leaky_relu"), 8)


def _normflows_real_nvp() -> tuple[nn.Module, Evaluate]:
    mask = torch.arange(DIM) % 2
    masks = [mask, 1 - mask] * 4

    def layer(nf: ModuleType) -> nn.Module:
        s, t = (nf.nets.MLP([DIM, 2 * DIM, DIM], init_zeros=True) for _ in range(2))
        return nf.flows.MaskedAffineFlow(masks.pop(), t, s)

    return _normflows(layer, 8)


PEERS: dict[str, Callable[[], tuple[nn.Module, Evaluate]]] = {
    "Pyro IAF x4": _pyro_iaf,
    "zuko MAF x4": _zuko_maf,
    "Pyro planar x8": _pyro_planar,
    "normflows planar x8": _normflows_planar,
    "normflows RealNVP x8": _normflows_real_nvp,
}
"""Other flows of 50 dimensions, at their libraries' default widths: module, and forward with log-determinant."""


def peer_over_fused(peer: str, num_rows: int, rounds: int) -> tuple[Measurement, str]:
    """Goal 6."""
    torch.manual_seed(0)
    module, evaluate = PEERS[peer]()
    flow = trained_like_flow()
    parameters = sum(p.numel() for p in module.parameters()), sum(p.numel() for p in flow.parameters())
    measured = compare(
        training_pass(evaluate, module, num_rows), training_pass(flow.forward_and_ladj, flow, num_rows), rounds
    )
    return measured, "{} and {} parameters".format(*parameters)
