"""Pyro's own transforms under the bijection contract."""

from __future__ import annotations

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn
from torch.distributions import ComposeTransform, IndependentTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from vi_flows.transforms.base import Bijection

__all__ = ["FromPyro"]


# They say that they are bijective and implement `_inverse`, which only looks the last sample up.
_LOOKS_UP = (
    ConditionedPlanar,
    ConditionedRadial,
    transforms.BlockAutoregressive,
    transforms.NeuralAutoregressive,
    transforms.Polynomial,
    transforms.Sylvester,
)


def _offers_inverse(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform | transforms.ComposeTransformModule):
        return all(_offers_inverse(part) for part in transform.parts)
    if isinstance(transform, IndependentTransform):
        return _offers_inverse(transform.base_transform)
    if isinstance(transform, _InverseTransform):
        return True  # its inverse is another transform's forward pass
    implemented = type(transform)._inverse is not Transform._inverse
    return transform.bijective and implemented and not isinstance(transform, _LOOKS_UP)


class FromPyro(Bijection):
    """A PyTorch or Pyro transform as a :class:`Bijection`.

    Identity-keyed caches inside the wrapped transform are emptied around every evaluation: they are what makes stock
    flows answer with stale values and fail to copy.

    Args:
        transform: any ``torch.distributions.Transform`` with as many event dimensions on both sides.

    Raises:
        TypeError: it is no transform.
        ValueError: the transform changes the number of event dimensions.
    """

    def __init__(self, transform: Transform) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(f"FromPyro wraps a torch.distributions.Transform, got {type(transform).__name__}")
        super().__init__(transform.event_dim)
        self.transform = transform

    @property
    def has_inverse(self) -> bool:
        """Whether the wrapped transform inverts points that it did not draw itself."""
        return _offers_inverse(self.transform)

    @property  # PyTorch declares a writable attribute and itself overrides it with properties
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """The wrapped transform's domain."""
        return self.transform.domain

    @property  # the same
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """The wrapped transform's codomain."""
        return self.transform.codomain

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The wrapped transform and its log-determinant, in one pass."""
        self._empty_caches()
        try:
            y = self.transform(x)
            return y, self.transform.log_abs_det_jacobian(x, y)
        finally:
            self._empty_caches()

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The wrapped transform's inverse.

        Raises:
            NotImplementedError: the wrapped transform has no inverse of its own (Pyro's planar, radial).
        """
        self._empty_caches()
        # Some of Pyro's sequential inverses allocate in the default type whatever their input is.
        default = torch.get_default_dtype()
        torch.set_default_dtype(y.dtype)
        try:
            x = self.transform.inv(y)
            return x, -self.transform.log_abs_det_jacobian(x, y)
        except (KeyError, NotImplementedError) as error:
            raise NotImplementedError(
                f"{type(self.transform).__name__} has no inverse: it scores only samples it drew itself, "
                "in the same gradient mode. conv_flow, spline and autoregressive flows have an inverse."
            ) from error
        finally:
            torch.set_default_dtype(default)
            self._empty_caches()

    def _empty_caches(self) -> None:
        parts = self.transform.modules() if isinstance(self.transform, nn.Module) else [self.transform]
        for part in parts:
            for name, value in list(vars(part).items()):
                if name == "_cached_x_y":
                    part._cached_x_y = (None, None)
                elif name.startswith("_cache") and isinstance(value, torch.Tensor):
                    setattr(part, name, None)
