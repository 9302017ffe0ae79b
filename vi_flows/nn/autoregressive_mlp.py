"""A masked network whose outputs for entry i see only the entries before it, and a context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vi_flows.nn.masked import MaskedLinear, spread_degrees
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.nn.squash import squash
from vi_flows.nn.typed import ModuleListOf

__all__ = ["AutoregressiveMLP"]


class AutoregressiveMLP(nn.Module):
    r"""``num_params`` outputs for each entry of a vector, which depend on the entries before it (Germain et al. 2015).

    A context moves every layer's bias linearly, the last one's too, so that the first entry's outputs see it. All
    outputs start at zero.

    Args:
        input_dim: ``d``.
        num_params: outputs an entry, ``P``.
        hidden_dims: widths; hidden units see entries up to ``1 … d − 1``, evenly spread.
        activation: name, see :class:`~vi_flows.nn.MLP`.
        context_dim: length of the context; 0 for none.
        bounded: the network sees :func:`~vi_flows.nn.squash.squash` of the entries.

    Raises:
        ValueError: a size is out of range, or the activation unknown.
    """

    def __init__(
        self,
        input_dim: int,
        num_params: int,
        hidden_dims: Sequence[int],
        activation: str = "tanh",
        context_dim: int = 0,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if min(input_dim, num_params, *hidden_dims) < 1 or context_dim < 0:
            raise ValueError(f"sizes must be at least 1, got {input_dim}, {num_params}, {tuple(hidden_dims)}")
        self.input_dim, self.num_params, self.context_dim = input_dim, num_params, context_dim
        self.bounded = bounded
        widths = [input_dim, *hidden_dims, input_dim * num_params]
        degrees = [torch.arange(1, input_dim + 1)]
        degrees += [spread_degrees(width, input_dim) for width in hidden_dims]
        outputs = degrees[0].repeat_interleave(num_params)
        masks = [above[:, None] >= below for below, above in itertools.pairwise(degrees)]
        masks.append(outputs[:, None] > degrees[-1])
        self.layers = ModuleListOf(MaskedLinear(a, b) for a, b in itertools.pairwise(widths))
        for layer, mask in zip(self.layers, masks, strict=True):
            layer.set_mask(mask)
        self.context = ModuleListOf(
            nn.Linear(context_dim, width, bias=False) for width in (widths[1:] if context_dim else ())
        )
        self.activation = ACTIVATIONS[activation]()
        with torch.no_grad():
            for layer in (self.layers[-1], *self.context[-1:]):
                layer.weight.zero_()
            self.layers[-1].bias.zero_()

    def shifts(self, context: Tensor) -> list[Tensor]:
        """What a context ``(…, context_dim)`` adds to each layer, computed once for any number of passes."""
        return [layer(context) for layer in self.context]

    def forward(self, x: Tensor, shifts: Sequence[Tensor] = ()) -> Tensor:
        """``(…, d)`` to ``(…, d, P)``; ``shifts`` broadcast against the rows."""
        h = squash(x) if self.bounded else x
        for index, layer in enumerate(self.layers):
            h = layer(self.activation(h) if index else h)
            if shifts:
                h = h + shifts[index]
        return h.unflatten(-1, (self.input_dim, self.num_params))
