"""Draws of parameters and data from a Pyro program: what amortised inference learns from."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from vi_flows.guides.alone import alone
from vi_flows.guides.observations import check_not_crossed
from vi_flows.guides.right_draws import DrawnAnew
from vi_flows.guides.sites import innermost, is_discrete, is_fixed, unmasked
from vi_flows.guides.stick_breaking import to_support
from vi_flows.guides.supports import check_support
from vi_flows.traces import Site, is_subsample, nodes

__all__ = ["JointDraws", "Simulator", "as_names"]

NUM_CHECKS = 4
"""Rows of a pass for many draws at once that are compared with a run of their own."""


@dataclass(frozen=True)
class JointDraws:
    """``N`` joint draws of a program.

    Attributes:
        latents: unconstrained parameters by site, each ``(N,) + its shape``.
        values: constrained parameters by site, each ``(N,) + site shape``.
        data: by site, each ``(N,) + site shape``.
    """

    latents: dict[str, Tensor] = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)
    data: dict[str, Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))


def as_names(names: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Names of sites, of which there may be one: ``"y"`` or ``("x", "y")``."""
    return (names,) if isinstance(names, str) else None if names is None else tuple(names)


class _Unobserve(DrawnAnew):
    """Draws the observed sites, too, and refuses what can't be drawn.

    Args:
        alone: whether the run is of one draw, so that shapes can be compared.
    """

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def _pyro_sample(self, msg: Any) -> None:
        fn = innermost(msg["fn"])
        if isinstance(fn, dist.Unit):
            raise ValueError(
                f"site {msg['name']!r} is a pyro.factor: draws of the program know nothing of it, so that what is "
                "learnt from them would not either; sample from the density that it stands for"
            )
        whole = all(frame.full_size in (None, frame.size) for frame in msg["cond_indep_stack"])
        counted = bool(unmasked(msg)[1].all()) and (not whole or bool(torch.as_tensor(msg["scale"] == 1.0).all()))
        if not counted and not is_fixed(fn):
            raise ValueError(
                f"site {msg['name']!r} has a mask or a scale, which draws of the program know nothing of: sample only "
                "what is to count, and choose the spread instead of a power of the density"
            )
        if isinstance(fn, dist.ImproperUniform):
            raise ValueError(
                f"site {msg['name']!r} has an improper prior, which can't be drawn from: give it a proper one"
            )
        if self.alone and msg["is_observed"]:
            _check_observation(msg)
        super()._pyro_sample(msg)


def _check_observation(site: Any) -> None:
    """Its values count for nothing; that they have a shape, and leave what is computed alone, does."""
    name, fn, value = site["name"], innermost(site["fn"]), torch.as_tensor(site["value"])
    if not is_fixed(fn):
        check_not_crossed(name, site["fn"], value)
    elif not _is_at(fn.v, value):
        raise ValueError(
            f"site {name!r} is computed, and is given another value than the computed one, which draws of the program "
            "would follow in its place: leave it as it is, and condition the sites that it comes from"
        )


def _is_at(point: Tensor, value: Tensor) -> bool:
    try:
        one, other = torch.broadcast_tensors(point.double(), value.double())
    except RuntimeError:
        return False
    return torch.allclose(one, other, equal_nan=True)


class Simulator:
    """A Pyro program that draws parameters from their prior and data given them.

    Data are the observed sites (which are drawn anew: their values count for nothing), or the sites named, be they
    observed, sampled without ``obs``, or ``pyro.deterministic`` (the output of a simulator without a density).
    Parameters are the latent sites, or the ones named; all other latent ones are nuisance, and so integrated out. Data
    have the shape of their observations, where that is wider than their distribution's.

    Args:
        program: a Pyro program.
        args: its positional arguments.
        kwargs: its keyword arguments.
        parameters: names of sites; default: all latent ones that are not data.
        data: names of sites, all observed ones (those conditioned, too) among them; default: these.
        discrete: ``refuse`` discrete latent sites that no name leaves out, or take them as ``nuisance``.

    Raises:
        ValueError: a name is none of a site, there are no parameters or no data, an observed site (or one that is
            conditioned) is neither, or a parameter is discrete, fixed, in a subsampled plate, circular, or without a
            prior that can be drawn from.
    """

    def __init__(
        self,
        program: Callable,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        parameters: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        discrete: Literal["refuse", "nuisance"] = "refuse",
    ) -> None:
        self.program, self.args, self.kwargs = program, args, dict(kwargs or {})
        self._run_program = _Unobserve()(program)
        self.trace = self._run(_Unobserve(alone=True)(program))
        sites = {
            name: site
            for name, site in nodes(self.trace).items()
            if site["type"] == "sample" and not is_subsample(site)
        }
        named_data, named = as_names(data), as_names(parameters)
        for name in (*(named_data or ()), *(named or ())):
            if name not in sites:
                raise ValueError(f"the program has no site {name!r}; it has {', '.join(map(repr, sites)) or 'none'}")
        if named_data is None:
            named_data = tuple(n for n, s in sites.items() if s["infer"].get("was_observed") and not is_fixed(s["fn"]))
        if not named_data:
            raise ValueError(
                "the program observes nothing: say which of its sites are data, data=('y',), or give them an obs"
            )
        for name, site in sites.items():
            if (
                site["infer"].get("was_observed")
                and not is_fixed(site["fn"])
                and name not in (*named_data, *(named or ()))
            ):
                raise ValueError(
                    f"site {name!r} is observed, and draws of the program don't hold it at its value: name it among "
                    f"the data, data={(*named_data, name)!r}, or leave its observation out to integrate it out, or, "
                    f"where its prior depends on no latent site, fix it by pyro.poutine.do(program, {{{name!r}: …}})"
                )
        latent = [n for n, s in sites.items() if not s["infer"].get("was_observed") and not is_fixed(s["fn"])]
        if named is None:
            named = tuple(name for name in latent if name not in named_data)
            continuous = tuple(name for name in named if not is_discrete(sites[name]["fn"]))
            if discrete == "nuisance" and continuous:
                named = continuous
        both = [name for name in named if name in named_data]
        if both or not named:
            raise ValueError(f"{both[0]!r} can't be parameter and datum" if both else "the program has no parameters")
        self.parameters, self.data = named, named_data
        for name in named:
            _check_parameter(name, sites[name])
        for name in (*named, *named_data):
            for frame in sites[name]["cond_indep_stack"]:
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise ValueError(f"site {name!r} lives in the subsampled plate {frame.name!r}: draw all of it")
        self.has_nuisance = any(name not in named and name not in named_data for name in latent)
        self.shapes = {name: sites[name]["value"].shape for name in (*named, *named_data)}
        self.latent_shapes = {name: _unconstrained(sites[name]).shape for name in named}
        nesting = [-frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.vectorized]
        batch = [len(site["fn"].batch_shape) for site in sites.values()]
        self._dim = -1 - max([0, *nesting, *batch])

    @alone()
    def draw(self, num_draws: int, at_once: bool = True, progress: bool = False) -> JointDraws:
        """Run the program.

        All draws are one pass, in an outermost plate, where that gives the same: some rows are compared with runs of
        their own, site by site, and nothing may be random but sample sites. Otherwise the program runs once per draw.

        Args:
            num_draws: ``N``.
            at_once: whether to try one pass.
            progress: whether to show a bar where the standard error is a terminal and the program runs once per draw.

        Raises:
            ValueError: the shape of a site changes from run to run, or a datum is not finite.
        """
        with torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
            drawn = self._draw_at_once(num_draws) if at_once and num_draws > 1 else None
            if drawn is None:
                bar = tqdm(range(num_draws), desc="simulate", disable=None if progress else True, leave=False)
                drawn = self._stack([self._rows(self._run(self._run_program), 1) for _ in bar])
        for name, value in (*drawn.data.items(), *drawn.latents.items()):
            finite = value.reshape(num_draws, -1).isfinite().all(-1)
            if not bool(finite.all()):
                raise ValueError(
                    f"site {name!r} is not finite in {int((~finite).sum())} of {num_draws} simulations: give what "
                    "fails a finite value of its own, or a prior that keeps away from it"
                )
        return drawn

    def _run(self, program: Callable) -> Trace:
        with torch.no_grad(), poutine.block():
            return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def _draw_at_once(self, num_draws: int) -> JointDraws | None:
        # What a program raises where it is not made for many draws is its own affair.
        try:
            with pyro.plate("_vi_flows_simulations", num_draws, dim=self._dim):
                many = poutine.trace(self._run_program).get_trace(*self.args, **self.kwargs)
            drawn = self._rows(many, num_draws)
            for index in torch.linspace(0, num_draws - 1, min(NUM_CHECKS, num_draws)).long().tolist():
                if not self._agrees(many, index, num_draws):
                    return None
        except Exception:
            return None
        return drawn

    def _agrees(self, many: Trace, index: int, num_draws: int) -> bool:
        """Whether a run of its own with the values of one row has the densities, and the computed values, of it."""
        row = self.trace.copy()
        for name, site in nodes(self.trace).items():
            if site["type"] == "sample" and not is_subsample(site):
                value = nodes(many)[name]["value"].reshape(num_draws, *site["value"].shape)[index]
                nodes(row)[name] = {**site, "value": value}
        given = {
            name: site["value"]
            for name, site in nodes(row).items()
            if site["type"] == "sample" and not is_fixed(site["fn"])
        }
        before = _generator_states()
        single = poutine.trace(poutine.condition(self._run_program, data=given)).get_trace(*self.args, **self.kwargs)
        if _generator_states() != before:
            return False
        for name, site in nodes(single).items():
            if site["type"] != "sample" or is_subsample(site):
                continue
            if is_fixed(site["fn"]):
                same = torch.allclose(site["value"], nodes(row)[name]["value"], rtol=1e-4, atol=1e-6, equal_nan=True)
            else:
                density = site["fn"].log_prob(site["value"]).sum()
                rows = nodes(many)[name]["fn"].log_prob(nodes(many)[name]["value"])
                same = len(rows) == num_draws and torch.allclose(density, rows[index].sum(), rtol=1e-4, atol=1e-4)
            if not same:
                return False
        return True

    def _rows(self, trace: Trace, num_draws: int) -> JointDraws:
        latents, values, data = {}, {}, {}
        for name in (*self.parameters, *self.data):
            if name not in trace.nodes or nodes(trace)[name]["value"].numel() != num_draws * self.shapes[name].numel():
                raise ValueError(
                    f"site {name!r} has not always the shape {tuple(self.shapes[name])}: a network needs data of one "
                    "shape; pad them, or summarise them"
                )
            value = nodes(trace)[name]["value"].reshape(num_draws, *self.shapes[name])
            if name in self.data:
                data[name] = value
            else:
                values[name] = value
                latents[name] = _unconstrained(nodes(trace)[name]).reshape(num_draws, *self.latent_shapes[name])
        return JointDraws(latents, values, data)

    @staticmethod
    def _stack(rows: list[JointDraws]) -> JointDraws:
        def joined(of: Callable[[JointDraws], dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([of(row)[name] for row in rows]) for name in of(rows[0])}

        return JointDraws(joined(lambda r: r.latents), joined(lambda r: r.values), joined(lambda r: r.data))


def _unconstrained(site: Site) -> Tensor:
    return to_support(site["fn"].support).inv(site["value"])


def _check_parameter(name: str, site: Site) -> None:
    if is_fixed(site["fn"]):
        raise ValueError(f"site {name!r} is computed from others: it can't be a parameter; name those it comes from")
    if is_discrete(site["fn"]):
        raise ValueError(
            f"latent site {name!r} is discrete, and a flow's densities are on the real line: name the other sites, "
            f"parameters=(…), which integrates {name!r} out, or give it a continuous relaxation"
        )
    check_support(name, site["fn"])


def _generator_states() -> tuple[Any, ...]:
    numbers = pickle.dumps(np.random.get_state())  # noqa: NPY002  # the generator that a program may use
    return torch.get_rng_state().numpy().tobytes(), numbers, random.getstate()
