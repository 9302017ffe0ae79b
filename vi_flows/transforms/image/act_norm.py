"""Per-channel affine maps: actnorm with data-dependent initialization, batch norm as a bijection, diagonal scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vi_flows.parallel import count_over_rows, mean_over_rows
from vi_flows.recording import is_recomputed
from vi_flows.transforms.base import Bijection, expand_ladj
from vi_flows.transforms.image.base import ImageBijection
from vi_flows.transforms.image.pointwise import PixelLayer, PixelMap

__all__ = ["ActNorm", "ImageBatchNorm", "Scaling"]


def _per_channel(value: Tensor) -> Tensor:
    return value[:, None, None]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over everything else, and over all processes' rows; shapes ``(C,)``."""
    flat = x.movedim(-3, 0).flatten(1)
    mean = mean_over_rows(flat.mean(1))
    return mean, mean_over_rows((flat - mean[:, None]).square().mean(1))


class ActNorm(PixelLayer):
    r"""Activation normalisation (Kingma & Dhariwal, *Glow*, section 3.1): ``y = (x + b) ⊙ eˢ``, one pair a channel.

    ``log|det| = H W Σ_c s_c``. The first forward pass in training mode sets ``b`` and ``s`` so that each channel of its
    output has mean 0 and variance 1; from then on they are ordinary parameters.

    Args:
        channels: ``C``.
        data_init: whether the first training pass initializes from its batch; else the layer starts at the identity.

    Raises:
        ValueError: ``channels`` is less than 1; on use, the image has another number of channels.
    """

    initialized: Tensor

    def __init__(self, channels: int, data_init: bool = True) -> None:
        super().__init__(channels)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        # Kept as a buffer for the checkpoint, and as a plain flag so that no step waits for the device to answer.
        self.register_buffer("initialized", torch.tensor(not data_init))
        self._waiting = data_init

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        if not isinstance(self.bias, nn.Parameter) or not isinstance(self.log_scale, nn.Parameter):
            raise RuntimeError(
                "ActNorm can't initialize tensors that stand in for its parameters (torch.func.functional_call); run "
                "one batch through the module itself in training mode first, or make it with data_init=False"
            )
        mean, variance = _moments(x.detach().to(self.bias.dtype))
        self.bias.copy_(-mean)
        # A channel that is constant in the batch (an image border) keeps a bounded scale.
        self.log_scale.copy_(-0.5 * variance.clamp(min=1e-6).log())
        self.initialized.fill_(True)
        self._waiting = False

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(x + b) eˢ``; the first pass in training mode over a batch that is not empty initializes the parameters."""
        self._check_image(x)
        if self.waits and x.numel() > 0:
            self._initialize(x)
        y = (x + _per_channel(self.bias)) * _per_channel(self.log_scale.exp())
        return y, self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``y e⁻ˢ − b``."""
        self._check_image(y)
        x = y * _per_channel((-self.log_scale).exp()) - _per_channel(self.bias)
        return x, -self._ladj(y)

    def pixel_map(self, inverse: bool) -> PixelMap:
        """``diag(eˢ)`` with the offset ``b eˢ``; or ``diag(e⁻ˢ)`` with ``−b``."""
        if inverse:
            return PixelMap(torch.diag((-self.log_scale).exp()), -self.bias, -self.log_scale.sum())
        scale = self.log_scale.exp()
        return PixelMap(torch.diag(scale), self.bias * scale, self.log_scale.sum())

    @property
    def waits(self) -> bool:
        """Before it was initialized, in training mode."""
        return self._waiting and self.training

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_ladj(self.log_scale.sum() * (x.shape[-1] * x.shape[-2]), x, 3)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._waiting = not bool(self.initialized)


class ImageBatchNorm(ImageBijection):
    r"""Batch normalisation as a bijection (Dinh et al., *Real NVP*, section 3.7).

    ``y = (x − μ) / √(σ² + ε) · eˢ + b``, ``log|det| = H W Σ_c (s_c − ½ log(σ_c² + ε))``. In evaluation mode ``μ`` and
    ``σ²`` are the running averages, and the layer is a bijection of single images. In training mode the forward pass
    takes them from its batch (all leading dimensions together) and updates the averages; its log-determinant is then
    that of the map with these two held fixed, so it is a training objective and not a likelihood. The inverse always
    uses the running averages.

    Args:
        channels: ``C``.
        momentum: weight of a new batch in the running averages.
        eps: ``ε``.

    Raises:
        ValueError: ``channels`` is less than 1; on use, the image has another number of channels, or in training mode a
            channel has a single value.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels)
        self.momentum, self.eps = momentum, eps
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; in training mode by the batch's own moments."""
        self._check_image(x)
        if self.training and x.numel() > 0:
            if count_over_rows(x.numel() // x.shape[-3]) < 2:  # y would be b whatever x is, at a gain of ε^(-½)
                raise ValueError(
                    f"batch normalisation needs two values of every channel, got a minibatch of {tuple(x.shape)}: "
                    "train on two images at a time or more, or with another normalisation"
                )
            mean, variance = _moments(x)
            if not is_recomputed():
                with torch.no_grad():
                    self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                    self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        else:
            mean, variance = self.running_mean, self.running_var
        log_gain = self.log_scale - 0.5 * (variance + self.eps).log()
        y = (x - _per_channel(mean)) * _per_channel(log_gain.exp()) + _per_channel(self.bias)
        return y, self._ladj(log_gain, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the normalisation by the running averages."""
        self._check_image(y)
        log_gain = self.log_scale - 0.5 * (self.running_var + self.eps).log()
        x = (y - _per_channel(self.bias)) * _per_channel((-log_gain).exp()) + _per_channel(self.running_mean)
        return x, -self._ladj(log_gain, y)

    def _ladj(self, log_gain: Tensor, x: Tensor) -> Tensor:
        return expand_ladj(log_gain.sum() * (x.shape[-1] * x.shape[-2]), x, 3)


class Scaling(Bijection):
    """The diagonal scaling at the top of NICE (Dinh et al., *NICE*, section 3.3): ``y = x ⊙ eˢ``, one ``s`` an element.

    Args:
        event_shape: of one input.

    Raises:
        ValueError: on use, an input has events of another shape.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_dim=len(event_shape))
        self.log_scale = nn.Parameter(torch.zeros(*event_shape))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x eˢ``, log-determinant ``Σ s``."""
        self._check_events(x)
        return x * self.log_scale.exp(), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``y e⁻ˢ``."""
        self._check_events(y)
        return y * (-self.log_scale).exp(), -self._ladj(y)

    def _check_events(self, value: Tensor) -> None:
        self._check_tensor(value)
        if value.shape[max(value.dim() - self.event_dim, 0) :] != self.log_scale.shape:
            raise ValueError(
                f"Scaling acts on events of shape {tuple(self.log_scale.shape)}, got a tensor of {tuple(value.shape)}"
            )

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_ladj(self.log_scale.sum(), x, self.event_dim)
