"""Layers of 16 bits: PyTorch solves no equations and transforms no signals in them, which go through float32."""

from __future__ import annotations

import pytest
import torch

from tests.transforms.cases import CASES, randomise
from vi_flows.transforms import Affine, CircularConv, Conv1x1, OneSidedConv2d, PeriodicConv2d

TYPES = [torch.bfloat16, torch.float16]
MOVED = [name for name, case in CASES.items() if case.moves]


@pytest.mark.parametrize("dtype", [TYPES[0], pytest.param(TYPES[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MOVED)
def test_a_layer_of_16_bits_does_what_it_does_in_32(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    x = torch.randn(3, *case.event_shape).to(dtype)
    low = randomise(case.make(), 0.1).eval().to(dtype)
    for inverse in (False, True)[: 1 + case.invertible]:
        value = low.forward_and_ladj(x)[0].detach() if inverse else x  # of the shape that the inverse takes
        pairs = []
        for dt in (dtype, torch.float32):
            layer = low.to(dt)
            pairs.append((layer.inverse_and_ladj if inverse else layer.forward_and_ladj)(value.to(dt)))
        low.to(dtype)
        (y, ladj), (expected, expected_ladj) = pairs
        assert y.dtype == ladj.dtype == dtype
        assert (y - expected).norm() < 0.05 * expected.norm()
        assert (ladj - expected_ladj).abs().max() < 0.05 * (1 + x[0].numel())


@pytest.mark.parametrize("dtype", TYPES)
def test_solutions_by_hand(dtype: torch.dtype) -> None:
    full = Affine(torch.tensor([1.0, 0.0]), 2.0).to(dtype)
    with torch.no_grad():
        full.lower.fill_(0.5 / full.gains["lower"])
    # z = (3 − 1)/2 = 1 and (5 − 0)/2 − ½ · 1 = 2.
    x, ladj = full.inverse_and_ladj(torch.tensor([3.0, 5.0], dtype=dtype))
    torch.testing.assert_close(x, torch.tensor([1.0, 2.0], dtype=dtype))
    torch.testing.assert_close(ladj.float(), torch.tensor(-1.386), atol=0.01, rtol=0)
    for layer in (
        Conv1x1(2, rotation=False), OneSidedConv2d(2, rotation=False), PeriodicConv2d(2, rotation=False),
        *(CircularConv((2, 3, 3), filter) for filter in ("cepstrum", "kernel", "cosine")),
    ):  # fmt: skip
        image = torch.tensor([1.0, -2.0], dtype=dtype)[:, None, None].expand(1, 2, 3, 3)
        for evaluate in (layer.to(dtype).forward_and_ladj, layer.inverse_and_ladj):
            y, ladj = evaluate(image)
            torch.testing.assert_close(y, image, atol=0.02, rtol=0)
            assert y.dtype == ladj.dtype == dtype
            assert ladj.abs().item() < 0.02
