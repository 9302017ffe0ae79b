"""An activation that the compiled kernel doesn't have is refused, not computed as another one."""

import pytest
import torch

from vi_flows.kernels import native
from vi_flows.kernels.activations import ACTIVATIONS, Tanh
from vi_flows.kernels.operands import Cotangents, Operands
from vi_flows.kernels.reference import ConvFlowSpec

pytestmark = pytest.mark.skipif(isinstance(native.load(), str), reason="the C kernel was not built")


def test_every_activation_has_a_code():
    assert set(native.ACTIVATION_CODES) == set(ACTIVATIONS)


def test_unknown_activations_are_refused(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "new", Tanh)
    native._stack.cache_clear()
    spec = ConvFlowSpec(2, 1, (1,), (False,), "new")
    operands = Operands(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="has no activation"):
        native.evaluate(operands, spec, False)
    native._stack.cache_clear()


@pytest.mark.parametrize("code", [-1, 5, 99])
def test_codes_of_a_newer_python_are_refused_by_the_library(monkeypatch, code):
    """A code that the compiled file doesn't know, as where the extension is older than the sources."""
    monkeypatch.setitem(ACTIVATIONS, "new", Tanh)
    monkeypatch.setitem(native.ACTIVATION_CODES, "new", code)
    native._stack.cache_clear()
    spec = ConvFlowSpec(2, 1, (1,), (False,), "new")
    operands = Operands(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1))
    try:
        with pytest.raises(ValueError, match=f"no activation of code {code}"):
            native.evaluate(operands, spec, False)
        with pytest.raises(ValueError, match=f"no activation of code {code}"):
            native.backward(operands, Cotangents(torch.zeros(3, 2), torch.zeros(3)), spec, False)
    finally:
        native._stack.cache_clear()
