"""Image conditioners: the networks that compute a coupling's parameters, with outputs that start at zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.mlp import MLP
from vi_flows.nn.squash import squash
from vi_flows.recording import is_recomputed

__all__ = [
    "ConvConditioner",
    "GatedBlock",
    "GatedConditioner",
    "MLPConditioner",
    "PixelNetwork",
    "ResNetConditioner",
    "ResidualBlock",
    "ZeroConv2d",
]


MIN_PIXELS = 32
"""Images of fewer pixels (4×4) stay in their layout: there the networks' weights cost as much as their images."""


def channels_last(x: Tensor) -> Tensor:
    """The same images with the channels innermost in memory, where that makes convolutions faster.

    On a CPU a training pass of the three-layer network takes between 0.5 (52 channels, 14×14) and 0.9 (128 channels,
    8×8) of its time in the usual layout, and up to 1.17 at 4×4 (512 channels). Other devices are left alone.
    """
    _, c, h, w = x.shape
    if h * w < MIN_PIXELS or x.device.type != "cpu":
        return x
    # `contiguous(memory_format=…)` changes nothing for one channel, and can't be vmapped.
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (h, w, c)).permute(0, 3, 1, 2)


class PixelNetwork(nn.Sequential):
    """Convolutions of images: bounded for every input, see :func:`squash`, and in the layout of memory that suits."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        return super().forward(channels_last(squash(x))).contiguous()


class ZeroConv2d(nn.Conv2d):
    """A convolution whose weights and biases start at zero, so that a coupling starts with zero maps.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd; the image keeps its size.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConvConditioner(PixelNetwork):
    """The three-layer network of Glow and of Nagar et al.: 3×3, ReLU, 1×1, ReLU, 3×3 starting at zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        width: of the hidden layers (the papers' 512).

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 512) -> None:
        if min(in_channels, out_channels, width) < 1:
            raise ValueError(f"sizes must be at least 1, got {in_channels}, {out_channels}, {width}")
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            ZeroConv2d(width, out_channels),
        )


class _BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, whose running averages a pass that is only computed again does not move a second time."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and is_recomputed():  # copies, because as many tensors as before must be kept for gradients
            mean, var = self.running_mean, self.running_var
            copies = (None if mean is None else mean.clone(), None if var is None else var.clone())
            return F.batch_norm(x, *copies, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


class ResidualBlock(nn.Module):
    """``h + conv(relu(norm(conv(relu(norm(h))))))`` with 3×3 convolutions.

    Args:
        width: channels.
        norm: ``none``, ``batch`` or ``group`` (8 groups, or as many as divide the width); without a norm the last
            convolution starts at zero, so that deep stacks start as the identity.

    Raises:
        ValueError: the norm is unknown.
    """

    def __init__(self, width: int, norm: str = "none") -> None:
        super().__init__()
        norms: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "batch": lambda: _BatchNorm2d(width),
            "group": lambda: nn.GroupNorm(math.gcd(8, width), width),
        }
        if norm not in norms:
            raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(norms)}")
        self.norm1, self.norm2 = norms[norm](), norms[norm]()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1) if norm != "none" else ZeroConv2d(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same shape."""
        inner = self.conv1(F.relu(self.norm1(h)))
        return h + self.conv2(F.relu(self.norm2(inner), inplace=True))


class ResNetConditioner(PixelNetwork):
    """The residual network of Real NVP and MCONV: a 3×3 convolution, residual blocks, ReLU, a 1×1 starting at zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        width: feature maps (64 in both papers).
        num_blocks: residual blocks (8 in both papers).
        norm: see :class:`ResidualBlock`.

    Raises:
        ValueError: a size is less than 1, or the norm is unknown.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 64, num_blocks: int = 8, norm: str = "none"
    ) -> None:
        if min(in_channels, out_channels, width) < 1 or num_blocks < 0:
            raise ValueError(f"sizes must be at least 1, got {in_channels}, {out_channels}, {width}, {num_blocks}")
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            *(ResidualBlock(width, norm) for _ in range(num_blocks)),
            nn.ReLU(inplace=True),
            ZeroConv2d(width, out_channels, 1),
        )


class GatedBlock(nn.Module):
    """``h + a ⊙ σ(b)`` with ``(a, b) = conv1×1(relu(conv3×3(relu(h))))``: the block of *Flow++* without attention.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Conv2d(width, 2 * width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same shape."""
        return h + F.glu(self.gate(F.relu(self.conv(F.relu(h)), inplace=True)), 1)


class GatedConditioner(PixelNetwork):
    """A network of gated blocks (Ho et al. 2019, *Flow++*, section 3.3): 3×3, blocks, ReLU, a 1×1 starting at zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        width: feature maps.
        num_blocks: gated blocks.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, num_blocks: int = 2) -> None:
        if min(in_channels, out_channels, width) < 1 or num_blocks < 0:
            raise ValueError(f"sizes must be at least 1, got {in_channels}, {out_channels}, {width}, {num_blocks}")
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            *(GatedBlock(width) for _ in range(num_blocks)),
            nn.ReLU(inplace=True),
            ZeroConv2d(width, out_channels, 1),
        )


class MLPConditioner(nn.Module):
    """A fully connected network over all pixels and channels, as in NICE; its last layer starts at zero.

    Args:
        in_shape: ``(C, H, W)`` of the input.
        out_channels: of the output, which has the input's height and width.
        hidden_dims: widths of the hidden layers (NICE on MNIST: five of 1000).
        activation: name, see :class:`~vi_flows.nn.MLP`.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_channels: int,
        hidden_dims: Sequence[int] = (1000,) * 5,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.out_shape = torch.Size((out_channels, *in_shape[1:]))
        self.body = MLP(math.prod(in_shape), hidden_dims, activation)
        self.head = nn.Linear(self.body.output_dim, self.out_shape.numel())
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out_channels, H, W)``; logits reach ±16, so this one sees them as they are."""
        return self.head(self.body(x.flatten(-3))).unflatten(-1, self.out_shape)
