"""The posterior that a network gives for data: a distribution over the named sites of a program."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vi_flows.flows import NSF, Spline, VectorFlow
from vi_flows.guides.amortize.joint_draws import JointDraws, Simulator
from vi_flows.guides.amortized import AmortizedFlowGuide
from vi_flows.guides.pushed import Place, sample_pushed
from vi_flows.guides.site_maps import FixedMaps, MapsOfTheProgram, SiteMaps
from vi_flows.guides.supports import sites_with_dependent_support
from vi_flows.traces import nodes

__all__ = ["AmortizedPosterior", "SitesDistribution"]

ROWS_PER_ENTRY = 20
"""With fewer simulations per entry of the data there is no linear regression."""


class SitesDistribution(dist.Distribution):
    r"""``q(θ)`` over the named sites of a program: values are dictionaries of tensors in the sites' supports.

    ``log q(θ) = log q(u) − Σ log|det dθ/du|``, ``u`` unconstrained.

    Attributes:
        latent: of the unconstrained vector ``u``, of batch shape ``batch_shape`` and event shape ``(d,)``.
        batch_shape: of the data that it answers for.

    Args:
        latent: see there.
        maps: between the real line and the supports.
        shapes: of the sites' unconstrained values, in the order of ``u``.
        places: of the sites in the program.
    """

    def __init__(
        self,
        latent: dist.TorchDistribution,
        maps: SiteMaps,
        shapes: Mapping[str, torch.Size],
        places: Mapping[str, Place],
    ) -> None:
        self.latent, self._maps, self._shapes, self._places = latent, maps, shapes, places
        self.batch_shape = latent.batch_shape

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> dict[str, Tensor]:
        """Draws by site, each ``sample_shape + batch_shape + site shape``."""
        return self._split(self.latent.sample(torch.Size(sample_shape)))[0]

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """``log q`` of values by site.

        Args:
            values: each ``sample shape + batch_shape + site shape``, or what broadcasts to it.

        Returns:
            ``sample shape + batch_shape``; −∞ outside of the supports.

        Raises:
            ValueError: a site is missing, or the shape of a value doesn't fit.
        """
        given, leading = {}, []
        for name, (shape, *_) in self._places.items():
            if name not in values:
                raise ValueError(f"no value given for site {name!r}")
            value = torch.as_tensor(values[name])
            if value.dim() < len(shape) or value.shape[value.dim() - len(shape) :] != shape:
                raise ValueError(f"site {name!r} has shape {tuple(shape)}, got a value of shape {tuple(value.shape)}")
            given[name] = value
            leading.append(value.shape[: value.dim() - len(shape)])
        batch = torch.broadcast_shapes(*leading)
        like = self.latent.sample()
        given = {n: v.to(like).expand(batch + self._places[n].shape) for n, v in given.items()}
        latents, ladjs = self._maps.unconstrain(given)
        total = sum(_over_events(ladj, batch) for ladj in ladjs.values())
        u = torch.cat([latents[name].reshape(*batch, -1) for name in self._shapes], -1)
        inside = u.isfinite().all(-1)
        log_q = self.latent.log_prob(torch.where(inside[..., None], u, torch.zeros_like(u))) + total
        return torch.where(inside, log_q, torch.full_like(log_q, -math.inf))

    def guide(self) -> dict[str, Tensor]:
        """A Pyro guide of the program for these data (one set: no batch shape): samples every site in its plates.

        Raises:
            ValueError: the distribution is of several sets of data.
        """
        if self.batch_shape:
            raise ValueError(f"a guide is for one set of data, and these are {tuple(self.batch_shape)}")
        u = pyro.sample("_latent", self.latent, infer={"is_auxiliary": True})
        values, ladjs = self._split(u)
        frames = {frame for place in self._places.values() for frame in place.plates}
        plates = {name: pyro.plate(name, size, dim=dim) for name, size, dim in frames}
        return sample_pushed(values, ladjs, u.shape[:-1], self._places, plates)

    def _split(self, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        pieces = u.split([shape.numel() for shape in self._shapes.values()], -1)
        latents = {
            name: piece.reshape(u.shape[:-1] + shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        return self._maps.constrain(latents)


def _over_events(ladj: Tensor, batch: torch.Size) -> Tensor:
    return ladj.reshape(*batch, -1).sum(-1)


class _Standardize(nn.Module):
    """``(x − loc) / scale`` per entry of the last dimension; entries that never change are left out of the scaling."""

    loc: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def measure(self, x: Tensor) -> None:
        loc, scale = x.double().mean(0), x.double().std(0)
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > 1e-12 * (1 + loc.abs()), scale, torch.ones_like(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale


class AmortizedPosterior(nn.Module):
    r"""``q(θ | x)`` for any data ``x`` of a program: neural posterior estimation (Papamakarios and Murray 2016).

    Data are standardised, embedded, and read by a network that gives location, triangular scale and the context of a
    conditional flow (:class:`~vi_flows.guides.AmortizedFlowGuide`): what a linear regression of the unconstrained
    parameters on the data leaves is, standardised, ``L(h) f(ε; h) + loc(h)``.
    :func:`~vi_flows.guides.fit_amortized` makes and trains it.

    It is a module: ``state_dict`` (with ``safetensors``, too) into one that is made for the same program, or
    ``torch.save`` of the whole, which leaves the program out.

    Args:
        prior_and_simulator: a Pyro program (see :class:`~vi_flows.guides.amortize.joint_draws.Simulator`).
        args: its positional arguments.
        kwargs: its keyword arguments.
        parameters: names of the sites to infer; default: all latent ones. Others are integrated out.
        data: names of the data sites; default: the observed ones.
        flow: of :mod:`vi_flows.flows`; default: neural splines, coupled from two dimensions on.
        hidden_dims: widths of the network.
        embed: a module that summarises the standardised data ``(N,) + site shape`` (several sites: one flat vector) to
            ``(N, features)``; default: the flat data.

    Raises:
        ValueError: as of :class:`~vi_flows.guides.amortize.joint_draws.Simulator`; ``embed`` gives no rows of features.
    """

    of_data: _Standardize
    of_parameters: _Standardize
    regression: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        prior_and_simulator: Callable,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        parameters: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        flow: VectorFlow | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        embed: nn.Module | None = None,
    ) -> None:
        super().__init__()
        simulator = Simulator(prior_and_simulator, args, kwargs, parameters, data)
        self._simulator: Simulator | None = simulator
        self.parameter_names, self.data_names = simulator.parameters, simulator.data
        self.data_shapes = {name: simulator.shapes[name] for name in self.data_names}
        self._places = {name: Place.of(nodes(simulator.trace)[name]) for name in self.parameter_names}
        self._shapes = simulator.latent_shapes
        dim = sum(shape.numel() for shape in self._shapes.values())
        size = sum(shape.numel() for shape in self.data_shapes.values())
        self.of_data, self.of_parameters = _Standardize(size), _Standardize(dim)
        self.register_buffer("regression", torch.zeros(size, dim))
        self.register_buffer("lowest", torch.full((size,), -math.inf))
        self.register_buffer("highest", torch.full((size,), math.inf))
        self.embed = embed
        with torch.no_grad():
            features = self._features(torch.zeros(2, size))
        if features.dim() != 2 or len(features) != 2 or features.shape[1] < 1:
            raise ValueError(f"embed must give rows of features; of 2 sets of data it made {tuple(features.shape)}")
        if flow is None:
            flow = NSF(num_layers=4, hidden_dims=(64,)) if dim > 1 else Spline(num_layers=2, hidden_dims=(64,))
        if not hidden_dims:
            raise ValueError("the network needs at least one hidden layer: hidden_dims=(64,)")
        self.network = AmortizedFlowGuide(
            features.shape[1],
            dim,
            hidden_dims,
            flow=flow.build(dim, context_dim=hidden_dims[-1]),
            init_scale=1.0,
            affine="full",
        )
        known = simulator.trace.copy()
        for name in simulator.trace.nodes:
            if name not in self.parameter_names:
                known.remove_node(name)
        dependent = sites_with_dependent_support(known, simulator.program, args, simulator.kwargs)
        self._depends = any(name in dependent for name in self.parameter_names)
        if self._depends and simulator.has_nuisance:
            name = next(name for name in self.parameter_names if name in dependent)
            raise ValueError(
                f"the support of {name!r} depends on other sites: all latent sites must be parameters then, so that it "
                "is known; leave out parameters=…"
            )
        self._fixed = FixedMaps({name: nodes(simulator.trace)[name]["fn"].support for name in self.parameter_names})

    @property
    def simulator(self) -> Simulator:
        """The program as a simulator.

        Raises:
            RuntimeError: loaded from a file, which holds no program.
        """
        if self._simulator is None:
            raise RuntimeError(
                "a posterior loaded from a file holds no program; construct one with it and load_state_dict"
            )
        return self._simulator

    def forward(self, data: Tensor | Mapping[str, Tensor]) -> SitesDistribution:
        """See :meth:`posterior`, which also says where the data are unlike the simulations."""
        rows, batch = self._rows(data)
        return SitesDistribution(self._latent(rows.reshape(*batch, -1)), self._maps(), self._shapes, self._places)

    def posterior(self, data: Tensor | Mapping[str, Tensor]) -> SitesDistribution:
        """The posterior given data; warns where these lie far outside of what the program simulates.

        Args:
            data: by site, each ``batch shape + site shape``; a tensor where there is one data site.

        Returns:
            A distribution of batch shape ``batch shape`` over the named parameters.

        Raises:
            ValueError: a site is missing, its shape doesn't fit, or a value is not finite.
        """
        rows, _ = self._rows(data)
        outside = ((rows < self.lowest) | (rows > self.highest)).any(0)
        if bool(outside.any()):
            warnings.warn(
                f"{int(outside.sum())} of {len(outside)} entries of the data lie far outside of what the program "
                "simulates: the network extrapolates there, and the program may be wrong for these data",
                stacklevel=3,
            )
        return self(data)

    def log_prob_latent(self, latents: Tensor, rows: Tensor) -> Tensor:
        """``log q(u | x)`` for training, ``(N,)``.

        Args:
            latents: unconstrained parameters ``(N, d)``.
            rows: flat data ``(N, size)``.
        """
        return self._latent(rows).log_prob(latents)

    def measure(self, latents: Tensor, rows: Tensor) -> None:
        """Take the standardisation, the linear regression, and the range of the data from simulations."""
        self.of_data.measure(rows)
        x = self.of_data(rows).double()
        if len(x) >= ROWS_PER_ENTRY * x.shape[1]:
            # A hair of a ridge, for entries that are copies of each other or never change.
            gram = x.mT @ x / len(x) + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            self.regression.copy_(torch.linalg.solve(gram, x.mT @ (latents - latents.mean(0)).double() / len(x)))
        self.of_parameters.measure(latents - self.of_data(rows) @ self.regression)
        low, high = rows.min(0).values, rows.max(0).values
        self.lowest.copy_(low - 0.1 * (high - low))
        self.highest.copy_(high + 0.1 * (high - low))

    def flat(self, draws: JointDraws) -> tuple[Tensor, Tensor]:
        """Unconstrained parameters ``(N, d)`` and data ``(N, size)`` of simulations, in this module's type."""
        like = self.of_data.loc
        latents = torch.cat([draws.latents[name].reshape(len(draws), -1) for name in self.parameter_names], -1)
        return latents.to(like), self._rows(draws.data)[0]

    def _latent(self, rows: Tensor) -> dist.TransformedDistribution:
        inner = self.network(self._features(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], -1))
        loc = self.of_parameters.loc + self.of_data(rows) @ self.regression
        scaling = dist.transforms.AffineTransform(loc, self.of_parameters.scale, event_dim=1)
        return dist.TransformedDistribution(inner, [scaling])

    def _features(self, rows: Tensor) -> Tensor:
        x = self.of_data(rows)
        if self.embed is None:
            return x
        if len(self.data_shapes) == 1:
            x = x.reshape(len(x), *next(iter(self.data_shapes.values())))
        return self.embed(x)

    def _maps(self) -> SiteMaps:
        if not self._depends:
            return self._fixed
        s = self.simulator
        shapes = {name: place.shape for name, place in self._places.items()}
        return MapsOfTheProgram(s.program, s.args, s.kwargs, self._shapes, shapes)

    def _rows(self, data: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, torch.Size]:
        """Flat data ``(N, size)`` and the batch shape."""
        if not isinstance(data, Mapping):
            if len(self.data_names) > 1:
                raise ValueError(f"there are several data sites: give a dictionary of {', '.join(self.data_names)}")
            data = {self.data_names[0]: data}
        parts, batches = [], []
        for name, shape in self.data_shapes.items():
            if name not in data:
                raise ValueError(f"no value given for data site {name!r}")
            value = torch.as_tensor(data[name]).to(self.of_data.loc)
            if value.dim() < len(shape) or value.shape[value.dim() - len(shape) :] != shape:
                raise ValueError(f"data site {name!r} has shape {tuple(shape)}, got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"data site {name!r} has values that are not finite")
            parts.append(value.reshape(*value.shape[: value.dim() - len(shape)], -1))
            batches.append(parts[-1].shape[:-1])
        batch = torch.broadcast_shapes(*batches)
        return torch.cat([part.expand(*batch, -1) for part in parts], -1).reshape(batch.numel(), -1), batch

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_simulator"] = None  # a program can't be written to a file
        return state
