"""What a posterior with a known truth is, and the collection of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Draws = Mapping[str, Tensor]
Moments = Mapping[str, tuple[float, float]]


def scalars(draws: Draws) -> dict[str, Tensor]:
    """From draws of the sites ``(draws, …)`` to one tensor ``(draws,)`` a scalar: ``x``, ``x[0]``, …"""
    found: dict[str, Tensor] = {}
    for name, value in draws.items():
        if value.dim() == 1:
            found[name] = value
        else:
            found |= {f"{name}[{j}]": column for j, column in enumerate(value.flatten(1).T)}
    return found


@dataclass(frozen=True)
class Known:
    """One posterior.

    Attributes:
        name: of its record.
        model: a Pyro program.
        args: its arguments.
        truth: means and standard deviations by scalar.
        source: where they come from.
        quantities: from draws of the sites to those scalars.
        modes: for a posterior of several modes, values of its sites in one of them and a spread there.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    truth: Moments
    source: str
    quantities: Callable[[Draws], Draws] = scalars
    modes: tuple[dict[str, Tensor], float] | None = None

    def errors(self, draws: Draws) -> dict[str, Any]:
        """The largest error of a mean, in standard deviations, and the least and the largest ratio of the sds."""
        found = self.quantities(draws)
        off = {k: abs(float(found[k].double().mean()) - mean) / sd for k, (mean, sd) in self.truth.items()}
        ratio = {k: float(found[k].double().std()) / sd for k, (_, sd) in self.truth.items()}
        worst = max(off, key=off.__getitem__)
        return {
            "mean_error": round(off[worst], 4), "at": worst,
            "least_sd_ratio": round(min(ratio.values()), 4), "largest_sd_ratio": round(max(ratio.values()), 4),
        }  # fmt: skip


def held_out(name: str) -> bool:
    """Whether a posterior was kept for the final figures, and not looked at while the rules were made.

    Half of them, by a hash of the name, so that nobody chose.
    """
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def collection() -> dict[str, Callable[[], Known]]:
    """All posteriors by name; loading one may need ``VI_FLOWS_DATA``."""
    from experiments.posteriordb.collection import PROGRAMS
    from experiments.verdicts import synthetic

    found: dict[str, Callable[[], Known]] = dict(synthetic.POSTERIORS)
    found |= {name: partial(_of_gallery, name) for name in ("logistic", "nile", "rats", "bnn")}
    found |= {name: partial(_of_posteriordb, name) for name in PROGRAMS}
    return found


def _of_gallery(name: str) -> Known:
    from experiments.gallery.__main__ import POSTERIORS
    from vi_flows.records import Record

    entry = POSTERIORS[name]()
    reference = Record.read(entry.path).figures["reference"]
    truth = {key: (mean, reference["sd"][key]) for key, mean in reference["mean"].items()}
    return Known(name, entry.model, entry.args, truth, reference["source"], entry.quantities)


def _of_posteriordb(name: str) -> Known:
    from experiments.posteriordb.collection import PROGRAMS, load

    program = PROGRAMS[name]
    data, chains = load(name)
    truth = {key: (float(x.mean()), float(x.std())) for key, x in chains.items()}
    args: tuple[Any, ...] = program.arguments(data)
    return Known(name, program.model, args, truth, "posteriordb", program.scalars)


def as_float(values: Any) -> Tensor:
    """Numbers in PyTorch's default type."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
