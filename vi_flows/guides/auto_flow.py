"""A flow guide for any Pyro program, from any factory of flows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import Transform

from vi_flows.guides.alone import alone
from vi_flows.guides.base import Base, MixtureBase, NormalBase, base_like
from vi_flows.guides.faults import compute_log_prob, faults_named
from vi_flows.guides.initial import init_to_median_or_origin
from vi_flows.guides.observations import PossibleWhereMasked, check_observations
from vi_flows.guides.posterior import FlowPosterior
from vi_flows.guides.prototype import (
    NoLatentError,
    check_densities,
    check_maps,
    check_plates,
    check_precision,
    latent_names,
    maps_of_dependent_sites,
    nothing_to_learn,
    takes_no_arguments,
)
from vi_flows.guides.pushed import Place, PushedSites, sample_pushed
from vi_flows.guides.sequential import WithoutSequentialPlates
from vi_flows.guides.sites import latent_sites, left_to_the_model
from vi_flows.guides.start.from_model import start_of_model
from vi_flows.guides.supports import check_support, sites_with_dependent_support
from vi_flows.guides.tensors import map_tensors
from vi_flows.guides.whitened_affine import WhitenedAffine
from vi_flows.parameters import OwnName, check_stored
from vi_flows.traces import stochastic_nodes
from vi_flows.transforms import Bijection, Chain, FromPyro

__all__ = ["AutoFlow"]

FULL_AFFINE_DIM = 200
"""Up to that many latent dimensions the learned affine part is a full Cholesky factor by default."""

DENSE_START_DIM = 1000
"""Up to that many latent dimensions the coordinates of the affine part are whitened by a full covariance."""


class AutoFlow(OwnName, FlowPosterior, AutoContinuous):
    r"""A guide for any Pyro model with continuous latents: base → flow → affine → supports of the sites.

    With ``z ~ N(0, I_d)`` the unconstrained latent vector is ``x = loc + A f(z)``, where ``f`` is the flow and
    ``loc, A`` a learned location and scale matrix; each site takes its part of ``x`` and maps it to its support, so
    ``log q = log N(z) − log|det f′| − log|det A| − Σ log|det support map|``.

    It starts at a Gaussian: where neither ``init_loc_fn`` nor ``init_scale`` is given, at the one that quasi-Newton
    paths through the model's log density find (:func:`~vi_flows.guides.start.pathfinder.pathfinder`), so that badly
    scaled and strongly correlated posteriors start well; else at ``init_loc_fn``'s values with ``init_scale``. Where
    paths from far outside find several modes, up to 200 dimensions and with a full affine part, ``z`` comes from a
    mixture of Gaussians, one or more a mode (:class:`~vi_flows.guides.base.MixtureBase`), in place of ``N(0, I_d)``;
    :func:`~vi_flows.guides.fit` learns their weights, too, Pyro's own loops keep those of the start.

    Parameters exist right after construction when the model takes no arguments or ``prototype_args`` are given, so
    optimizers of ``torch.optim``, ``load_state_dict``, ``.double()`` and ``.to(device)`` work; otherwise they appear
    at the first call, as in Pyro.

    Args:
        model: a Pyro program of static structure. Its discrete latents are summed out where Pyro can enumerate them
            (:class:`~vi_flows.guides.enumeration.SummedOut`), and ``Delta`` sites are left to it.
        flow_factory: called with the latent dimension ``d``, gives a transform of vectors of length ``d``: any flow of
            :mod:`vi_flows.flows` (``IAF(num_layers=2)``), or a factory of Pyro.
        affine: ``full`` (Cholesky), ``low_rank``, ``diagonal``, or ``auto``: full up to 200 dimensions, else low rank.
        rank: of the low-rank part; default ``√d``.
        init_loc_fn: Pyro's per-site initialization; default: the prior median, and the origin for flat priors.
        init_scale: initial standard deviation of every unconstrained latent; default 0.1.
        warm_start: force the Gaussian start on or off. It is skipped where the log density is not a function of the
            latents (subsampled data, hidden sites).
        create_plates: as in Pyro's ``AutoNormal``.
        prototype_args: the model's positional arguments, to build the parameters at once.
        prototype_kwargs: the model's keyword arguments, likewise.

    Raises:
        SubsampledLatentError: at set-up, for a latent site in a subsampled plate.
        DependentSupportError: at set-up, for a latent site whose bounds depend on discrete latents.
        RuntimeError: at set-up, if the model has no latent site.
        TypeError: ``flow_factory`` is none, or at set-up, makes no transform.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: Callable,
        flow_factory: Callable[[int], Transform],
        *,
        affine: str = "auto",
        rank: int | None = None,
        init_loc_fn: Callable | None = None,
        init_scale: float | None = None,
        warm_start: bool | None = None,
        create_plates: Callable | None = None,
        prototype_args: Sequence[Any] | None = None,
        prototype_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(flow_factory):
            raise TypeError(
                f"flow_factory must be callable with the latent dimension, got {type(flow_factory).__name__}"
            )
        if isinstance(flow_factory, nn.Module):
            raise TypeError(
                f"flow_factory must make a flow from the latent dimension, got a {type(flow_factory).__name__} itself; "
                "give lambda dim: …"
            )
        if affine not in ("auto", "full", "low_rank", "diagonal"):
            raise ValueError(f"affine must be 'auto', 'full', 'low_rank' or 'diagonal', got {affine!r}")
        if init_scale is not None and not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        init = init_loc_fn or init_to_median_or_origin
        super().__init__(WithoutSequentialPlates()(model), partial(_initial_value, init))
        self.take_name()
        self._init = partial(_initial_value, init)
        self.create_plates = create_plates
        self._user_model = (model,)
        self._set_up: tuple[Callable[[int], Transform], str, int | None, float] | tuple[()] = (
            flow_factory, affine, rank, 0.1 if init_scale is None else init_scale,
        )  # fmt: skip
        self._has_init_loc_fn = init_loc_fn is not None
        self._wants_warm_start = warm_start if warm_start is not None else init_loc_fn is None and init_scale is None
        self._start_is_due = self._wants_warm_start
        self.transform: Chain | None = None
        self._dependent, self._dependent_maps = (), None
        self.base: Base | None = None
        if prototype_args is not None or prototype_kwargs is not None or takes_no_arguments(model):
            self.set_up(*(prototype_args or ()), **(prototype_kwargs or {}))

    # Building.

    @staticmethod
    def _prototype_hide_fn(site: dict[str, Any]) -> bool:
        return prototype_hide_fn(site) or left_to_the_model(site["fn"])

    @alone()
    def set_up(self, *args: Any, **kwargs: Any) -> AutoFlow:
        """Build the parameters for the model's arguments, unless they exist; return the guide itself."""
        if self.prototype_trace is None:
            # Parameters made in inference mode could never be trained.
            with pyro.poutine.block(), torch.inference_mode(False):
                self._setup_prototype(*args, **kwargs)
                self._create_plates(*args, **kwargs)
        return self

    @alone()
    def set_up_for(self, model: Callable, /, *args: Any, **kwargs: Any) -> AutoFlow:
        """Like :meth:`set_up`; parameters that don't exist yet are built for ``model`` where it observes more sites.

        A model with latent sites that this guide's own model hides replaces it only where they can be summed out. A
        start that the own model did not allow (hidden sites) is made up for, unless the guide has been trained.
        """
        # A guide loaded from a file holds no model to compare with, and its parameters are there.
        own_model = model if self._user_model is None else self._user_model[0]
        if model is not own_model and (self.prototype_trace is None or self._start_is_due):
            with pyro.poutine.block(), torch.no_grad():
                own = pyro.poutine.trace(own_model).get_trace(*args, **kwargs)
                given = pyro.poutine.trace(model).get_trace(*args, **kwargs)
            names, known = latent_names(given), latent_names(own)
            if self.prototype_trace is None and names <= known:
                self._user_model, self._model = (model,), (InitMessenger(self._init)(WithoutSequentialPlates()(model)),)
            elif self.prototype_trace is not None and names == known and not bool(self.location_scale.loc.any()):
                self._user_model = (model,)
                self.warm_start(*args, **kwargs)
        return self.set_up(*args, **kwargs)

    @alone()
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # Without gradients, so that the prototype holds no graph and can be copied.
        self.latent_dim = -1
        try:
            with torch.no_grad(), faults_named(self._program(), args, kwargs):
                super()._setup_prototype(*args, **kwargs)
        except NotImplementedError:  # a loop over a part of a plate is refused by Pyro without a name
            with pyro.poutine.block(), torch.no_grad():
                check_plates(pyro.poutine.trace(self._program()).get_trace(*args, **kwargs), type(self).__name__)
            raise
        except RuntimeError as error:
            if self.latent_dim:  # not yet counted, so that it is another error
                raise
            self.prototype_trace = None
            raise NoLatentError(nothing_to_learn(self._program(), args, kwargs, type(self).__name__)) from error
        assert self.prototype_trace is not None  # Pyro has just made it
        try:
            check_plates(self.prototype_trace, type(self).__name__)
            check_precision(self.prototype_trace)
            check_maps(self.prototype_trace, self._unconstrained_shapes)
            check_densities(self.prototype_trace)
            with torch.random.fork_rng(devices=[]):  # a composed distribution is asked for a draw
                for name, site in latent_sites(self.prototype_trace):
                    check_support(name, site["fn"])
            self._check_supports(self.prototype_trace, args, kwargs)
            assert self._set_up  # emptied with the first set-up
            factory, affine, rank, init_scale = self._set_up
            flow = factory(self.latent_dim)
            if not isinstance(flow, Transform):
                raise TypeError(
                    f"flow_factory must make a transform of vectors of length {self.latent_dim}, not an object of type "
                    f"{type(flow).__name__}; give a flow of vi_flows.flows, as IAF(), or a function of the dimension"
                )
        except Exception:
            self.prototype_trace = None
            raise
        loc = self._init_loc()
        # A whitening matrix of one's own choice of spread would be a surprise.
        dense = affine == "full" or (affine == "auto" and self.latent_dim <= DENSE_START_DIM)
        if affine == "auto":
            affine = "full" if self.latent_dim <= FULL_AFFINE_DIM else "low_rank"
        if not isinstance(flow, Bijection):
            flow = FromPyro(flow)
        location_scale = WhitenedAffine(loc, init_scale, affine, rank, dense, self.latent_dim**-0.5)
        self.transform = Chain([flow.to(loc), location_scale])
        self.base = NormalBase(self.latent_dim, loc)
        self._set_up = ()
        if self._wants_warm_start:
            self.warm_start(*args, **kwargs)

    def _check_supports(self, prototype: pyro.poutine.Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._dependent = tuple(sites_with_dependent_support(prototype, self._program(), args, kwargs))
        if self._dependent:
            self._dependent_maps = maps_of_dependent_sites(
                prototype, self._dependent, self._unconstrained_shapes, self._program(), args, kwargs
            )

    @alone()
    def warm_start(self, *args: Any, **kwargs: Any) -> bool:
        """Move the affine part to the best Gaussian along quasi-Newton paths of the model's log density.

        Args:
            args: the model's arguments.
            kwargs: the model's keyword arguments.

        Returns:
            Whether it moved: not where the log density is no function of the latents, or nowhere finite on the paths.

        Raises:
            ValueError: an observation lies outside its support.
            EnumerationError: a discrete latent can't be summed out.
        """
        self.set_up(*args, **kwargs)
        with torch.no_grad(), pyro.poutine.block(), pyro.validation_enabled(False):
            known = pyro.poutine.replay(self._program(), trace=self.prototype_trace)
            trace = pyro.poutine.trace(known).get_trace(*args, **kwargs)
            check_observations(trace)
            compute_log_prob(trace, PossibleWhereMasked(trace))
        start = start_of_model(self._program(), args, kwargs, self._pull_back, self._init_loc(), self._has_init_loc_fn)
        if start is None:
            return False
        if start.gaussian is None:
            warnings.warn(
                f"{type(self).__name__}: no start with a finite log density was found; it starts at init_loc_fn's "
                "values. Check the model at plausible values, or pass init_loc_fn.",
                stacklevel=2,
            )
            return False
        # Averaged over the dimensions, so that many of them need fewer draws.
        num_draws = min(8192, max(64, 400_000 // self.latent_dim))
        # The flow's own spread at its start is not quite one: its tails are those of no Gaussian.
        variance = self._quasi_random_draws(num_draws, self._built()[0]).var(0).mean().double().cpu()
        self.location_scale.set_gaussian(start.gaussian.loc, start.gaussian.covariance / variance)
        self.base = NormalBase(self.latent_dim, self.location_scale.loc)
        if start.at_once and self.location_scale.whitening.dim() == 2 and (found := start.mixture()) is not None:
            # In coordinates where it has mean 0 and covariance I.
            self.location_scale.set_gaussian(*found.moments())
            self.base = MixtureBase.of(found, self.location_scale.loc)
        self._start_is_due = False
        return True

    # Pyro's interface.

    @property
    def model(self) -> Callable:
        """The Pyro program.

        Raises:
            RuntimeError: the guide was loaded from a file, which holds no program.
        """
        if self._model is None:
            raise RuntimeError(
                "a guide loaded from a file holds no model; construct one with the model and load_state_dict"
            )
        return self._model[0]

    def get_base_dist(self) -> dist.TorchDistribution:
        """``N(0, I_d)``, or the mixture of Gaussians, of the parameters' type and device."""
        return self.base_of_draws.distribution()

    @property
    def base_of_draws(self) -> Base:
        """The base distribution with its parameters.

        Raises:
            RuntimeError: the guide has no parameters yet.
        """
        self._built()
        assert self.base is not None  # the two are made together
        return self.base

    def get_transform(self, *args: Any, **kwargs: Any) -> Chain:
        """The flow with the affine part, one bijection; it does not depend on the arguments."""
        return self._built()

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TransformedDistribution:
        """The distribution of the unconstrained latent vector."""
        return dist.TransformedDistribution(self.get_base_dist(), [self.get_transform()])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site, as a Pyro guide with the model's arguments."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        with PushedSites():
            return self._sites(*args, **kwargs)

    def _sites(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if not self._dependent:
            return super().forward(*args, **kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        values, ladjs = self._maps().constrain(self.split(latent))
        places = {name: Place.of(site) for name, site in stochastic_nodes(self._prototype())}
        return sample_pushed(values, ladjs, latent.shape[:-1], places, plates)

    def _built(self) -> Chain:
        if self.transform is None:
            raise RuntimeError(
                f"{type(self).__name__} has no parameters yet: call it (or set_up) with the model's arguments, or pass "
                "prototype_args when constructing it"
            )
        check_stored(self._pyro_name, self)
        return self.transform

    # Copies and files.

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's parameter store leaves a weak reference on every parameter, which can't be pickled, and puts it back at
        # the next access.
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        state = dict(self.__dict__)
        # A program can't be written to a file, and the live guide must not lose its own.
        state.update(_model=None, _user_model=None, master=None, create_plates=None, _set_up=(), _init=None)
        state.update(_dependent_maps=None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoFlow:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        for name in ("_model", "_user_model", "create_plates", "_set_up", "_init", "_dependent_maps"):
            object.__setattr__(new, name, getattr(self, name))
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            self._built()
        # A file of a whole guide says what the base is: this guide's own start may have found another number of modes.
        if self.transform is not None and self.base is not None:
            names = [f"{prefix}transform.{name}" for name in self.transform.state_dict()]
            if f"{prefix}base.logits" in state_dict or all(name in state_dict for name in names):
                like = self.location_scale.loc
                self.base = base_like(self.base, state_dict, f"{prefix}base.", self.latent_dim, like)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoFlow:
        super()._apply(fn, recurse)
        if self.prototype_trace is not None:
            # Supports with tensor bounds live on a device, too.
            for _, site in stochastic_nodes(self.prototype_trace):
                site["fn"] = map_tensors(site["fn"], fn, {})
                site["value"] = fn(site["value"])
        return self


def _initial_value(init: Callable, site: dict[str, Any]) -> Tensor:
    return site["fn"]() if left_to_the_model(site["fn"]) else init(site)
