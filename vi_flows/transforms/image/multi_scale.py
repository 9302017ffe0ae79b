"""Multi-scale flows: levels that each factor out half of their channels as finished latents, with a learned prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from vi_flows.nn.typed import ModuleListOf
from vi_flows.transforms.base import Bijection
from vi_flows.transforms.coupling import ChannelGroups, Coupling
from vi_flows.transforms.coupling_maps import GaussianMap
from vi_flows.transforms.image.base import ImageBijection
from vi_flows.transforms.regions import is_real

__all__ = ["MultiScale", "SplitPrior"]


class SplitPrior(Coupling):
    r"""The learned prior of a split, ``z₂ ~ N(μ(z₁), σ(z₁)²)``, as a bijection to standard normal latents.

    ``ε = (z₂ − μ(z₁)) / σ(z₁)`` leaves ``z₁`` unchanged; with ``ε ~ N(0, I)`` the density of ``z₂`` is that normal
    (Kingma & Dhariwal, *Glow*; Nagar et al., figure 3). Scaling ``ε`` by a temperature scales ``σ``, as in Glow.

    Args:
        channels: ``C``; the last half of them is ``z₂``.
        conditioner: maps ``z₁`` to ``μ`` and ``log σ``: ``(N, C/2, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: ``channels`` is odd.
    """

    def __init__(self, channels: int, conditioner: nn.Module) -> None:
        if channels % 2:
            raise ValueError(f"a split needs an even number of channels, got {channels}")
        super().__init__(ChannelGroups(channels), [conditioner], GaussianMap())


class MultiScale(ImageBijection):
    r"""A stack of levels; after each but the last, half of the channels are factored out (*Real NVP*, section 3.6).

    The forward pass goes from an image to its latents: ``h₁ = level₁(x)``, ``(h₁, ε₁) = split(prior₁(h₁))``,
    ``h₂ = level₂(h₁)``, …. The latents ``ε₁, ε₂, …, h_L`` are flattened, concatenated and given the image's shape, so
    that the base distribution is one standard normal; :meth:`latents` takes them apart.

    Args:
        image_shape: ``(C, H, W)`` of the input.
        levels: bijections of images; level ``l + 1`` gets the first half of the channels that level ``l`` puts out.
        priors: for each split a bijection that leaves the first half of the channels alone (:class:`SplitPrior`), or
            ``None`` for a fixed standard normal prior; default: ``None`` for all.

    Raises:
        ValueError: a level can't take the shape that reaches it, the numbers of levels and priors don't match, or one
            is no bijection of all real images (the first level's domain may be another: it is the whole flow's).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: Sequence[Bijection],
        priors: Sequence[Bijection | None] | None = None,
    ) -> None:
        super().__init__(image_shape[0])
        if not levels:
            raise ValueError("a multi-scale flow needs at least one level")
        priors = [None] * (len(levels) - 1) if priors is None else list(priors)
        if len(priors) != len(levels) - 1:
            raise ValueError(f"{len(levels)} levels need {len(levels) - 1} priors, got {len(priors)}")
        self.image_shape = torch.Size(image_shape)
        self.levels = ModuleListOf(levels)
        self.priors = nn.ModuleList(nn.Identity() if prior is None else prior for prior in priors)
        self.latent_shapes: list[torch.Size] = []
        shape = self.image_shape
        for level, prior in zip(levels[:-1], priors, strict=True):
            shape = level.forward_shape(shape)
            if shape[-3] % 2:
                raise ValueError(f"a split needs an even number of channels, got {shape[-3]}")
            shape = shape if prior is None else prior.forward_shape(shape)
            shape = torch.Size((*shape[:-3], shape[-3] // 2, *shape[-2:]))
            self.latent_shapes.append(shape[-3:])
        shape = levels[-1].forward_shape(shape)
        self.latent_shapes.append(shape[-3:])
        self._batch_shape = shape[:-3]
        inside = [*levels, *(prior for prior in priors if prior is not None)]
        for place, part in enumerate(inside):
            if not (is_real(part.codomain) and (place == 0 or is_real(part.domain))):
                raise ValueError(
                    f"levels and priors are bijections of all real images, {type(part).__name__} is one of "
                    f"{part.domain} to {part.codomain}: put it before or after the multi-scale flow, in a Chain"
                )

    @property
    def batch_shape(self) -> torch.Size:
        """Of the context that levels and priors were conditioned on."""
        return self._batch_shape

    @property
    def domain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """The first level's."""
        return self.levels[0].domain

    def latents(self, z: Tensor) -> list[Tensor]:
        """The latents of each level, finest first, from their concatenation of shape ``(…, C, H, W)``."""
        sizes = [shape.numel() for shape in self.latent_shapes]
        parts = z.flatten(-3).split(sizes, -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.latent_shapes, strict=True)]

    def pack(self, latents: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`latents`."""
        return torch.cat([part.flatten(-3) for part in latents], -1).unflatten(-1, self.image_shape)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image to latents."""
        self._check_shape(x)
        total, done = x.new_zeros(x.shape[:-3]), []
        for index, level in enumerate(self.levels):
            x, ladj = level.forward_and_ladj(x)
            total = total + ladj
            if index < len(self.priors):
                if isinstance(prior := self.priors[index], Bijection):
                    x, ladj = prior.forward_and_ladj(x)
                    total = total + ladj
                x, factored = x.chunk(2, -3)
                done.append(factored)
        return self.pack([*done, x]), total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to image."""
        self._check_shape(y)
        *done, x = self.latents(y)
        total = y.new_zeros(y.shape[:-3])
        for index in reversed(range(len(self.levels))):
            if index < len(done):
                x = torch.cat([x, done[index]], -3)
                if isinstance(prior := self.priors[index], Bijection):
                    x, ladj = prior.inverse_and_ladj(x)
                    total = total + ladj
            x, ladj = self.levels[index].inverse_and_ladj(x)
            total = total + ladj
        return x, total

    def _check_shape(self, value: Tensor) -> None:
        if value.shape[-3:] != self.image_shape:
            raise ValueError(f"expected images of {tuple(self.image_shape)}, got a tensor of {tuple(value.shape)}")
