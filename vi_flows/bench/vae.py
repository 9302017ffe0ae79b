"""Rows about whole VAEs: what a flow adds to a training step and to an evaluation, and what Pyro adds to PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.bench.measure import Measurement, compare
from vi_flows.evaluation import estimate_nll
from vi_flows.flows import ConvFlow
from vi_flows.objectives import ELBO, elbo_bound, iwae_bound
from vi_flows.vae import VAE, VAEConfig, build_vae

__all__ = ["bare_step", "direct_step", "flow_over_plain_nll", "flow_over_plain_step", "pyro_over_bare", "pyro_step"]

PIXELS, BATCH, LATENT, HIDDEN = 784, 100, 50, 200
BLOCKS = 8
Step = Callable[[], Tensor]


def images(rows: int) -> Tensor:
    """Binary pixels; their values don't change what a step costs."""
    torch.manual_seed(2)
    return torch.bernoulli(torch.full((rows, PIXELS), 0.13))


POSTERIORS = {
    "none": VAEConfig(),
    "global": VAEConfig(flow=ConvFlow(BLOCKS), amortized=False),
    "amortized": VAEConfig(flow=ConvFlow(BLOCKS)),
}


def make_vae(posterior: str) -> VAE:
    """G1 with the paper's widths, and one of :data:`POSTERIORS`."""
    torch.manual_seed(0)
    return build_vae(POSTERIORS[posterior], PIXELS)


def optimize(module: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """A training step with fused Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return step


def direct_step(vae: VAE, num_particles: int = 1, batch: int = BATCH) -> Step:
    """The bound that `vi-flows train` differentiates, with the same update as its peers."""
    x, bound = images(batch), elbo_bound if num_particles == 1 else iwae_bound
    return optimize(vae, lambda: -bound(vae.log_weight_terms(x, num_particles)).mean())


def pyro_step(vae: VAE, batch: int = BATCH) -> Step:
    """The same model and guide as Pyro programs under this library's ELBO; validation off, as in any timed Pyro run."""
    x, elbo = images(batch), ELBO()

    def loss() -> Tensor:
        with pyro.validation_enabled(False):
            return elbo.differentiable_loss(vae.model, vae.guide, x) / batch

    return optimize(vae, loss)


class BareVAE(nn.Module):
    """G1 in bare PyTorch, with nothing that a tuned script would leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO, mean over rows."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        eps = torch.randn_like(loc)
        z = loc + log_scale.exp() * eps
        log_q = -0.5 * eps.square().sum(-1) - (log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)
        log_p = -0.5 * z.square().sum(-1) - 0.5 * LATENT * math.log(2 * math.pi)
        log_x = -F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        return (log_q - log_p - log_x).mean()


def bare_step(batch: int = BATCH) -> Step:
    """A training step in bare PyTorch."""
    torch.manual_seed(0)
    module, x = BareVAE(), images(batch)
    return optimize(module, lambda: module(x))


def flow_over_plain_step(num_particles: int, rounds: int, flow: str = "global") -> tuple[Measurement, str]:
    """Goal 2."""
    flowing, plain = (direct_step(make_vae(kind), num_particles) for kind in (flow, "none"))
    return compare(flowing, plain, rounds), f"G1, batch {BATCH}, {flow} parameters"


def pyro_over_bare(rounds: int) -> tuple[Measurement, str]:
    """Goal 5."""
    return compare(pyro_step(make_vae("none")), bare_step(), rounds), f"G1 without a flow, batch {BATCH}"


def direct_over_bare(rounds: int) -> tuple[Measurement, str]:
    """The path of `vi-flows train`, which makes no Pyro trace, beside bare PyTorch."""
    return compare(direct_step(make_vae("none")), bare_step(), rounds), f"G1 without a flow, batch {BATCH}"


def flow_over_plain_nll(rounds: int, rows: int = 20, flow: str = "global") -> tuple[Measurement, str]:
    """Goal 8."""
    x = images(rows)

    def evaluate(vae: VAE) -> Callable[[], object]:
        vae.eval()
        return lambda: estimate_nll(lambda r, p: vae.log_weight_terms(r, p).log_weights(), x, 5000)

    flowing, plain = (evaluate(make_vae(kind)) for kind in (flow, "none"))
    return compare(flowing, plain, min(rounds, 5)), f"G1, {rows} images, {flow} parameters"
