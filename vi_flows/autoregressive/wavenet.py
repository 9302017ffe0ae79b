r"""WaveNet: sequences by stacks of causal dilated convolutions. Van den Oord et al. 2016, *WaveNet*."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.autoregressive.base import Autoregressive
from vi_flows.autoregressive.outputs import Output
from vi_flows.nn.masked import CausalConv1d, ContextBias
from vi_flows.progress import progress_bar
from vi_flows.settings import check_tensors

__all__ = ["WaveNet", "mu_law_decode", "mu_law_encode"]


def _check_levels(num_bins: int) -> None:
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, got {num_bins}")


def mu_law_encode(audio: Tensor, num_bins: int = 256) -> Tensor:
    r"""``sign(a) ln(1 + μ|a|) / ln(1 + μ)`` with ``μ = num_bins − 1``, rounded to ``0 … μ`` (paper, section 2.2).

    Args:
        audio: in ``[−1, 1]``, floating.
        num_bins: levels.

    Returns:
        Levels as floats, of the same shape.

    Raises:
        ValueError: a value is outside of ``[−1, 1]`` or not a number, or there are fewer than two levels.
    """
    _check_levels(num_bins)
    check_tensors(audio=audio)
    if not bool((audio.abs() <= 1).all()):
        raise ValueError("audio for the μ-law must lie in [−1, 1]; divide it by its full scale first")
    mu = num_bins - 1
    companded = audio.sign() * (mu * audio.abs()).log1p() / math.log1p(mu)
    return ((companded + 1) / 2 * mu).round()


def mu_law_decode(levels: Tensor, num_bins: int = 256) -> Tensor:
    r"""The inverse of :func:`mu_law_encode` up to its rounding: ``sign(y) ((1 + μ)^|y| − 1) / μ``.

    Args:
        levels: from 0 to ``num_bins − 1``, floating.
        num_bins: levels.

    Returns:
        Audio in ``[−1, 1]``, of the same shape.

    Raises:
        ValueError: a level is outside of ``0 … num_bins − 1`` or not a number, or there are fewer than two levels.
    """
    _check_levels(num_bins)
    if not bool(((levels >= 0) & (levels <= num_bins - 1)).all()):
        raise ValueError(f"levels of the μ-law must lie in 0 … {num_bins - 1}")
    mu = num_bins - 1
    y = 2 * levels / mu - 1
    return y.sign() * (y.abs() * math.log1p(mu)).expm1() / mu


class WaveNetLayer(nn.Module):
    r"""``z = tanh(W_f ∗ h) · σ(W_g ∗ h)``, and onward ``h + W_r z`` (paper, eq. 2 and figure 4).

    The skip ``W_s z`` of the paper is left to the model, which makes the sum of all layers' skips in one product.

    Args:
        width: features of the residual path.
        skip_width: features of the skip path.
        kernel_size: of the dilated convolution.
        dilation: of the dilated convolution.
        context_dim: size of the context (paper, eq. 3).
        last: whether nothing uses the residual output, which then has no weights ``W_r``.
    """

    def __init__(
        self, width: int, skip_width: int, kernel_size: int, dilation: int, context_dim: int, last: bool
    ) -> None:
        super().__init__()
        self.conv = CausalConv1d(width, 2 * width, kernel_size, dilation)
        self.context = ContextBias(context_dim, 2 * width)
        self.residual: nn.Module = nn.Identity() if last else nn.Conv1d(width, width, 1)
        self.skip = nn.Conv1d(width, skip_width, 1)
        self.last = last

    def forward(self, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """``h`` of shape ``(N, width, T)`` to the residual output and ``z``."""
        a, b = self.context(self.conv(h), context).chunk(2, 1)
        z = a.tanh() * b.sigmoid()
        return h if self.last else h + self.residual(z), z


def bias_of(conv: nn.Conv1d) -> Tensor:
    """The bias of a convolution that was made with one."""
    return cast(Tensor, conv.bias)


def transposed(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """Bias and weight ``(k · in, out)`` of a convolution for ``torch.addmm``, from the present input to the past."""
    return bias_of(conv), conv.weight.permute(2, 1, 0).flip(0).flatten(0, 1)


class Window:
    """The last inputs of a causal convolution, those that its taps see; before the beginning they are zero.

    Args:
        conv: the convolution.
        rows: of the batch.
    """

    def __init__(self, conv: CausalConv1d, rows: int) -> None:
        nothing = conv.weight.new_zeros(rows, conv.in_channels)
        # One queue for each tap of the past: what leaves one has come to its tap, and enters the next.
        self.queues = [deque([nothing] * conv.dilation[0]) for _ in range(conv.kernel_size[0] - 1)]

    def step(self, h: Tensor) -> Tensor:
        """``(N, k · in_channels)``, the present input first, when that is ``h`` of shape ``(N, in_channels)``."""
        seen = [h]
        for queue in self.queues:
            queue.append(seen[-1])
            seen.append(queue.popleft())
        return torch.cat(seen, 1)


class LayerSteps:
    """A layer step by step.

    Args:
        layer: the layer.
        context: ``(N, context_dim)``.
    """

    def __init__(self, layer: WaveNetLayer, context: Tensor) -> None:
        self.last = layer.last
        self.window = Window(layer.conv, len(context))
        bias, weight = transposed(layer.conv)
        shift = layer.context(bias.expand(len(context), -1), context)
        # Two products, whose results can be changed in place, cost less than one that is split.
        (self.filter_shift, self.gate_shift), (self.filter, self.gate) = shift.chunk(2, 1), weight.chunk(2, 1)
        if not self.last:
            self.bias, self.weight = transposed(cast(nn.Conv1d, layer.residual))

    def step(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The residual output and ``z``, from ``h`` of shape ``(N, width)``, at the next step."""
        seen = self.window.step(h)
        gate = torch.addmm(self.gate_shift, seen, self.gate).sigmoid_()
        z = torch.addmm(self.filter_shift, seen, self.filter).tanh_() * gate
        return h if self.last else h + torch.addmm(self.bias, z, self.weight), z


class WaveNet(Autoregressive):
    r"""A causal convolution, gated dilated layers with residual and skip connections, and two 1×1 layers.

    Entry ``t`` sees exactly the ``receptive_field`` entries before it. The network sees entries scaled by the
    output's family, as one number each.

    Args:
        num_steps: ``T``, the length of an event.
        output: family of the conditionals; for audio ``Categorical(256)`` over :func:`mu_law_encode`.
        width: features of the residual path.
        skip_width: features of the skip path.
        dilations: of the layers, the paper's ``1, 2, …, 512`` repeated.
        kernel_size: of all convolutions in time (2 in the paper).
        context_dim: see :class:`Autoregressive`.

    Raises:
        ValueError: a size or dilation is less than 1, or there are no layers.
    """

    def __init__(
        self,
        num_steps: int,
        output: Output,
        width: int = 32,
        skip_width: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        kernel_size: int = 2,
        context_dim: int = 0,
    ) -> None:
        super().__init__((num_steps,), output, context_dim)
        if not dilations or min(width, skip_width, kernel_size, *dilations) < 1:
            raise ValueError(
                f"a WaveNet needs layers, and sizes of at least 1; got width {width}, skip_width {skip_width}, "
                f"kernel_size {kernel_size}, dilations {tuple(dilations)}"
            )
        self.first = CausalConv1d(1, width, kernel_size)
        layers = [
            WaveNetLayer(width, skip_width, kernel_size, dilation, context_dim, last=index == len(dilations) - 1)
            for index, dilation in enumerate(dilations)
        ]
        self.layers = nn.ModuleList(layers)
        self.receptive_field = kernel_size + sum((kernel_size - 1) * dilation for dilation in dilations)
        """Entries before its own that an entry's conditional sees."""
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(skip_width, skip_width, 1), nn.ReLU(), nn.Conv1d(skip_width, output.num_params, 1)
        )

    def with_length(self, num_steps: int) -> WaveNet:
        """The same network, weights and all, for events of another length.

        Raises:
            ValueError: the length is less than 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        other = copy.copy(self)
        other.event_shape = torch.Size((num_steps,))
        return other

    def _layers(self) -> list[WaveNetLayer]:
        return cast(list[WaveNetLayer], list(self.layers))

    def _skips(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of the sum of all skips, ``Σ_l W_s z_l``, as of one 1×1 convolution of all ``z_l``."""
        convs = [layer.skip for layer in self._layers()]
        return torch.cat([conv.weight for conv in convs], 1), torch.stack([bias_of(conv) for conv in convs]).sum(0)

    def generation_order(self) -> Tensor:
        """Time."""
        return torch.arange(self.event_shape[0])

    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.params`."""
        # One step late: output t sees inputs up to t − 1. The zero that enters is no entry, so it is not encoded.
        h = self.first(F.pad(self.output.encode(x), (1, -1))[:, None])
        gated = []
        for layer in self._layers():
            h, z = layer(h, context)
            gated.append(z)
        return self.head(F.conv1d(torch.cat(gated, 1), *self._skips())).movedim(1, -1)

    def extend(self, x: Tensor, num_known: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.extend`; with the layers' inputs remembered, O(layers) for each entry."""
        first, (first_bias, first_weight) = Window(self.first, len(context)), transposed(self.first)
        layers = [LayerSteps(layer, context) for layer in self._layers()]
        skip_weight, skip_bias = self._skips()
        skip_weight = skip_weight[..., 0].mT
        head = [transposed(conv) for conv in cast(list[nn.Conv1d], list(self.head)[1::2])]
        entries = list(x.unbind(1))
        previous = torch.zeros_like(entries[0])
        for time in progress_bar(range(self.event_shape[0]), unit="step", shown=progress):
            h, gated = torch.addmm(first_bias, first.step(previous[:, None]), first_weight), []
            for layer in layers:
                h, z = layer.step(h)
                gated.append(z)
            if time >= num_known:
                params = torch.addmm(skip_bias, torch.cat(gated, 1), skip_weight)
                for bias, weight in head:
                    params = torch.addmm(bias, params.relu(), weight)
                entries[time] = self.output.sample(params)
            previous = self.output.encode(entries[time])
        return torch.stack(entries, 1)
