"""Annealed importance sampling: evidence bounded from below (Neal 2001) and from above (Grosse et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vi_flows.evaluation.psis import effective_sample_size
from vi_flows.settings import check_counts

__all__ = ["AISResult", "AISStart", "annealed_evidence", "hmc_step", "pilot_step_sizes", "reverse_evidence"]

TARGET_ACCEPTANCE = 0.65
"""Of Hamiltonian Monte Carlo in many dimensions (Neal 2011, section 4.4; Beskos et al. 2013)."""

LogDensity = Callable[[Tensor], Tensor]
"""``(chains, B, d) -> (chains, B)``, differentiable."""


class AISStart(Protocol):
    """A normalised distribution that can be drawn from, with a batch of shape ``(B,)`` and events ``(d,)``."""

    def rsample(self, sample_shape: torch.Size) -> Tensor:
        """Draws ``(*sample_shape, B, d)``."""

    def log_prob(self, value: Tensor) -> Tensor:
        """``(chains, B, d) -> (chains, B)``."""


@dataclass(frozen=True)
class AISResult:
    """Per-image figures, float64 on the CPU.

    Attributes:
        log_evidence: estimate of ``log p(x)`` in nats, ``(B,)``: a lower bound in expectation from
            :func:`annealed_evidence`, an upper bound from :func:`reverse_evidence`.
        effective_chains: effective sample size of the chains' weights, ``(B,)``, between 1 and ``chains``.
        acceptance: mean acceptance probability of the HMC steps, ``(B,)``; NaN where there were none.
        log_weights: ``(chains, B)``.
    """

    log_evidence: Tensor
    effective_chains: Tensor
    acceptance: Tensor
    log_weights: Tensor

    @staticmethod
    def join(parts: Sequence[AISResult]) -> AISResult:
        """The results of several batches of images, in order."""
        names = [item.name for item in fields(AISResult)]
        return AISResult(*(torch.cat([getattr(part, name) for part in parts], -1) for name in names))

    @staticmethod
    def to_tensors(results: Sequence[AISResult]) -> dict[str, Tensor]:
        """The figures of several results by name, for a file."""
        return {
            f"{index}.{name}": value for index, result in enumerate(results) for name, value in vars(result).items()
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> tuple[AISResult, ...]:
        """What :meth:`to_tensors` was given."""
        names = [item.name for item in fields(AISResult)]
        return tuple(
            AISResult(*(tensors[f"{index}.{name}"] for name in names)) for index in range(len(tensors) // len(names))
        )

    def summary(self) -> dict[str, Any]:
        """Means over images, JSON-ready."""
        return {
            "nll": -self.log_evidence.mean().item(),
            "chains": self.log_weights.shape[0],
            "num_rows": self.log_evidence.numel(),
            "mean_effective_chains": self.effective_chains.mean().item(),
            "mean_acceptance": self.acceptance.mean().item(),
        }


class _State(NamedTuple):
    """A point with both ends' log-densities and their gradients."""

    z: Tensor
    start: Tensor
    joint: Tensor
    start_grad: Tensor
    joint_grad: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        return (1 - beta) * self.start + beta * self.joint

    def grad(self, beta: Tensor) -> Tensor:
        return (1 - beta) * self.start_grad + beta * self.joint_grad


class _Path(NamedTuple):
    """The geometric path between two densities, ``s(z)^{1−β} p(x, z)^β``."""

    log_start: LogDensity
    log_joint: LogDensity
    surrogate: LogDensity
    """Of the gradient of ``log_joint``, whatever its value."""

    def state(self, z: Tensor) -> _State:
        values, grads = [], []
        for density in (self.log_start, self.log_joint):
            with torch.enable_grad():
                point = z.detach().requires_grad_()
                value = density(point)
                (grad,) = torch.autograd.grad(value.sum(), point)
            if value.shape != z.shape[:-1]:
                raise ValueError(
                    f"a log-density of {tuple(z.shape)} must be {tuple(z.shape[:-1])}, got {tuple(value.shape)}"
                )
            values.append(value.detach())
            grads.append(grad)
        return _State(z.detach(), *values, *grads)

    def grad(self, z: Tensor, beta: Tensor) -> Tensor:
        """The gradient at ``β`` alone: inside a trajectory nothing else is needed."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            value = (1 - beta) * self.log_start(point) + beta * self.surrogate(point)
            return torch.autograd.grad(value.sum(), point)[0]


def _transition(path: _Path, state: _State, beta: Tensor, step_size: Tensor, leapfrog: int) -> tuple[_State, Tensor]:
    """One HMC step at ``β``; nothing in it waits for the device."""
    eps = step_size.to(state.z.dtype).unsqueeze(-1)
    momentum = torch.randn_like(state.z)
    before = state.log_density(beta).double() - 0.5 * momentum.double().square().sum(-1)
    z, moving = state.z, torch.addcmul(momentum, eps, state.grad(beta), value=0.5)
    for _ in range(leapfrog - 1):
        z = torch.addcmul(z, eps, moving)
        moving = torch.addcmul(moving, eps, path.grad(z, beta))
    new = path.state(torch.addcmul(z, eps, moving))
    moving = torch.addcmul(moving, eps, new.grad(beta), value=0.5)
    after = new.log_density(beta).double() - 0.5 * moving.double().square().sum(-1)
    # An integrator that has overflowed gives NaN: such a proposal has probability 0.
    accept = torch.nan_to_num((after - before).clamp(max=0.0).exp(), nan=0.0)
    taken = torch.rand_like(accept) < accept

    def choose(proposed: Tensor, kept: Tensor) -> Tensor:
        return torch.where(taken if kept.dim() == taken.dim() else taken.unsqueeze(-1), proposed, kept)

    return _State(*(choose(a, b) for a, b in zip(new, state, strict=True))), accept


def hmc_step(z: Tensor, log_density: LogDensity, step_size: Tensor, leapfrog: int) -> tuple[Tensor, Tensor]:
    """One HMC transition with unit mass, which leaves ``exp(log_density)`` invariant (Neal 2011).

    Args:
        z: ``(chains, B, d)``.
        log_density: ``(chains, B, d) -> (chains, B)``, up to a constant.
        step_size: ``(B,)``, one an image.
        leapfrog: steps of the integrator.

    Returns:
        The new points and the acceptance probabilities ``(chains, B)``.
    """
    path = _Path(log_density, log_density, log_density)
    state, accept = _transition(path, path.state(z), z.new_ones(()), step_size, leapfrog)
    return state.z, accept


def _schedule(temperatures: int, device: torch.device) -> Tensor:
    """``0 = β_0 < … < β_T = 1``, a sigmoid on [−4, 4] scaled to the interval: finest at both ends; float64."""
    raw = torch.sigmoid(torch.linspace(-4, 4, temperatures + 1, dtype=torch.float64))
    betas = (raw - raw[0]) / (raw[-1] - raw[0])
    betas[0], betas[-1] = 0.0, 1.0
    return betas.to(device)


def _result(log_weights: Tensor, sign: int, acceptance: Tensor) -> AISResult:
    if log_weights.isnan().any():
        bad = int(log_weights.isnan().any(0).nonzero()[0])
        raise FloatingPointError(
            f"the annealed log-weight of row {bad} is NaN: the model or the start has diverged; train it anew with a "
            "lower learning rate"
        )
    mean = sign * (torch.logsumexp(sign * log_weights, 0) - math.log(len(log_weights)))
    ess = effective_sample_size(sign * log_weights)
    return AISResult(mean.cpu(), ess.cpu(), acceptance.cpu(), log_weights.cpu())


@torch.no_grad()
def pilot_step_sizes(
    log_joint: LogDensity,
    start: AISStart,
    temperatures: int,
    *,
    chains: int = 4,
    leapfrog: int = 8,
    stride: int = 4,
    initial: float = 0.2,
    rate: float = 0.15,
    surrogate: LogDensity | None = None,
) -> Tensor:
    """Step sizes for every temperature and image, from chains that are thrown away.

    Steps that follow the weighted chains' own past would make a transition depend on more than its present state, and
    the estimator would no longer be unbiased. So the steps are adapted on pilot chains (Robbins–Monro on the log of the
    step towards an acceptance of 0.65), and the weighted chains, drawn independently, take them as fixed.

    Args:
        log_joint: ``log p(x, z)`` as ``(chains, B, d) -> (chains, B)``.
        start: where the path begins.
        temperatures: of the path that the steps are for.
        chains: pilot chains an image.
        leapfrog: steps of the integrator.
        stride: the pilot visits every ``stride``-th temperature.
        initial: first step size.
        rate: change of the log step for an acceptance that is off by 1.
        surrogate: anything with the gradient of ``log_joint`` that costs less; default: ``log_joint`` itself.

    Returns:
        ``(temperatures + 1, B)``.

    Raises:
        ValueError: a count is less than 1.
    """
    check_counts(1, temperatures=temperatures, chains=chains, leapfrog=leapfrog, stride=stride)
    path = _Path(start.log_prob, log_joint, surrogate or log_joint)
    state = path.state(start.rsample(torch.Size([chains])))
    betas = _schedule(temperatures, state.z.device)
    step = torch.full(state.z.shape[1:-1], initial, dtype=torch.float64, device=state.z.device)
    table = step.repeat(temperatures + 1, 1)
    # The first temperature is visited for a while: the chains are exact there, only the step has to be found.
    for index in [0] * 20 + list(range(0, temperatures + 1, stride)):
        state, accept = _transition(path, state, betas[index], step, leapfrog)
        step = step * torch.exp(rate * (accept.mean(0) - TARGET_ACCEPTANCE))
        table[index:] = step
    return table


def _anneal(path: _Path, points: Tensor, step_sizes: Tensor, leapfrog: int, *, reverse: bool) -> AISResult:
    """Chains along the path from ``points``, exact draws of the end at which it begins.

    Both directions weigh by the same ``log w``: each interval of β counts at the point that enters it, and between two
    intervals an HMC step is taken at the temperature that they share.
    """
    temperatures = len(step_sizes) - 1
    check_counts(1, temperatures=temperatures, leapfrog=leapfrog)
    state = path.state(points)
    betas = _schedule(temperatures, points.device)
    log_w = torch.zeros_like(state.joint, dtype=torch.float64)
    accepted = torch.zeros_like(log_w)
    intervals = list(range(1, temperatures + 1))
    for count, t in enumerate(reversed(intervals) if reverse else intervals, start=1):
        log_w += (betas[t] - betas[t - 1]) * (state.joint.double() - state.start.double())
        if count < temperatures:
            shared = t - 1 if reverse else t
            state, accept = _transition(path, state, betas[shared], step_sizes[shared], leapfrog)
            accepted += accept
    # Without a step between, 0/0: there is no acceptance to report.
    return _result(log_w, -1 if reverse else 1, accepted.mean(0) / (temperatures - 1))


@torch.no_grad()
def annealed_evidence(
    log_joint: LogDensity,
    start: AISStart,
    step_sizes: Tensor,
    *,
    chains: int = 8,
    leapfrog: int = 8,
    surrogate: LogDensity | None = None,
) -> AISResult:
    r"""``log (1/C) Σ_c w_c`` with ``log w = Σ_t (β_t − β_{t−1}) (log p(x, z_{t−1}) − log s(z_{t−1}))`` (Neal 2001).

    ``z_0 ~ s``; ``z_t`` follows from ``z_{t−1}`` by an HMC step that leaves ``s^{1−β_t} p(x, ·)^{β_t}`` invariant.
    ``E[w] = p(x)``, so that the logarithm is a lower bound in expectation. Weights are summed in float64.

    Args:
        log_joint: ``log p(x, z)`` as ``(chains, B, d) -> (chains, B)``.
        start: the normalised ``s``: the prior, or the guide's ``q(z|x)``.
        step_sizes: ``(T + 1, B)`` from :func:`pilot_step_sizes`; ``T`` is the number of temperatures.
        chains: ``C``.
        leapfrog: steps of the integrator.
        surrogate: as for :func:`pilot_step_sizes`.

    Raises:
        ValueError: a count is less than 1, or a density has the wrong shape.
        FloatingPointError: a weight is NaN.
    """
    check_counts(1, chains=chains)
    points = start.rsample(torch.Size([chains]))
    path = _Path(start.log_prob, log_joint, surrogate or log_joint)
    return _anneal(path, points, step_sizes, leapfrog, reverse=False)


@torch.no_grad()
def reverse_evidence(
    log_joint: LogDensity,
    start: AISStart,
    step_sizes: Tensor,
    posterior_sample: Tensor,
    *,
    chains: int = 8,
    leapfrog: int = 8,
    surrogate: LogDensity | None = None,
) -> AISResult:
    r"""``−log (1/C) Σ_c 1/w_c`` along the reversed path: an upper bound in expectation (BDMC, Grosse et al. 2015).

    The path begins at an exact draw of ``p(z|x)``, which is at hand where ``(x, z)`` was drawn from the model; there
    ``E[1/w] = 1/p(x)``. All chains begin at the one draw.

    Args:
        log_joint: as for :func:`annealed_evidence`.
        start: as for :func:`annealed_evidence`.
        step_sizes: as for :func:`annealed_evidence`; they must not depend on ``posterior_sample``.
        posterior_sample: ``(B, d)``, the latents that ``x`` was drawn from.
        chains: ``C``.
        leapfrog: steps of the integrator.
        surrogate: as for :func:`pilot_step_sizes`.

    Raises:
        ValueError: a count is less than 1, or a density has the wrong shape.
        FloatingPointError: a weight is NaN.
    """
    check_counts(1, chains=chains)
    points = posterior_sample.expand(chains, *posterior_sample.shape)
    path = _Path(start.log_prob, log_joint, surrogate or log_joint)
    return _anneal(path, points, step_sizes, leapfrog, reverse=True)
