"""A function of one draw, evaluated at many: in one pass where that can be, also where the function writes in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vi_flows.parameters import left_as_found

__all__ = ["OverDraws"]

Function = Callable[[dict[Any, Tensor]], Any]
Way = Callable[[Function, dict[Any, Tensor], str], Any]

CANNOT = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, AssertionError)
"""What :func:`torch.func.vmap`, and a program that meets its tensors, raise where they can't follow one another."""

MADE_ANEW = {
    torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.zeros_like, torch.ones_like, torch.full_like,
    torch.empty_like, torch.clone, torch.Tensor.clone, torch.Tensor.new_zeros, torch.Tensor.new_ones,
    torch.Tensor.new_full, torch.Tensor.new_empty,
}  # fmt: skip
"""What makes a tensor that is likely to be written into; those of ``torch.tensor`` are data, on which a program may
branch."""

MAX_ELEMENTS = 2**27
"""Numbers of a tensor made anew, over all draws, up to which it is made once for each draw."""


class OverDraws:
    """Evaluates functions of one draw at all draws; which way works is found at the first call and kept.

    The first way is :func:`torch.func.vmap`. It can't follow a program that writes a latent value into a tensor without
    one (``x = torch.zeros(n); x[0] = z``) or chooses by a mask (``x[x > 0] = 0``), as do loops over time,
    ``OrderedLogistic`` and ``Multinomial``. The second way is ``vmap`` with tensors that are made once for each draw,
    and masks that fill; it is compared with single runs once. The last one is a loop.

    Args:
        program: which the functions run; tensors that it keeps on itself do not outlive a pass.
        at_once: whether to try one pass.
        randomness: as of ``vmap``: ``same`` or ``different`` numbers for all draws. Passes with different numbers
            can't be compared with single runs, and are not.
    """

    def __init__(self, program: Callable, at_once: bool = True, randomness: str = "same") -> None:
        self._program = program
        self._ways: list[Way] = [_mapped, _mapped_with_own_tensors] if at_once else []
        self._randomness, self._sure = randomness, randomness != "same"

    @property
    def at_once(self) -> bool:
        """Whether one pass was enough so far."""
        return bool(self._ways)

    def __call__(self, fn: Function, values: Mapping[Any, Tensor]) -> Any:
        """``fn`` of each draw.

        Args:
            fn: gives a tensor, or a tuple or dictionary of tensors, from one value of each site.
            values: by site, draws along the first dimension.

        Returns:
            The results, draws along the first dimension.
        """
        values = dict(values)
        for index, way in enumerate(self._ways):
            try:
                with left_as_found(self._program):
                    results = way(fn, values, self._randomness)
                if way is not _mapped and not self._sure:
                    self._sure = _agrees(fn, values, results)
                if way is _mapped or self._sure:
                    self._ways = self._ways[index:]
                    return results
            except torch.linalg.LinAlgError:  # a matrix of these draws, which a loop would only come to later
                raise
            except CANNOT:
                # The function does something that this way can't follow (`.item()`, a branch on data). If it is
                # simply broken, the loop below raises its own error, and nothing is known of the way.
                pass
        results = _one_by_one(fn, values, range(next(iter(values.values())).shape[0]))
        self._ways = []
        return results


def _one_by_one(fn: Function, values: Mapping[Any, Tensor], places: Iterable[int]) -> Any:
    results = [fn({name: value[i] for name, value in values.items()}) for i in places]
    return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *results)


@torch.no_grad()
def _agrees(fn: Function, values: Mapping[Any, Tensor], results: Any) -> bool:
    """Whether single runs at the first and the last draw give the results that are there."""
    places = [0, next(iter(values.values())).shape[0] - 1]
    alone, _ = torch.utils._pytree.tree_flatten(_one_by_one(fn, values, places))
    found, _ = torch.utils._pytree.tree_flatten(results)
    return all(
        torch.allclose(one.double(), other[places].double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for one, other in zip(alone, found, strict=True)
    )


def _mapped(fn: Function, values: dict[Any, Tensor], randomness: str) -> Any:
    return torch.func.vmap(fn, randomness=randomness)(values)


def _mapped_with_own_tensors(fn: Function, values: dict[Any, Tensor], randomness: str) -> Any:
    size = next(iter(values.values())).shape[0]

    def with_own_tensors(draw: dict[Any, Tensor]) -> Any:
        zero = next(iter(draw.values())).new_zeros(())
        with _OwnTensors(zero, MAX_ELEMENTS // max(size, 1)):
            return fn(draw)

    return torch.func.vmap(with_own_tensors, randomness=randomness)(values)


class _OwnTensors(TorchFunctionMode):
    """Within :func:`torch.func.vmap`, makes new floating-point tensors once for each draw, and lets masks fill.

    Args:
        zero: one of each draw.
        max_elements: of a tensor.
    """

    def __init__(self, zero: Tensor, max_elements: int) -> None:
        super().__init__()
        self.zero, self.max_elements = zero, max_elements

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what was asked for; see the class."""
        if func is torch.Tensor.__setitem__ and _fills(*args):
            x, mask, value = args
            x.copy_(torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), value, x))
            return None
        result = func(*args, **(kwargs or {}))
        if func in MADE_ANEW and result.is_floating_point() and result.numel() <= self.max_elements:
            return result + self.zero.to(result)
        return result


def _fills(x: Tensor, index: Any, value: Any) -> bool:
    """Whether ``x[index] = value`` puts one number wherever a mask says so."""
    one = not isinstance(value, Tensor) or value.dim() == 0
    return one and isinstance(index, Tensor) and index.dtype is torch.bool
