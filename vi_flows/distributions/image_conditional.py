"""Image densities given a context, such as the class of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vi_flows.distributions.dequantization import Dequantizer
from vi_flows.distributions.image import ImageDensity, check_density_settings
from vi_flows.settings import check_context, check_counts
from vi_flows.transforms import ConditionalBijection

__all__ = ["ConditionalImageDensity"]


class ConditionalImageDensity(nn.Module):
    """Densities of integer images ``p(x | c)``, one for each context ``c``: ``condition(c)`` gives them.

    In a Pyro program: ``pyro.sample("x", density.condition(one_hot).distribution(), obs=images)``.

    Args:
        flow: a family of bijections from base to logits, see
            :meth:`~vi_flows.flows.image_base.ImageFlow.build_conditional`.
        image_shape: ``(C, H, W)``.
        context_dim: length of the context, for one-hot classes their number.
        num_levels: see :class:`~vi_flows.distributions.image.ImageDensity`, as all below.
        alpha: of the logit map.
        base: ``normal`` or ``logistic``.
        dequantizer: default: uniform; it doesn't see the context.

    Raises:
        ValueError: the context is empty, or see :func:`~vi_flows.distributions.image.check_density_settings`.
    """

    origin: Tensor

    def __init__(
        self,
        flow: ConditionalBijection,
        image_shape: Sequence[int],
        context_dim: int,
        num_levels: int = 256,
        alpha: float = 1e-6,
        base: str = "normal",
        dequantizer: Dequantizer | None = None,
    ) -> None:
        super().__init__()
        check_counts(1, context_dim=context_dim)
        check_density_settings(image_shape, num_levels, alpha, base)
        self.flow, self.context_dim = flow, context_dim
        self.image_shape, self.num_levels, self.alpha, self.base = tuple(image_shape), num_levels, alpha, base
        self.num_dims = math.prod(self.image_shape)
        self.dequantizer = dequantizer
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def condition(self, context: Tensor) -> ImageDensity:
        """``p(· | c)`` of each row of ``context``: a density of the context's batch shape that shares all parameters.

        Args:
            context: ``batch_shape + (context_dim,)``.

        Raises:
            ValueError: the last size isn't ``context_dim``, or an entry is NaN or infinite.
        """
        check_context(context, self.context_dim)
        density = ImageDensity(
            self.flow.condition(context.to(self.origin)), self.image_shape, self.num_levels, self.alpha, self.base,
            self.dequantizer, context.shape[:-1],
        )  # fmt: skip
        density.origin = self.origin
        shared = set(self.modules())  # which keep their own modes: a part may be frozen
        for module in density.modules():
            if module not in shared:
                module.training = self.training
        return density

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused in a sentence, like all that only the density given a context has."""
        raise TypeError(
            f"this density has a context of size {self.context_dim}: what is called is condition(context), with images"
        )

    def __getattr__(self, name: str) -> Any:
        """Submodules and the like; what only the density given a context has is refused in a sentence."""
        if name in vars(ImageDensity):
            raise AttributeError(
                f"this density has a context of size {self.context_dim}: {name} is that of condition(context)"
            )
        return super().__getattr__(name)
