"""Pyro's own transforms under the bijection contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn
from torch.distributions import ComposeTransform, IndependentTransform, StackTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform
from torch.types import _size

from vi_flows.transforms.base import Bijection, no_sign, sum_event_dims
from vi_flows.transforms.contents import Contents
from vi_flows.transforms.regions import reached, with_draws

__all__ = ["FromPyro", "jump_in"]


# They say that they are bijective and implement `_inverse`, which only looks the last sample up.
_LOOKS_UP = (
    ConditionedPlanar,
    ConditionedRadial,
    transforms.BlockAutoregressive,
    transforms.NeuralAutoregressive,
    transforms.Polynomial,
    transforms.Sylvester,
)


def jump_in(transform: Transform, contents: Contents | None = None) -> Transform | None:
    """What is in a transform, or the transform itself, whose log-determinant is not continuous in the input.

    Args:
        transform: of any kind: a bijection, or PyTorch's compositions and inverses of some, which say nothing of that.
        contents: its, where they are known.
    """
    if isinstance(transform, Bijection):  # its own answer, asked in every step: no walk through a long flow
        return None if transform.continuous_log_det else transform
    for part in (Contents.of(transform) if contents is None else contents).owners:
        # The one of PyTorch's and Pyro's whose slope jumps.
        if isinstance(part, transforms.LeakyReLUTransform):
            return part
        if isinstance(part, Bijection) and not part.continuous_log_det:
            return part
    return None


def _offers_inverse(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform | transforms.ComposeTransformModule):
        return all(_offers_inverse(part) for part in transform.parts)
    if isinstance(transform, IndependentTransform):
        return _offers_inverse(transform.base_transform)
    if isinstance(transform, _InverseTransform):
        return True  # its inverse is another transform's forward pass
    implemented = type(transform)._inverse is not Transform._inverse
    return transform.bijective and implemented and not isinstance(transform, _LOOKS_UP)


def _parts_of(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts_of(part)
    else:
        yield transform


def _check_stacks(transform: Transform, contents: Contents) -> None:
    """Refuse where PyTorch adds the log-determinants of a stack's entries to others, or puts them into another place.

    Raises:
        ValueError: a stack is a part of something else, or has parts with event dimensions.
    """
    for part in contents.owners:
        if isinstance(part, StackTransform) and (
            part is not transform or any(t.domain.event_dim for t in part.transforms)
        ):
            raise ValueError(
                "PyTorch's StackTransform has a log-determinant for each entry, which adds up wrongly with others: "
                "wrap it by itself (FromPyro(StackTransform(...)) in a Chain), with elementwise parts"
            )


class FromPyro(Bijection):
    """A PyTorch or Pyro transform as a :class:`Bijection`.

    Identity-keyed caches inside the wrapped transform are emptied around every evaluation: they are what makes stock
    flows answer with stale values and fail to copy.

    Modules and parameters inside a transform that is no module itself (``transform.inv``, a composition, a transform
    given a context, ``AffineTransform`` with a parameter) become those of this module.

    Args:
        transform: any ``torch.distributions.Transform`` with as many event dimensions on both sides.

    Raises:
        TypeError: it is no transform.
        ValueError: the transform changes the number of event dimensions, is no bijection, or holds a
            ``StackTransform`` whose log-determinant PyTorch gets wrong.
    """

    def __init__(self, transform: Transform) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(f"FromPyro wraps a torch.distributions.Transform, got {type(transform).__name__}")
        before, after = transform.domain.event_dim, transform.codomain.event_dim
        if before != after:
            raise ValueError(
                f"a bijection keeps the number of event dimensions, {type(transform).__name__} takes {before} to "
                f"{after}; use it as the last transform of a TransformedDistribution instead"
            )
        if not transform.bijective:
            raise ValueError(f"{type(transform).__name__} is no bijection, and has no log-determinant to score with")
        super().__init__(before)
        self.transform = transform
        self._contents = Contents.of(transform)
        _check_stacks(transform, self._contents)
        known = set(self.modules())
        inside = [module for module in self._contents.modules if module not in known]
        if inside:
            self.inside = nn.ModuleList(inside)
        known_parameters = {id(parameter) for parameter in self.parameters()}
        # Where each stands, so that others may take its place for a call (`torch.func.functional_call`).
        self._places = [place for place in self._contents.parameters() if id(place.value) not in known_parameters]
        if self._places:
            self.loose = nn.ParameterList([place.value for place in self._places])

    @property
    def has_inverse(self) -> bool:
        """Whether the wrapped transform inverts points that it did not draw itself."""
        return _offers_inverse(self.transform)

    @property
    def continuous_log_det(self) -> bool:
        """Whether that of the wrapped transform is continuous in the input."""
        return jump_in(self.transform, self._contents) is None

    @property  # PyTorch declares a writable attribute and itself overrides it with properties
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """The wrapped transform's domain; of a composition, what can be taken through all its parts."""
        steps = [(part.codomain, part.domain, self._cleanly(part)) for part in reversed(self._parts())]
        return reached(steps, self.event_dim) if steps else self.transform.domain

    @property  # the same
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """The wrapped transform's codomain; of a composition, what its parts reach, see :class:`Chain`."""
        steps = [(part.domain, part.codomain, self._cleanly(part.inv)) for part in self._parts()]
        return with_draws(reached(steps, self.event_dim) if steps else self.transform.codomain, self._drew)

    def _parts(self) -> list[Transform]:
        """Of a composition, which itself declares its last part's codomain and its first part's domain; else none."""
        if not isinstance(self.transform, ComposeTransform):
            return []
        parts = list(_parts_of(self.transform))
        kept = all(part.domain.event_dim == part.codomain.event_dim <= self.event_dim for part in parts)
        return parts if kept else []

    def _cleanly(self, step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(value: Tensor) -> Tensor:
            with self._clean():
                return step(value)

        return run

    @property
    def sign(self) -> int:
        """The wrapped transform's: +1 if it increases, −1 if it decreases."""
        try:
            return self.transform.sign
        except NotImplementedError:
            raise no_sign(self.transform) from None

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        return torch.Size(self.transform.forward_shape(shape))

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        return torch.Size(self.transform.inverse_shape(shape))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The wrapped transform and its log-determinant, in one pass."""
        self._check_tensor(x)
        with self._clean():
            y = self.transform(x)
            return y, self._one_an_event(self.transform.log_abs_det_jacobian(x, y), y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The wrapped transform's inverse.

        Raises:
            NotImplementedError: the wrapped transform has no inverse of its own (Pyro's planar, radial).
        """
        self._check_tensor(y)
        # Some of Pyro's sequential inverses allocate in the default type whatever their input is.
        default = torch.get_default_dtype()
        torch.set_default_dtype(y.dtype)
        try:
            with self._clean():
                x = self.transform.inv(y)
                return x, self._one_an_event(-self.transform.log_abs_det_jacobian(x, y), x)
        except (KeyError, NotImplementedError) as error:
            raise NotImplementedError(
                f"{type(self.transform).__name__} has no inverse: it scores only samples it drew itself, "
                "in the same gradient mode. conv_flow, spline and autoregressive flows have an inverse."
            ) from error
        finally:
            torch.set_default_dtype(default)

    def _one_an_event(self, ladj: Tensor, value: Tensor) -> Tensor:
        """A log-determinant for each row of ``value``.

        PyTorch's ``StackTransform`` gives one for each entry; maps with the same for all rows give it once.
        """
        if ladj.shape == value.shape:
            ladj = sum_event_dims(ladj, self.event_dim)
        return ladj.expand(torch.broadcast_shapes(ladj.shape, value.shape[: value.dim() - self.event_dim]))

    @contextmanager
    def _clean(self) -> Iterator[None]:
        """Without caches, and with the present parameters in the wrapped transform's own places."""
        owners = self._contents.owners
        _empty_caches(owners)
        for place, present in zip(self._places, self.loose if self._places else (), strict=True):
            place.put(present)
        try:
            yield
        finally:
            for place in self._places:
                place.put(place.value)
            _empty_caches(owners)

    def __getstate__(self) -> dict[str, Any]:
        if self._contents.enclosed:
            raise TypeError(
                f"{type(self.transform).__name__} keeps its network in a function, which neither a copy nor a file "
                "would hold; copy or save what it was conditioned from"
            )
        return super().__getstate__()

    def _forget(self) -> None:
        super()._forget()
        _empty_caches(self._contents.owners)

    def _state_tensors(self) -> Iterable[Tensor]:
        yield from super()._state_tensors()
        yield from (place.present for place in self._contents.tensors)
        if self._contents.opaque:
            yield torch.empty(0)  # another one each time: no two states are the same


def _empty_caches(owners: Iterable[object]) -> None:
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if name == "_cached_x_y":
                setattr(owner, name, (None, None))
            elif name.startswith("_cache") and isinstance(value, Tensor):
                setattr(owner, name, None)
