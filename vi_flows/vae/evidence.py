"""``log p(x)`` of a VAE: importance sampling, annealing from below, and both bounds on the images of its own."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from vi_flows.evaluation import (
    NOT_KEPT,
    AISResult,
    NLLResult,
    Parts,
    annealed_evidence,
    estimate_nll,
    evenly,
    paired_bootstrap,
    pilot_step_sizes,
    reverse_evidence,
    spread_evenly,
)
from vi_flows.evaluation.nll import bootstrap_interval, devices_of
from vi_flows.progress import progress_bar
from vi_flows.settings import Bounds, NonNegative, Positive, check_counts, check_settings
from vi_flows.vae.annealing import AnnealingSpace, ForcePrecision, StartName
from vi_flows.vae.refinement import RefinedGuide, RefinementSettings, refine
from vi_flows.vae.vae import VAE

__all__ = ["AISSettings", "VAEEvidence", "annealed_vae", "evaluate_vae", "points_at_once", "simulated_bounds"]

CPU_MEMORY, GPU_MEMORY = 2**26, 2**33
"""Bytes that one evaluation may take: what stays in a CPU's cache, and what fills a GPU without filling its memory.
They are constants, so that the same arguments give the same draws."""

PILOT_CHAINS, PILOT_VISITS = 4, 200


@dataclass(frozen=True)
class AISSettings:
    """Annealed importance sampling of a VAE's images."""

    chains: Positive = 8
    """Weighted chains an image."""
    temperatures: Annotated[int, Bounds(least=2)] = 800
    """Intervals of the path."""
    leapfrog: Positive = 8
    """Leapfrog steps of each HMC transition."""
    images: Positive = 1000
    """Anneal so many images, spread evenly over all."""
    start: StartName = "gaussian"
    """Where the path begins: gaussian (mean and covariance of the guide's draws), guide or prior."""
    model_images: NonNegative = 100
    """Images drawn from the model itself, whose evidence is bounded from above too (BDMC)."""
    forces: ForcePrecision = "float32"
    """Of the gradients inside a trajectory; bf16 saves time where that is fast, and touches no target."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class VAEEvidence:
    """Per-image estimates of ``log p(x)`` and their summary.

    Attributes:
        importance: importance sampling from the guide, all images.
        settings: of the annealing; ``None`` where there was none, as for the three fields that follow.
        annealed: of the images at :meth:`places`.
        simulated: the lower and the upper bound on images drawn from the model; ``None`` for none of them.
        annealing_seconds: how long annealing took.
        refinement: of the guide's parameters for each image; ``None`` where there was none, as for the next.
        refined: importance sampling from the refined guide, all images.
    """

    importance: NLLResult
    settings: AISSettings | None = None
    annealed: AISResult | None = None
    simulated: tuple[AISResult, AISResult] | None = None
    annealing_seconds: float = 0.0
    refinement: RefinementSettings | None = None
    refined: NLLResult | None = None

    def places(self) -> Tensor:
        """Which images were annealed: ``⌊(i + ½) N / n⌋`` of ``N``, so that sorted ones (by class) count alike, too.

        Raises:
            RuntimeError: none was.
        """
        if self.settings is None:
            raise RuntimeError("no image was annealed: evaluate with ais=AISSettings()")
        return spread_evenly(len(self.importance.nll), self.settings.images)

    def scores(self) -> dict[str, Tensor]:
        """The per-image figures, float32: those of :meth:`NLLResult.scores`, and ``ais_nll``, ``refined_nll`` …

        Those that begin with ``ais_`` are of the images ``ais_image``.
        """
        found = self.importance.scores()
        if self.refined is not None:
            found |= {f"refined_{name}": values for name, values in self.refined.scores().items()}
        if self.annealed is not None:
            found["ais_image"] = self.places().float()
            found["ais_nll"] = -self.annealed.log_evidence.float()
            found["ais_effective_chains"] = self.annealed.effective_chains.float()
            found["ais_acceptance"] = self.annealed.acceptance.float()
        return found

    def summary(self) -> dict[str, Any]:
        """Means over images, JSON-ready: those of :meth:`NLLResult.summary`; under ``ais`` those of annealing.

        ``ais.gap`` is what importance sampling lacks on the same images, NLL minus NLL, with its paired 95 % interval;
        ``ais.bdmc.gap`` is upper minus lower bound on the model's own images: how far off annealing may be there.
        Under ``refined`` are those of importance sampling from the refined guide; ``refined.elbo_gain`` is what the
        encoder's guesses cost the bound (the amortisation gap, as far as the steps close it), ``refined.nll_gain`` the
        NLL that importance sampling from them overstates, both with their paired 95 % intervals.
        """
        found = self.importance.summary()
        if self.refined is not None and self.refinement is not None:
            found["refined"] = _refined_summary(self.importance, self.refined, self.refinement)
        if self.annealed is None or self.settings is None:
            return found
        nll = -self.annealed.log_evidence
        importance = self.importance.nll[self.places()]
        ais = self.annealed.summary() | {
            "interval": bootstrap_interval(nll),
            "temperatures": self.settings.temperatures,
            "leapfrog": self.settings.leapfrog,
            "start": self.settings.start,
            "forces": self.settings.forces,
            "nll_importance": importance.mean().item(),
            "gap": (importance - nll).mean().item(),
            "gap_interval": paired_bootstrap(importance, nll).interval if len(nll) > 1 else None,
            "largest_gap": (importance - nll).max().item(),
            "seconds": round(self.annealing_seconds, 1),
        }
        if self.simulated is not None:
            below, above = (result.log_evidence for result in self.simulated)
            ais["bdmc"] = {
                "num_rows": len(below),
                "nll_upper": -below.mean().item(),
                "nll_lower": -above.mean().item(),
                "gap": (above - below).mean().item(),
                "gap_interval": paired_bootstrap(above, below).interval if len(below) > 1 else None,
            }
        return found | {"ais": ais}


def _refined_summary(before: NLLResult, after: NLLResult, settings: RefinementSettings) -> dict[str, Any]:
    gains = {"elbo_gain": (after.elbo, before.elbo), "nll_gain": (before.nll, after.nll)}
    found = after.summary() | asdict(settings)
    for name, (better, worse) in gains.items():
        found[name] = (better - worse).mean().item()
        found[f"{name}_interval"] = paired_bootstrap(better, worse).interval if len(better) > 1 else None
    return found


def points_at_once(vae: VAE, device: torch.device) -> int:
    """How many points (images × draws) a decoder's pass and its gradient may hold at once."""
    memory = CPU_MEMORY if device.type == "cpu" else GPU_MEMORY
    return max(memory // (vae.model.numbers_a_point * vae.model.origin.element_size()), 1)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 matrices in float32: TF32 rounds log-likelihoods of some hundred nats by tenths."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _frozen(vae: VAE) -> VAE:
    """A copy whose parameters need no gradients: the chains need those of the latents alone."""
    return copy.deepcopy(vae).requires_grad_(False)


@torch.no_grad()
def _in_chunks(
    vae: VAE, size: int, settings: AISSettings, device: torch.device, seed: int, progress: bool,
    work: Callable[[VAE, slice], tuple[AISResult, ...]], parts: Parts, name: str,
) -> tuple[AISResult, ...]:  # fmt: skip
    """``work`` on slices of ``size`` images that fit the memory, each from its own seed; the results joined."""
    check_counts(1, **{"the number of images": size})
    frozen = _frozen(vae)
    # A point for each chain, and what an image's covariance takes, which is more than a point where latents are many.
    per_image = settings.chains + 24 * vae.model.latent_size**2 // vae.model.numbers_a_point
    chunks = math.ceil(size * per_image / points_at_once(vae, device))
    per_chunk = max(math.ceil(size / max(chunks, 1)), 1)

    def worked(chunk: slice) -> dict[str, Tensor]:
        torch.manual_seed((seed * 1_000_003 + chunk.start) % 2**63)
        return AISResult.to_tensors(work(frozen, chunk))

    found = []
    bar = progress_bar(total=size, unit="image", shown=progress)
    with torch.random.fork_rng(devices_of(device)), _exact_products(), bar:
        for first in range(0, size, per_chunk):
            chunk = slice(first, min(first + per_chunk, size))
            found.append(AISResult.from_tensors(parts.part(name, first, partial(worked, chunk))))
            bar.update(chunk.stop - chunk.start)
    return tuple(AISResult.join(results) for results in zip(*found, strict=True))


def annealed_vae(
    vae: VAE, x: Tensor, settings: AISSettings, *, seed: int = 0, progress: bool = False, parts: Parts = NOT_KEPT
) -> AISResult:
    """Lower bounds (in expectation) of ``log p(x)`` of each image by annealed importance sampling (Neal 2001).

    Step sizes come from pilot chains of their own; see :func:`~vi_flows.evaluation.pilot_step_sizes`. The work is done
    where the model and ``x`` are, in batches of as many images as :func:`points_at_once` allows.

    Args:
        vae: in ``eval()`` mode.
        x: all images ``(B, D)``; ``settings.images`` is not looked at.
        settings: of the chains.
        seed: of the draws.
        progress: show a bar.
        parts: where batches of images that were annealed before are taken from.

    Raises:
        ValueError: the start is not possible for this guide, there are no images, the VAE is in training mode, or see
            :meth:`LatentChain.rows`.
        FloatingPointError: a weight is NaN.
    """
    _check_mode(vae)
    x = vae.model.rows(x)

    def work(frozen: VAE, chunk: slice) -> tuple[AISResult]:
        return (_below(_space(frozen, x[chunk], settings), settings)[0],)

    return _in_chunks(vae, len(x), settings, x.device, seed, progress, work, parts, "annealed")[0]


def simulated_bounds(
    vae: VAE, size: int, settings: AISSettings, *, seed: int = 0, progress: bool = False, parts: Parts = NOT_KEPT
) -> tuple[AISResult, AISResult]:
    """Both bounds of ``log p(x)`` on images that the model draws (bidirectional Monte Carlo, Grosse et al. 2015).

    Args:
        vae: in ``eval()`` mode.
        size: images to draw.
        settings: of the chains.
        seed: of the images and of the chains.
        progress: show a bar.
        parts: where batches of images that were annealed before are taken from.

    Returns:
        The result from below and the one from above; their difference bounds the error of either in expectation.

    Raises:
        ValueError: ``size`` is less than 1, or as for :func:`annealed_vae`.
        FloatingPointError: a weight is NaN.
    """
    _check_mode(vae)

    def work(frozen: VAE, chunk: slice) -> tuple[AISResult, AISResult]:
        latents = frozen.model.sample_latents(chunk.stop - chunk.start)
        x = frozen.model.likelihood(latents[-1], validate_args=False).sample()
        space = _space(frozen, x, settings)
        below, steps = _below(space, settings)
        exact = space.from_latents(torch.cat(latents, -1))
        return below, reverse_evidence(
            space.log_joint, space, steps, exact,
            chains=settings.chains, leapfrog=settings.leapfrog, surrogate=space.surrogate,
        )  # fmt: skip

    device = vae.model.origin.device
    below, above = _in_chunks(vae, size, settings, device, seed, progress, work, parts, "simulated")
    return below, above


def _space(vae: VAE, x: Tensor, settings: AISSettings) -> AnnealingSpace:
    draws_at_once = max(points_at_once(vae, x.device) // len(x), 1)
    return AnnealingSpace(vae, x, settings.start, draws_at_once, settings.forces)


def _below(space: AnnealingSpace, settings: AISSettings) -> tuple[AISResult, Tensor]:
    """The bound from below of one batch, and the step sizes that the one from above shares."""
    steps = pilot_step_sizes(
        space.log_joint, space, settings.temperatures,
        chains=min(PILOT_CHAINS, settings.chains), leapfrog=settings.leapfrog,
        stride=max(settings.temperatures // PILOT_VISITS, 1), surrogate=space.surrogate,
    )  # fmt: skip
    result = annealed_evidence(
        space.log_joint, space, steps,
        chains=settings.chains, leapfrog=settings.leapfrog, surrogate=space.surrogate,
    )  # fmt: skip
    return result, steps


def _check_mode(vae: VAE) -> None:
    if vae.training:
        raise ValueError(
            "the VAE is in training mode, where batch normalisation makes no likelihood: call eval() first"
        )


def evaluate_vae(
    vae: VAE,
    x: Tensor,
    num_samples: int = 5000,
    *,
    ais: AISSettings | None = None,
    refinement: RefinementSettings | None = None,
    seed: int = 0,
    progress: bool = False,
    parts: Parts = NOT_KEPT,
) -> VAEEvidence:
    """Importance sampling of all images, and annealing of ``ais.images`` of them.

    Annealing starts at the guide as it is, refined or not.

    Args:
        vae: in ``eval()`` mode, on the device of ``x``.
        x: images ``(N, D)``.
        num_samples: importance samples an image.
        ais: settings of the annealing, or ``None`` for none.
        refinement: sample also from a guide whose parameters are improved for each image; ``None``: don't.
        seed: of all draws.
        progress: show bars.
        parts: where what was evaluated before is taken from.

    Raises:
        ValueError: a count is less than 1, the VAE is in training mode, the start is not possible, or see
            :meth:`LatentChain.rows`.
        FloatingPointError: a weight is NaN, or a refined guide not finite.
    """
    _check_mode(vae)
    x = vae.model.rows(x)
    if x.device.type == "cpu":
        rows, samples = 20, 100
    else:
        rows = 1000
        samples = max(points_at_once(vae, x.device) // rows, 1)
    with _exact_products():
        importance = estimate_nll(
            lambda rows, particles: vae.log_weight_terms(rows, particles).log_weights(),
            x, num_samples, rows_per_chunk=rows, samples_per_chunk=samples, seed=seed, progress=progress,
            parts=parts,
        )  # fmt: skip
    refined = None
    if refinement is not None:
        refined = _refined_importance(vae, x, refinement, (num_samples, rows, samples), seed, progress, parts)
    if ais is None:
        return VAEEvidence(importance, refinement=refinement, refined=refined)
    begun = time.monotonic() + parts.seconds_before
    annealed = annealed_vae(vae, evenly(x, ais.images), ais, seed=seed, progress=progress, parts=parts)
    seconds = time.monotonic() + parts.seconds_before - begun
    simulated = None
    if ais.model_images:
        simulated = simulated_bounds(vae, ais.model_images, ais, seed=seed, progress=progress, parts=parts)
    return VAEEvidence(importance, ais, annealed, simulated, seconds, refinement, refined)


def _refined_importance(
    vae: VAE, x: Tensor, settings: RefinementSettings, sizes: tuple[int, int, int], seed: int, progress: bool,
    parts: Parts,
) -> NLLResult:  # fmt: skip
    """Importance sampling from the refined guide; ``sizes``: samples an image, and images and samples at once."""
    frozen = _frozen(vae)
    num_samples, rows, samples = sizes
    at_once = max(points_at_once(vae, x.device) // settings.particles, 1)
    with _exact_products():
        offsets = refine(frozen, x, settings, at_once, seed=seed, progress=progress, parts=parts)

        def log_weights(numbers: Tensor, particles: int) -> Tensor:
            own = VAE(frozen.model, RefinedGuide(frozen.guide, offsets[numbers]))
            return own.log_weight_terms(x[numbers], particles).log_weights()

        return estimate_nll(
            log_weights, torch.arange(len(x), device=x.device), num_samples, rows_per_chunk=rows,
            samples_per_chunk=samples, seed=seed, progress=progress, parts=parts, part_name="refined",
        )  # fmt: skip
