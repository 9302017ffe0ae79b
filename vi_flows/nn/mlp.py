"""Fully connected networks on the last dimension, with any leading dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP", "BatchNorm", "GaussianHead", "ZeroMLP"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last dimension over all leading ones (particles and rows alike)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(…, num_features)``."""
        return super().forward(x.reshape(-1, self.num_features)).reshape(x.shape)


class MLP(nn.Sequential):
    """Linear layers, each followed by an optional batch normalisation and an activation.

    Args:
        input_dim: size of the last dimension of the input.
        hidden_dims: widths; an empty list gives the identity.
        activation: name in ``ACTIVATIONS``; the papers' VAEs use ``tanh``.
        batch_norm: normalise before each activation.
        dropout: share of each layer's units that training leaves out, after the activation.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        activation: str = "tanh",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        layers: list[nn.Module] = []
        width = input_dim
        for hidden in hidden_dims:
            layers.append(nn.Linear(width, hidden, bias=not batch_norm))
            if batch_norm:
                layers.append(BatchNorm(hidden))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden
        super().__init__(*layers)
        self.output_dim = width


class ZeroMLP(nn.Module):
    """An :class:`MLP` with a linear layer that starts at zero: the network of a vector coupling.

    Args:
        input_dim: features.
        output_dim: outputs.
        hidden_dims: widths of the hidden layers.
        activation: of the hidden layers.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_dims: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        self.hidden = MLP(input_dim, hidden_dims, activation)
        self.last = nn.Linear(self.hidden.output_dim, output_dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, input_dim)`` to ``(…, output_dim)``."""
        return self.last(self.hidden(x))


class GaussianHead(nn.Module):
    """Mean and log-variance of a diagonal Gaussian, from one linear layer each (fused into one product).

    Args:
        input_dim: features.
        output_dim: dimensions of the Gaussian.
    """

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, 2 * output_dim)
        # The two halves are drawn independently; variances start within a few per cent of one.
        with torch.no_grad():
            self.linear.weight[output_dim:].mul_(0.1)
            self.linear.bias[output_dim:].zero_()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(loc, log_scale)``, each ``(…, output_dim)``; the log-variance is twice the log-scale."""
        loc, log_variance = self.linear(features).chunk(2, -1)
        return loc, 0.5 * log_variance
