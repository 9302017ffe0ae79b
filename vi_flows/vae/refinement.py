"""Semi-amortised inference: an image's own parameters of the guide, found by gradients from the encoder's on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vi_flows.evaluation import NOT_KEPT, Parts
from vi_flows.evaluation.nll import devices_of
from vi_flows.progress import progress_bar
from vi_flows.settings import Positive, PositiveFloat, check_settings
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.vae import VAE

__all__ = ["RefinedGuide", "RefinementSettings", "refine"]


@dataclass(frozen=True)
class RefinementSettings:
    """How the guide's parameters of each image are improved before they are sampled from."""

    steps: Positive = 100
    """Steps of Adam an image."""
    particles: Positive = 8
    """Draws of the bound in each step."""
    learning_rate: PositiveFloat = 0.02
    """Adam's at the first step; it falls to zero by a cosine."""

    def __post_init__(self) -> None:
        check_settings(self)


class RefinedGuide(AmortizedGuide):
    """An amortised guide whose factors are moved, for each image, by offsets of its own.

    They are added to the Gaussian's mean, to its log-scale and, where a flow follows, to the features that the flow's
    parameters come from; of several latents each has its own, whatever the draws below it. At zero the guide is the
    amortised one.

    Args:
        guide: its networks, heads and flows are shared.
        offsets: ``(B, size)`` for images ``(B, D)``, as many columns as :meth:`offsets_an_image` says.
    """

    def __init__(self, guide: AmortizedGuide, offsets: Tensor) -> None:
        nn.Module.__init__(self)
        self.latent_names, self.data_dim, self.latent_dims = guide.latent_names, guide.data_dim, guide.latent_dims
        self.networks, self.heads, self.flows = guide.networks, guide.heads, guide.flows
        self.offsets = offsets.split([size for sizes in _sizes(guide) for size in sizes], -1)

    @staticmethod
    def offsets_an_image(guide: AmortizedGuide) -> int:
        """Numbers that an image has of its own."""
        return sum(sum(sizes) for sizes in _sizes(guide))

    def local(self, index: int, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`AmortizedGuide.local`."""
        moved = zip(super().local(index, below), self.offsets[3 * index : 3 * index + 3], strict=True)
        loc, log_scale, features = (value + own if own.shape[-1] else value for value, own in moved)
        return loc, log_scale, features


def _sizes(guide: AmortizedGuide) -> list[tuple[int, int, int]]:
    """Of each latent's mean, log-scale and features, which nothing sees where there is no flow."""
    return [
        (dim, dim, network.output_dim if str(index) in guide.flows else 0)
        for index, (dim, network) in enumerate(zip(guide.latent_dims, guide.networks, strict=True))
    ]


def refine(
    vae: VAE,
    x: Tensor,
    settings: RefinementSettings,
    rows_at_once: int,
    *,
    seed: int = 0,
    progress: bool = False,
    parts: Parts = NOT_KEPT,
) -> Tensor:
    r"""Offsets of each image that raise its own ``E_q[log p(x, z) − log q(z|x)]`` (Kim et al. 2018, *Semi-amortized
    variational autoencoders*, section 3; Cremer et al. 2018, *Inference suboptimality*, section 2.2).

    Args:
        vae: in ``eval()`` mode, with parameters that need no gradients.
        x: images ``(N, D)``.
        settings: of the optimisation.
        rows_at_once: images that are worked on together.
        seed: of the draws.
        progress: show a bar.
        parts: where images that were worked on before are taken from.

    Returns:
        ``(N, size)``, for :class:`RefinedGuide`.

    Raises:
        ValueError: see :meth:`LatentChain.rows`.
        FloatingPointError: an image's offsets are not finite.
    """
    x = vae.model.rows(x)
    found = []
    bar = progress_bar(total=len(x), unit="image", shown=progress)
    with torch.random.fork_rng(devices_of(x.device)), bar:
        for first in range(0, len(x), rows_at_once):
            rows = x[first : first + rows_at_once]
            torch.manual_seed((seed * 1_000_003 + first) % 2**63)
            found.append(parts.part("offsets", first, partial(_refined, vae, rows, first, settings))["offsets"])
            bar.update(len(rows))
    return torch.cat(found).to(x.device)


@torch.enable_grad()
def _refined(vae: VAE, rows: Tensor, first: int, settings: RefinementSettings) -> dict[str, Tensor]:
    offsets = vae.model.origin.new_zeros(len(rows), RefinedGuide.offsets_an_image(vae.guide)).requires_grad_()
    optimizer = torch.optim.Adam([offsets])
    for step in range(settings.steps):
        rate = 0.5 * settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = rate
        own = VAE(vae.model, RefinedGuide(vae.guide, offsets))
        # Each image's bound is a function of its own offsets alone, so that their sum has all gradients.
        bound = own.log_weight_terms(rows, settings.particles).log_weights().mean(0).sum()
        (offsets.grad,) = torch.autograd.grad(-bound, offsets)
        optimizer.step()
    bad = ~offsets.isfinite().all(-1)
    if bad.any():
        raise FloatingPointError(
            f"the refined guide of row {first + int(bad.nonzero()[0])} is not finite: the model has diverged"
        )
    return {"offsets": offsets.detach().cpu()}
