"""Values of one floating-point type, parameters of another: the wider one in both results, or a sentence."""

from __future__ import annotations

import pytest
import torch

from tests.transforms.cases import CASES, build, inputs

OURS = [name for name in CASES if not name.startswith("pyro")]  # whose transforms have PyTorch's words for it


@pytest.mark.parametrize("narrow", ["values", "parameters"])
@pytest.mark.parametrize("name", OURS)
def test_both_results_have_the_wider_type_or_it_is_refused(name: str, narrow: str) -> None:
    own, other = (torch.float32, torch.float64) if narrow == "parameters" else (torch.float64, torch.float32)
    bijection, x = build(name, dtype=own).eval(), inputs(name, 3, dtype=own)
    y = bijection.forward_and_ladj(x)[0].detach()  # of the shape that the inverse takes
    refusals: list[str] = []
    passes = ((bijection.forward_and_ladj, x), (bijection.inverse_and_ladj, y))
    for evaluate, value in passes[: 1 + CASES[name].invertible]:
        try:
            result, ladj = evaluate(value.to(other))
        except ValueError as error:
            refusals.append(str(error))
        else:
            # Where there are no parameters nothing has another type than the values.
            assert result.dtype is ladj.dtype
            assert result.dtype in (torch.float64, other)
    assert all("convert one of them" in refusal for refusal in refusals)
