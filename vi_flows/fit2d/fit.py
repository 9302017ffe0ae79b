"""Flows fitted to two-dimensional energies by reverse KL, with the divergence as a number."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor

from vi_flows import flows
from vi_flows.distributions.energies import TARGETS_2D, Energy2D, target_2d
from vi_flows.fit2d.plane import dtype_of, of_the_plane
from vi_flows.kernels.activations import ACTIVATIONS
from vi_flows.objectives.path_gradient import inverse_with_detached_parameters, supports_path_gradient
from vi_flows.objectives.step import OptimizerStep
from vi_flows.progress import progress_bar
from vi_flows.records import Record, provenance, row_key
from vi_flows.settings import OneOf, Positive, PositiveFloat, Seed, check_counts, check_settings, check_types
from vi_flows.transforms import Bijection

__all__ = ["Fit2D", "Fit2DResult", "fit_flow_2d", "flow_log_density", "make_flow_2d", "train_flow_2d"]


class Trial(TypedDict):
    """One start of a fit: its settings, the objective after its first steps, and that of a finalist's whole run."""

    learning_rate: float
    seed: int
    objective: float | None
    final_objective: NotRequired[float]


@dataclass(frozen=True)
class Fit2DResult:
    """How well a flow fits a target.

    Attributes:
        kl: ``KL(q‖p)`` in nats, from ``num_samples`` draws of the flow and the quadrature's ``log Z``.
        kl_se: its standard error.
        kl_quadrature: the same by quadrature of ``q`` on the target's box; ``None`` for flows without an inverse, and
            where the quadrature finds a mass of ``q`` there that is not 1 to a hundredth.
        objective: mean loss of the last tenth of the steps: an estimate of ``KL − log Z``.
        log_z: ``log Z`` of the target by quadrature.
        num_parameters: of the flow.
        num_steps: optimizer steps.
        seconds: wall time of the training.
        losses: every hundredth loss (at β = 1, ``KL − log Z`` plus noise).
    """

    kl: float
    kl_se: float
    kl_quadrature: float | None
    objective: float
    log_z: float
    num_parameters: int
    num_steps: int
    seconds: float
    losses: list[float] = field(repr=False)


def _base(flow: Bijection) -> torch.distributions.Distribution:
    """N(0, I₂) in the type of the flow's parameters."""
    dtype = dtype_of(flow)
    # Unchecked: points that a flow does not reach have no number to be scored.
    normal = torch.distributions.Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype), validate_args=False)
    return torch.distributions.Independent(normal, 1, validate_args=False)


def train_flow_2d(
    target: Energy2D,
    flow: Bijection,
    num_steps: int = 6000,
    batch_size: int = 512,
    learning_rate: float = 0.02,
    anneal_steps: int | None = None,
    start_beta: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    r"""Minimise ``E_q[log q − β log p̃]`` with ``β`` rising linearly to 1, by Adam with a cosine decay.

    The path gradient is used where it is right (:func:`~vi_flows.objectives.path_gradient.supports_path_gradient`),
    else the whole derivative.

    Args:
        target: what to fit.
        flow: from N(0, I₂); trained in place.
        num_steps: optimizer steps.
        batch_size: draws a step.
        learning_rate: at the start.
        anneal_steps: steps until β = 1; default a third of ``num_steps``.
        start_beta: the first β.
        seed: of the draws; the global generator is left as it was.
        progress: show a bar on a terminal.

    Returns:
        The loss of each step (at β = 1, ``KL − log Z`` plus noise), shape ``(num_steps,)``.

    Raises:
        TypeError: the target is no :class:`Energy2D`, or the flow no bijection.
        ValueError: a count or rate is not positive, ``start_beta`` is not within 0…1, or the flow has nothing to train.
        FloatingPointError: the loss or its gradient is not finite.
    """
    check_types(Energy2D, ": Energy2D(name, energy, box) makes one of U(z1, z2)", target=target)
    flow = of_the_plane(flow)
    check_counts(1, num_steps=num_steps, batch_size=batch_size)
    check_counts(0, anneal_steps=anneal_steps or 0)
    if not 0 <= start_beta <= 1:
        raise ValueError(f"start_beta must lie within 0 and 1, got {start_beta}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    anneal = max(1, num_steps // 3 if anneal_steps is None else anneal_steps)
    if not any(parameter.requires_grad for parameter in flow.parameters()):
        raise ValueError(f"{type(flow).__name__} has no parameters to train, or all of them are frozen")
    base = _base(flow)
    path = supports_path_gradient(flow)
    losses = torch.zeros(num_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        take_step = OptimizerStep(optimizer, partial(_stop, target), max_norm=10.0)
        for step in progress_bar(range(num_steps), shown=progress, unit="step", leave=False):
            beta = min(1.0, start_beta + (1 - start_beta) * step / anneal)
            noise = base.sample((batch_size,))
            x, ladj = flow.forward_and_ladj(noise)
            if path:
                z, inverse_ladj = inverse_with_detached_parameters(flow, x)
                log_q = base.log_prob(z) + inverse_ladj
            else:
                log_q = base.log_prob(noise) - ladj
            loss = (log_q - beta * target.unnormalized_log_prob(x)).mean()
            take_step(loss)
            losses[step] = loss.detach()
            schedule.step()
    return losses


def _stop(target: Energy2D, figures: list[list[float]]) -> None:
    ((loss, norm),) = figures
    hint = "lower the learning rate"
    if target.hard:
        hint = "draws beyond the target's box have no density, so give it a wall there in place of hard=True"
    raise FloatingPointError(f"the loss ({loss}) or its gradient's norm ({norm}) is not finite: {hint}")


def training_objective(losses: Tensor) -> float:
    """Mean loss of the last tenth of the steps: an estimate of ``KL − log Z`` that needs no quadrature, from draws made
    while training. Settings are chosen by it.
    """
    return float(losses[-max(1, len(losses) // 10) :].double().mean())


def fit_flow_2d(
    target: Energy2D, flow: Bijection, num_steps: int = 6000, num_samples: int = 200_000, **training: Any
) -> Fit2DResult:
    """Train a flow and measure ``KL(q‖p)``.

    Args:
        target: what to fit.
        flow: from N(0, I₂); trained in place.
        num_steps: optimizer steps.
        num_samples: draws of the final estimate.
        training: the other options of :func:`train_flow_2d`.

    Raises:
        TypeError: see :func:`train_flow_2d`.
        ValueError: see there; there are fewer than two draws, which have no standard error.
        FloatingPointError: the loss is not finite.
    """
    check_counts(2, num_samples=num_samples)
    flow = of_the_plane(flow)
    began = time.perf_counter()
    losses = train_flow_2d(target, flow, num_steps, **training)
    seconds = time.perf_counter() - began
    base, parts = _base(flow), []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(training.get("seed", 0) + 1)
        for first in range(0, num_samples, 50_000):
            noise = base.sample((min(num_samples - first, 50_000),))
            x, ladj = flow.forward_and_ladj(noise)
            parts.append((base.log_prob(noise) - ladj - target.unnormalized_log_prob(x)).double())
    terms = torch.cat(parts)
    log_z = target.log_normalizer()
    quadrature, mass = target.divergence_from(flow_log_density(flow)) if flow.has_inverse else (0.0, 0.0)
    return Fit2DResult(
        kl=float(terms.mean()) + log_z,
        kl_se=float(terms.std() / terms.numel() ** 0.5),
        kl_quadrature=quadrature if abs(mass - 1) <= MASS else None,
        objective=training_objective(losses),
        log_z=log_z,
        num_parameters=sum(p.numel() for p in flow.parameters()),
        num_steps=num_steps,
        seconds=seconds,
        losses=losses[::100].tolist(),
    )


MASS = 0.01
"""How far the mass of a flow on a target's box may be from 1 for the divergence by quadrature to be a number."""


def flow_log_density(flow: Bijection) -> Callable[[Tensor], Tensor]:
    """``log q`` of points ``(n, 2)`` under the flow of N(0, I₂), by its inverse; minus infinity where it has none.

    Raises:
        TypeError: the flow is no bijection.
        ValueError: its events are larger than vectors.
    """
    flow = of_the_plane(flow)
    base = _base(flow)

    @torch.no_grad()
    def log_density(x: Tensor) -> Tensor:
        x = x.to(dtype_of(flow))
        z, ladj = flow.inverse_and_ladj(x)
        return torch.where(flow.codomain.check(x), base.log_prob(z) + ladj, -math.inf)

    return log_density


def make_flow_2d(
    name: str, num_blocks: int, activation: str = "tanh", seed: int = 0, dilations: Sequence[int] = (1, 2)
) -> Bijection:
    """A flow on the plane: ConvBlocks with Reverts, or as many layers of another flow as have no fewer parameters.

    Args:
        name: ``conv_flow``, or one of Pyro's: ``planar``, ``radial``, ``iaf``, ``spline`` or ``spline_wide``.
        num_blocks: ConvBlocks of one layer a dilation (kernel size 2), 5 parameters a layer; planar layers have 5,
            radial ones 4, IAF layers 32 (hidden width 4), autoregressive linear-rational spline layers of 4 bins 96
            (hidden width 2) or, where wide, Pyro's default of 1110. ConvFlow starts as far from the identity as Pyro's
            planar flow does (θ of standard deviation 0.4), which fits better than a start near it.
        activation: of ConvFlow.
        seed: of the initial parameters; the global generator is left as it was.
        dilations: of ConvFlow; the paper's are 1 and 2.

    Raises:
        ValueError: an unknown name.
    """
    makers: dict[str, Callable[[int], Bijection]] = {
        "conv_flow": lambda n: flows.conv_flow(
            2, num_blocks, dilations=dilations, activation=activation, init_scale=0.4
        ),
        "planar": lambda n: flows.repeat_pyro(lambda: pyro_transforms.planar(2), n),
        "radial": lambda n: flows.repeat_pyro(lambda: pyro_transforms.radial(2), n),
        "iaf": lambda n: flows.repeat_pyro(lambda: pyro_transforms.affine_autoregressive(2, [4]), n, revert=True),
        "spline": lambda n: flows.repeat_pyro(
            lambda: pyro_transforms.spline_autoregressive(2, [2], count_bins=4, bound=5.0), n, revert=True
        ),
        "spline_wide": lambda n: flows.repeat_pyro(
            lambda: pyro_transforms.spline_autoregressive(2, count_bins=4, bound=5.0), n, revert=True
        ),
    }
    if name not in makers:
        raise ValueError(f"unknown flow {name!r}; choose one of {', '.join(makers)}")
    check_counts(1, num_blocks=num_blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "conv_flow":
            return makers[name](0)
        count = 5 * len(dilations) * num_blocks
        each = sum(p.numel() for p in makers[name](1).parameters())
        return makers[name](max(1, math.ceil(count / each)))


@dataclass(frozen=True)
class Fit2D:
    """Fit a flow to a two-dimensional target, print KL(q‖p) and draw both."""

    target: Literal["wave", "u1", "u2", "u3", "u4", "funnel", "banana", "rings"] = "wave"
    """The target; wave is the ConvFlow paper's, with a wall at |z1| = 4."""
    flow: Literal["conv_flow", "planar", "radial", "iaf", "spline", "spline_wide"] = "conv_flow"
    """The flow; others than conv_flow get as many layers as have no fewer parameters."""
    num_blocks: Positive = 8
    """ConvBlocks (a layer a dilation and a Revert), 5 parameters a layer."""
    dilations: tuple[Positive, ...] = (1, 2)
    """Of a ConvBlock; the paper has 1 and 2 for two dimensions. The second tap of dilation 2 meets only zeros there:
    with 1 alone, and twice the blocks, every layer mixes."""
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "tanh"
    """ConvFlow's activation. leaky_relu has the paper's slope 0.01, but its log-determinant jumps, so that the
    reparameterised gradient misses a term and the fit can diverge."""
    num_steps: Positive = 6000
    """Optimizer steps."""
    batch_size: Positive = 512
    """Draws a step."""
    learning_rates: tuple[PositiveFloat, ...] = (0.02,)
    """Adam's, with a cosine decay. Of several, and of several restarts, each pair is tried for probe_steps; those
    with the least training objectives are run to the end, and the least of them is kept."""
    restarts: Positive = 1
    """Seeds to try."""
    probe_steps: Positive = 1500
    """Steps of each trial, where there is more than one."""
    finalists: Positive = 1
    """How many trials are run to the end."""
    seed: Seed = 0
    """Of the parameters and the draws: the first one to try."""
    out: Path | None = None
    """Folder for the picture (TARGET-FLOW-K.png) and the record (the same, .json)."""
    overwrite: bool = False
    """Replace an existing record."""

    def run(self) -> int:
        """Fit, print, write; exit code 0."""
        stem = f"{self.target}-{self.flow}-{self.num_blocks}"
        if self.out is not None:
            Record.refuse_to_replace(self.out / f"{stem}.json", self.overwrite)  # nor a file where the folder goes
        flow, result, trials = self.fit()
        extra = "" if result.kl_quadrature is None else f" (quadrature {result.kl_quadrature:.4f})"
        print(
            f"{self.target} {self.flow}: KL {result.kl:.4f} ± {result.kl_se:.4f} nats{extra}, "
            f"{result.num_parameters} parameters, {result.num_steps} steps, {result.seconds:.0f} s"
        )
        if self.out is not None:
            from vi_flows.fit2d.plotting import plot_fits_2d

            self.record(result, trials).write(self.out / f"{stem}.json", self.overwrite)
            title = f"{self.flow}, KL {result.kl:.3f}"
            plot_fits_2d(TARGETS_2D[self.target], [(title, flow)], self.out / f"{stem}.png")
            print(f"{self.out / stem}.png, .json")
        return 0

    def fit(self) -> tuple[Bijection, Fit2DResult, list[Trial]]:
        """The flow, its result, and the trials: learning rates and seeds, the chosen one first, with the objective of
        the short run (``None`` where it diverged, or where there was no choice).

        Raises:
            ValueError: an option is out of range.
            FloatingPointError: the chosen run diverged.
        """
        check_settings(self)
        for name in ("learning_rates", "dilations"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        for name in ("dilations", "activation"):
            if self.flow != "conv_flow" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is for conv_flow, {self.flow} has none")
        target = target_2d(self.target)
        trials: list[Trial] = []
        seeds = range(self.seed, self.seed + self.restarts)
        for rate, seed in itertools.product(self.learning_rates, seeds):
            trials.append({"learning_rate": rate, "seed": seed, "objective": None})
            if len(self.learning_rates) * self.restarts > 1:
                with contextlib.suppress(FloatingPointError):
                    losses = train_flow_2d(
                        target, self._make(seed), self.probe_steps, self.batch_size, rate, seed=seed, progress=True
                    )  # fmt: skip
                    trials[-1]["objective"] = training_objective(losses)
        trials.sort(key=lambda trial: math.inf if trial["objective"] is None else trial["objective"])
        best: tuple[Bijection, Fit2DResult, int] | None = None
        for place, trial in enumerate(trials[: self.finalists]):
            rate, seed = trial["learning_rate"], trial["seed"]
            flow = self._make(seed)
            try:
                result = fit_flow_2d(
                    target,
                    flow,
                    self.num_steps,
                    batch_size=self.batch_size,
                    learning_rate=rate,
                    seed=seed,
                    progress=True,
                )
            except FloatingPointError:
                if best is None and place + 1 == min(self.finalists, len(trials)):
                    raise
                continue
            trial["final_objective"] = result.objective
            if best is None or result.objective < best[1].objective:
                best = flow, result, place
        assert best is not None
        return best[0], best[1], [trials[best[2]], *trials[: best[2]], *trials[best[2] + 1 :]]

    def _make(self, seed: int) -> Bijection:
        return make_flow_2d(self.flow, self.num_blocks, self.activation, seed, self.dilations)

    def record(self, result: Fit2DResult, trials: list[Trial]) -> Record:
        """Settings, trials, result and provenance."""
        # What the fit depends on: not where its record goes, nor in whose place.
        settings = {name: value for name, value in asdict(self).items() if name not in ("out", "overwrite")}
        label = f"{self.flow} K = {self.num_blocks}" if self.flow == "conv_flow" else self.flow
        return Record(
            kind="fit2d",
            key=row_key(f"{self.target}-{self.flow}-k{self.num_blocks}-s{self.seed}", settings),
            label=f"{self.target}: {label}",
            settings=settings,
            figures={"trials": trials, "result": asdict(result)},
            provenance=provenance(),
        )
