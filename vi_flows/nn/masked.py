r"""Linear layers and convolutions whose weights are masked, so that an output sees only a chosen part of the input.

The features of an image layer are split into ``data_channels`` contiguous groups of equal size, one for each channel
of the image; at the pixel itself an output of group ``i`` sees the input groups ``j < i`` (type A, first layers) or
``j ≤ i`` (type B, all later ones). Van den Oord et al. 2016, *Pixel Recurrent Neural Networks*, section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CausalConv1d", "ContextBias", "ContextMap", "MaskedConv2d", "MaskedLinear", "spread_degrees"]

MASK_TYPES = ("A", "B")
REGIONS = ("raster", "rows")


def spread_degrees(width: int, size: int) -> Tensor:
    """Degrees of hidden units, spread evenly over ``1 … size − 1``: a unit of degree ``m`` sees the first ``m`` ones.

    Every degree occurs where there are units enough; with fewer the spread still ends at ``size − 1``, so that the last
    entry's output sees all entries before it.

    Args:
        width: hidden units.
        size: entries in the order, ``D``.
    """
    top = max(1, size - 1)
    if width >= top:
        return torch.arange(width) % top + 1
    return torch.linspace(1, top, width).round().long()


class MaskedLinear(nn.Linear):
    """``(W ∘ M) x + b`` with a mask ``M`` that can be replaced; it starts full.

    Args:
        in_features: of the input.
        out_features: of the output.
        bias: whether ``b`` is there.
    """

    mask: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("mask", torch.ones(out_features, in_features, dtype=torch.bool))

    def set_mask(self, mask: Tensor) -> None:
        """Replace the mask.

        Args:
            mask: ``(out_features, in_features)``, true where the weight counts.

        Raises:
            ValueError: the mask has another shape.
        """
        if mask.shape != self.mask.shape:
            raise ValueError(f"the mask must have shape {tuple(self.mask.shape)}, got {tuple(mask.shape)}")
        self.mask.copy_(mask)

    def under(self, mask: Tensor, x: Tensor) -> Tensor:
        """The layer's output under another mask, which is not kept."""
        # Not a product with zero: a weight that has become infinite must not leak through the mask as a NaN.
        return F.linear(x, self.weight.masked_fill(~mask, 0.0), self.bias)

    def rows_under(self, mask: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        """Some of the outputs of :meth:`under`.

        Args:
            mask: the whole mask.
            rows: indices of the outputs.
            x: ``(…, in_features)``.
        """
        bias = None if self.bias is None else self.bias[rows]
        return F.linear(x, self.weight[rows].masked_fill(~mask[rows], 0.0), bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        return self.under(self.mask, x)


class ContextBias(nn.Module):
    """Adds a linear map of a context to features; with a context of size 0 it is the identity.

    Args:
        context_dim: size of the context.
        num_features: size of the features' dimension 1.
    """

    def __init__(self, context_dim: int, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.map = nn.Linear(context_dim, num_features, bias=False) if context_dim else nn.Identity()
        self.active = context_dim > 0

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """``h`` of shape ``(N, num_features, …)`` with ``context`` of shape ``(N, context_dim)``."""
        if not self.active:
            return h
        bias = self.map(context)
        return h + bias.reshape(*bias.shape, *(1,) * (h.ndim - 2))


class ContextMap(nn.Module):
    """A context as features of every place of an image, so that it can say something else at each.

    Args:
        context_dim: size of the context.
        num_features: features at a place.
        size: ``(H, W)``.
        num_maps: features at a place that the context sets by weights of that place's own; a 1×1 convolution, the same
            everywhere, makes ``num_features`` of them.
    """

    def __init__(self, context_dim: int, num_features: int, size: tuple[int, int], num_maps: int) -> None:
        super().__init__()
        self.maps = nn.Linear(context_dim, num_maps * size[0] * size[1])
        self.shape = (num_maps, *size)
        self.mix = nn.Conv2d(num_maps, num_features, 1, bias=False)

    def forward(self, context: Tensor) -> Tensor:
        """``(N, context_dim)`` to ``(N, num_features, H, W)``."""
        return self.mix(self.maps(context).unflatten(-1, self.shape))


class MaskedConv2d(nn.Conv2d):
    r"""A convolution that sees only pixels before its own, and at its own only the channels that the type allows.

    ``region="raster"`` keeps the rows above and, in the pixel's own row, what is left of it; the pixel itself by the
    type. ``region="rows"`` is for vertical stacks: the rows above (type A), or those and the pixel's whole row (type
    B), with all columns and groups; a stack that begins with type A therefore sees exactly the rows above.

    Args:
        in_channels: features of the input, a multiple of ``data_channels``.
        out_channels: features of the output, a multiple of ``data_channels``.
        kernel_size: ``(height, width)``, both odd; the image keeps its size.
        mask_type: ``A`` or ``B``.
        data_channels: groups of features, the channels of the image.
        region: ``raster`` or ``rows``.

    Raises:
        ValueError: the type or region is unknown, a kernel side is even, or the groups don't divide the features.
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        mask_type: str,
        data_channels: int = 1,
        region: str = "raster",
    ) -> None:
        height, width = kernel_size
        if mask_type not in MASK_TYPES:
            raise ValueError(f"unknown mask type {mask_type!r}; choose one of {', '.join(MASK_TYPES)}")
        if region not in REGIONS:
            raise ValueError(f"unknown region {region!r}; choose one of {', '.join(REGIONS)}")
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"the sides of a masked kernel must be odd, got {height}×{width}")
        if in_channels % data_channels or out_channels % data_channels:
            raise ValueError(
                f"{in_channels} and {out_channels} features can't be split into {data_channels} equal groups; "
                "choose multiples of the number of image channels"
            )
        super().__init__(in_channels, out_channels, kernel_size, padding=(height // 2, width // 2))
        mask = torch.zeros_like(self.weight, dtype=torch.bool)
        mask[:, :, : height // 2] = True
        if region == "rows":
            mask[:, :, height // 2] = mask_type == "B"
        else:
            mask[:, :, height // 2, : width // 2] = True
            group_in = torch.arange(in_channels) // (in_channels // data_channels)
            group_out = torch.arange(out_channels) // (out_channels // data_channels)
            distance = group_out[:, None] - group_in
            mask[:, :, height // 2, width // 2] = distance > 0 if mask_type == "A" else distance >= 0
        self.register_buffer("mask", mask, persistent=False)
        live = mask.any(0).any(0)
        self.live_rows = 1 + max((i for i in range(height) if live[i].any()), default=0)
        self.live_columns = 1 + max((i for i in range(width) if live[:, i].any()), default=0)

    def live_weight(self) -> Tensor:
        """The masked kernel without the rows below and the columns to the right of all that it sees."""
        box = (..., slice(self.live_rows), slice(self.live_columns))
        return self.weight[box].masked_fill(~self.mask[box], 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        # A smaller kernel under the same padding: the first rows and columns are the whole kernel's, the rest is cut.
        out = F.conv2d(x, self.live_weight(), self.bias, padding=self.padding)
        return out[..., : x.shape[-2], : x.shape[-1]]


class CausalConv1d(nn.Conv1d):
    r"""A dilated convolution of a sequence that sees the present and the past: ``y_t = b + Σ_i W_i x_{t−(k−1−i)d}``.

    Van den Oord et al. 2016, *WaveNet*, section 2.1; before the sequence begins the input counts as zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: ``k``.
        dilation: ``d``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        self.history = (kernel_size - 1) * dilation
        """Steps before the present that an output can see."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, T)`` to ``(N, out_channels, T)``."""
        return super().forward(F.pad(x, (self.history, 0)))
