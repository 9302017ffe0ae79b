"""What a fitted flow guide answers outside of any trace: draws, densities, quantiles of the model's sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from torch import Tensor

from vi_flows.guides.alone import alone
from vi_flows.guides.base import Base
from vi_flows.guides.log_joint import LogJoint, in_double
from vi_flows.guides.resampling import resampled_indices
from vi_flows.guides.site_maps import FixedMaps, MapsOfTheProgram, SiteMaps
from vi_flows.guides.sites import check_nothing_subsampled
from vi_flows.guides.stick_breaking import to_support
from vi_flows.guides.whitened_affine import WhitenedAffine
from vi_flows.traces import Site, nodes, stochastic_nodes
from vi_flows.transforms import Bijection, Chain

__all__ = ["FlowPosterior", "varies"]

COARSE = 0.1
"""Unconstrained units by which a value may miss the place it came from."""

SMALLEST = 1e3
"""Values of less than so many times the smallest normal number count as lost: below that one, all are."""


def varies(draws: Tensor) -> Tensor:
    """Which coordinates of ``(S, …)`` differ among draws; a simplex of one and a Cholesky factor's zeros never do."""
    return draws.amin(0) != draws.amax(0)


class FlowPosterior:
    r"""Methods of a guide whose unconstrained latent vector is ``x = T(z)`` with a bijection ``T`` and ``z`` of a base.

    Each site takes its part of ``x`` and maps it to its support. The guide brings the bijection (last in its chain the
    affine part), the base distribution and the prototype trace of its model (:class:`~vi_flows.guides.AutoFlow`).
    """

    latent_dim: int
    prototype_trace: Trace | None
    _unconstrained_shapes: dict[str, torch.Size]
    _user_model: tuple[Callable] | None
    _built: Callable[[], Chain]
    _unpack_latent: Callable[[Tensor], Iterator[tuple[Site, Tensor]]]
    set_up: Callable[..., Any]
    get_base_dist: Callable[[], TorchDistribution]
    _dependent: tuple[str, ...]
    """Sites whose support depends on other sites."""
    _dependent_maps: MapsOfTheProgram | None
    """The maps to all supports, where one of them depends on other sites."""

    @property
    def base_of_draws(self) -> Base:
        """The base distribution with its parameters."""
        raise NotImplementedError  # the guide's own

    @property
    def location_scale(self) -> WhitenedAffine:
        """The affine part, last in the bijection's chain.

        Raises:
            RuntimeError: the guide has no parameters yet.
        """
        last = self._built()[-1]
        assert isinstance(last, WhitenedAffine)
        return last

    def _prototype(self) -> Trace:
        self._built()
        assert self.prototype_trace is not None  # the parameters are made after it
        return self.prototype_trace

    def _program(self) -> Callable:
        if self._user_model is None:
            raise RuntimeError(
                "a guide loaded from a file holds no model; construct one with the model and load_state_dict"
            )
        return self._user_model[0]

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        draws = self._quasi_random_draws()
        return draws.mean(0), draws.std(0)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal medians; see :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal quantiles of each site, from 8192 quasi-random draws; the same at every call.

        They are taken on the unconstrained coordinates and mapped to the support, as in Pyro, from the other side where
        the map decreases (``less_than``): the marginal quantiles for supports that act on each coordinate; for those
        that couple them (simplex, ordered, correlations) a point of the support.

        Args:
            quantiles: probabilities.
            args: the model's arguments, needed only before the first call.
            kwargs: likewise.

        Returns:
            By site, shape ``(number of quantiles,) + site shape``.
        """
        self.set_up(*args, **kwargs)
        draws = self._quasi_random_draws()
        levels = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device).reshape(-1)
        if bool(((levels < 0) | (levels > 1)).any()):
            raise ValueError("quantiles must lie within 0…1")
        found = self._mapped(torch.quantile(draws, levels, dim=0))
        mirrored = self._mapped(torch.quantile(draws, 1 - levels, dim=0))
        ends = self._mapped(torch.stack([draws.amin(0), draws.amax(0)]))
        for name, (low, high) in ends.items():
            if low.shape == self._unconstrained_shapes[name]:  # else coordinates are coupled
                found[name] = torch.where(high < low, mirrored[name], found[name])
        if self._dependent:
            # Where the support moves with other sites, the coordinate's quantile is not the site's.
            values = self.constrain(draws)[0]
            found |= {name: torch.quantile(values[name], levels.to(values[name]), dim=0) for name in self._dependent}
        return found

    def _mapped(self, latents: Tensor) -> dict[str, Tensor]:
        """Values of the sites whose supports are fixed at unconstrained vectors ``(n, d)``, one after the other."""
        result: dict[str, list[Tensor]] = {}
        for latent in latents:
            for site, value in self._unpack_latent(latent):
                if site["name"] not in self._dependent:
                    result.setdefault(site["name"], []).append(to_support(site["fn"].support)(value))
        return {name: torch.stack(values) for name, values in result.items()}

    @torch.no_grad()
    def _quasi_random_draws(self, num_draws: int = 8192, flow: Bijection | None = None) -> Tensor:
        """The same at every call; of ``flow``, from a standard normal, in place of the whole bijection."""
        dim = self.base_of_draws.width if flow is None else self.latent_dim
        if dim <= torch.quasirandom.SobolEngine.MAXDIM:
            uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(num_draws, dtype=torch.float64)
            noise = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
        else:
            noise = torch.randn(num_draws, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.location_scale.loc)
        z = self.base_of_draws.place(noise) if flow is None else noise
        return (self._built() if flow is None else flow).forward_and_ladj(z)[0]

    @torch.no_grad()
    def sample_posterior(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of every site, each of shape ``(num_samples,) + site shape``.

        Args:
            num_samples: number of draws.
            args: the model's arguments, needed only before the first call.
            kwargs: likewise.
        """
        self.set_up(*args, **kwargs)
        noise = self.get_base_dist().sample((num_samples,))
        return self.constrain(self._built().forward_and_ladj(noise)[0])[0]

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """``log q`` of values from anywhere, by the exact inverse.

        Args:
            values: constrained values of every site, each of shape ``sample shape + site shape``.

        Returns:
            Shape ``sample shape``; −∞ outside of the supports.

        Raises:
            ValueError: a site is missing or its shape doesn't fit.
            NotImplementedError: the flow has no inverse (Pyro's planar, radial).
        """
        latent, ladj = self.unconstrain(values)
        outside = latent.isnan().any(-1)
        inside = torch.where(outside[..., None], torch.zeros_like(latent), latent)
        noise, inverse_ladj = self._built().inverse_and_ladj(inside)
        log_q = self.get_base_dist().log_prob(noise) + inverse_ladj + ladj
        return torch.where(outside, torch.full_like(log_q, -math.inf), log_q)

    def split(self, latent: Tensor) -> dict[str, Tensor]:
        """The parts of unconstrained latent vectors by site, on the real line.

        Args:
            latent: shape ``sample shape + (d,)``.
        """
        pieces, position = {}, 0
        for name, shape in self._unconstrained_shapes.items():
            pieces[name] = latent[..., position : position + shape.numel()].reshape(latent.shape[:-1] + shape)
            position += shape.numel()
        return pieces

    @torch.no_grad()
    @alone()
    def resample(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of the posterior of the guide's own model: those of the guide, importance-resampled.

        The pool has four times as many draws, at least 4000; see
        :func:`~vi_flows.guides.resampling.resampled_indices`.

        Args:
            num_samples: number of draws.
            args: the model's arguments.
            kwargs: the model's keyword arguments.

        Returns:
            By site, each of shape ``(num_samples,) + site shape``.

        Raises:
            ValueError: ``num_samples`` is not positive, or the model subsamples its data.
            RuntimeError: the guide was loaded from a file and holds no model.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        at_median = poutine.condition(self._program(), data=self.median(*args, **kwargs))
        with poutine.block(), torch.random.fork_rng(devices=[]):
            trace = poutine.trace(at_median).get_trace(*args, **kwargs)
        check_nothing_subsampled(trace, "resample on the whole data (no subsample_size)")
        log_density = self.exact_log_density_of(self._program(), *args, **kwargs)
        log_weights, latents = [], []
        for _ in range(max(4, -(-4 * num_samples // 1000))):
            noise = self.get_base_dist().sample((1000,))
            x, ladj = self._built().forward_and_ladj(noise)
            log_weights.append(log_density(x) + ladj - self.get_base_dist().log_prob(noise))
            latents.append(x)
        chosen = resampled_indices(torch.cat(log_weights), num_samples)
        return self.constrain(torch.cat(latents)[chosen])[0]

    def constrain(self, latent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Map unconstrained latent vectors to the sites.

        Args:
            latent: shape ``sample shape + (d,)``.

        Returns:
            Values by site, and ``log|det|`` of the map of shape ``sample shape``.
        """
        values, ladjs = self._maps().constrain(self.split(latent))
        total = latent.new_zeros(latent.shape[:-1])
        for ladj in ladjs.values():
            total = total + ladj.reshape(*latent.shape[:-1], -1).sum(-1)
        return values, total

    @property
    def dependent_sites(self) -> tuple[str, ...]:
        """Names of the sites whose support depends on other sites."""
        return self._dependent

    def _maps(self) -> SiteMaps:
        sites = dict(stochastic_nodes(self._prototype()))
        if not self._dependent:
            return FixedMaps({name: site["fn"].support for name, site in sites.items()})
        if self._dependent_maps is None:
            raise RuntimeError(
                f"a guide loaded from a file holds no model, and the support of {self._dependent[0]!r} depends on "
                "other sites; construct one with the model and load_state_dict"
            )
        return self._dependent_maps

    def follow(self, model: Callable, /, *args: Any, **kwargs: Any) -> None:
        """From now on, supports that depend on other sites are those of this model with these arguments."""
        sites = dict(stochastic_nodes(self._prototype()))
        if self._dependent:
            shapes = {name: site["value"].shape for name, site in sites.items()}
            self._dependent_maps = MapsOfTheProgram(model, args, kwargs, self._unconstrained_shapes, shapes)

    def unconstrain(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pack the sites' values into unconstrained latent vectors: the inverse of :meth:`constrain`.

        Args:
            values: by site, each of shape ``sample shape + site shape``.

        Returns:
            Shape ``sample shape + (d,)``, NaN outside of the supports, and ``log|det|`` of the map, of shape
            ``sample shape``.

        Raises:
            ValueError: a site is missing or its shape doesn't fit.
        """
        like = self.location_scale.loc
        given, batches = {}, []
        for name, site in stochastic_nodes(self._prototype()):
            if name not in values:
                raise ValueError(f"no value given for latent site {name!r}")
            value = torch.as_tensor(values[name]).to(like)
            shape = site["value"].shape
            batch = value.shape[: value.dim() - len(shape)]
            if value.dim() < len(shape) or value.shape != batch + shape:
                raise ValueError(f"site {name!r} has shape {tuple(shape)}, got a value of shape {tuple(value.shape)}")
            given[name] = value
            batches.append(batch)
        batch = torch.broadcast_shapes(*batches)
        given = {name: v.expand(batch + nodes(self._prototype())[name]["value"].shape) for name, v in given.items()}
        pieces, ladjs = self._maps().unconstrain(given)
        latent = torch.cat([pieces[name].reshape(*batch, -1) for name in given], -1)
        return latent, torch.stack([ladjs[name].reshape(*batch, -1).sum(-1) for name in given]).sum(0)

    def unresolved(self, latent: Tensor) -> dict[str, float]:
        """How often a site's value is too coarse to tell where it came from.

        Near an upper bound of 1, ``float32`` has no numbers finer than 6e-8, and a log-odds of 16.6 is the last one
        that a value can have; below 1e-38 there are none at all. What lies beyond is cut off without a word.

        Args:
            latent: unconstrained latent vectors ``(S, d)``.

        Returns:
            By site, the largest share over its coordinates: of vectors that the value maps back to another place, by
            more than 0.1 on the unconstrained scale (where there are as many coordinates as values), and of values
            within a factor of a thousand of the smallest number.
        """
        values, given = self.constrain(latent)[0], self.split(latent)
        back = self.split(self.unconstrain(values)[0])
        shares = {}
        for name, x in given.items():
            value = values[name]
            if value.numel() == 0:
                continue
            lost = value.abs() < SMALLEST * torch.finfo(value.dtype).tiny
            lost = lost & varies(value)  # the zeros of a Cholesky factor are meant
            if value.shape == x.shape:  # an inverse of its own for each number, but for ordered vectors
                lost = (lost & (value != x)) | ~((back[name] - x).abs() <= COARSE)
            shares[name] = float(lost.double().mean(0).max())
        return shares

    def log_density_fn(self, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
        """The model's log joint density as a function of unconstrained latent vectors ``(S, d) → (S,)``."""
        return self.log_density_of(self._program(), *args, **kwargs)

    def log_density_of(self, model: Callable, /, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
        """Likewise of another model with the same latent sites."""
        self.set_up(*args, **kwargs)
        return self._pull_back(LogJoint(model, args, kwargs))

    def exact_log_density_of(self, model: Callable, /, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
        """Likewise, computed by :meth:`exact_joint_of`: what weights are made of.

        Takes latent vectors of any precision, and gives double.
        """
        joint, dtype = self.exact_joint_of(model, *args, **kwargs)
        log_density = self._pull_back(joint)
        return lambda latent: log_density(latent.to(dtype)).double()

    def exact_joint_of(self, model: Callable, /, *args: Any, **kwargs: Any) -> tuple[LogJoint, torch.dtype]:
        """The log joint density of another model with the same latent sites, in double precision where that can be.

        Returns:
            The density (:func:`~vi_flows.guides.log_joint.in_double`), and the type of the values that it takes.
        """
        self.set_up(*args, **kwargs)
        plain = LogJoint(model, args, kwargs)
        with torch.no_grad():
            near = torch.tensor([[-0.5], [0.5]]).to(self.location_scale.loc).expand(2, self.latent_dim)
            probe = self._built().forward_and_ladj(near)[0]
        exact = in_double(model, args, kwargs, self._pull_back, probe, plain)
        return exact, probe.dtype if exact is plain else torch.float64

    def _pull_back(self, log_joint: LogJoint) -> Callable[[Tensor], Tensor]:
        def log_density(latent: Tensor) -> Tensor:
            values, ladj = self.constrain(latent)
            return log_joint(values) + ladj

        return log_density
