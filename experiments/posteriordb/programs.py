"""What a posterior of posteriordb is here: a Pyro program, its arguments and the names of its scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

Draws = Mapping[str, Tensor]
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """One posterior.

    Attributes:
        name: posteriordb's.
        model: a Pyro program; its sites have the names of the Stan program's parameters where it has the same ones.
        arguments: from posteriordb's data to the program's arguments.
        formula: the Stan program's log density with NumPy and SciPy alone, up to a constant, of the data and the
            values of the program's sites; written from the Stan program, not from the Pyro one.
        derived: from draws of the sites to those of the Stan program's parameters.
        data_of: the posterior whose folder has the data, where that has none of its own.
        exact: of the data, independent draws of the posterior, one tensor ``(chains, draws)`` a scalar; for posteriors
            in closed form, whose reference draws need not be there.
    """

    name: str
    model: Callable[..., Any]
    arguments: Callable[[Data], tuple[Any, ...]]
    formula: Callable[[Data, Mapping[str, np.ndarray]], float]
    derived: Callable[[Draws], Draws] = dict
    data_of: str = ""
    exact: Callable[[Data], dict[str, Tensor]] | None = None

    def scalars(self, draws: Draws) -> dict[str, Tensor]:
        """From draws of the sites to one tensor ``(draws,)`` a scalar, by Stan's names: ``beta[1]``, …"""
        result: dict[str, Tensor] = {}
        for name, value in self.derived(draws).items():
            if value.dim() == 1:
                result[name] = value
            else:
                result |= {f"{name}[{j + 1}]": value[:, j] for j in range(value.shape[1])}
        return result


class Flat(dist.ImproperUniform):
    """An improper uniform density that can be sampled, which Pyro's own guides and NUTS do once before they start.

    The draws are images of normal ones; nothing depends on their law.
    """

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Points of the support."""
        transform = biject_to(self.support)
        return transform(torch.randn(transform.inverse_shape(self.shape(torch.Size(sample_shape)))))


def flat(name: str, support: Constraint, *shape: int) -> Tensor:
    """A parameter that a Stan program declares without a distribution."""
    return pyro.sample(name, Flat(support, (), shape))


def tensor(values: Any) -> Tensor:
    """Numbers in PyTorch's default type."""
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())
