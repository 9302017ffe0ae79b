"""Which sites of a Pyro program have a support that depends on other latent sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from vi_flows.traces import nodes, stochastic_nodes

__all__ = ["DependentSupportError", "same_support", "sites_with_dependent_support"]

SHIFT = 0.7
"""How far the other latents are moved, in unconstrained space: far enough that a bound which follows them shows it."""


class DependentSupportError(ValueError):
    """The bounds of a latent site depend on other latents, so that no fixed map takes the real line to them."""


def sites_with_dependent_support(
    prototype: Trace, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Names of the latent sites whose bounds move when the latents do, such as ``Uniform(0, 1 − alpha)``.

    The model runs once more with every latent of the prototype moved by the same step in unconstrained space, and the
    supports of the two runs are compared.

    Args:
        prototype: a trace of the model.
        model: a Pyro program.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Returns:
        The names; none where the model can't be run at the moved values.
    """
    moved = prototype.copy()
    for name, site in stochastic_nodes(prototype):
        transform = biject_to(site["fn"].support)
        value = transform(transform.inv(site["value"]) + SHIFT)
        nodes(moved)[name] = {**site, "value": value}
    # Validation would refuse what is to be found out.
    with poutine.block(), pyro.validation_enabled(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            second = poutine.trace(poutine.replay(model, trace=moved)).get_trace(*args, **kwargs)
        except (ArithmeticError, RuntimeError, ValueError):
            return []
    return [
        name
        for name, site in stochastic_nodes(prototype)
        if name in second.nodes and not same_support(site["fn"].support, nodes(second)[name]["fn"].support)
    ]


def same_support(a: Constraint, b: Constraint) -> bool:
    """Whether two constraints are of one kind with the same numbers in them."""
    if type(a) is not type(b):
        return False
    first, second = list(_bounds(a)), list(_bounds(b))
    return len(first) == len(second) and all(
        x.shape == y.shape and torch.allclose(x, y) for x, y in zip(first, second, strict=True)
    )


def _bounds(constraint: Constraint) -> Iterator[Tensor]:
    """The numbers in a constraint and in those it is made of."""
    for value in vars(constraint).values():
        if isinstance(value, Constraint):
            yield from _bounds(value)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Constraint):
                    yield from _bounds(item)
        elif isinstance(value, Tensor | float | int) and not isinstance(value, bool):
            yield torch.as_tensor(value, dtype=torch.float64)
