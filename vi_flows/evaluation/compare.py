"""Two models on the same images: the mean difference of their scores and its paired bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vi_flows.evaluation.nll import bootstrap_interval, check_level
from vi_flows.settings import check_tensors

__all__ = ["PairedComparison", "paired_bootstrap"]


@dataclass(frozen=True)
class PairedComparison:
    """Mean of ``first − second`` over images, its percentile interval, and how many images there were."""

    difference: float
    interval: tuple[float, float]
    level: float
    num_rows: int
    seed: int

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves 0 out."""
        low, high = self.interval
        return low > 0 or high < 0


def paired_bootstrap(
    first: Tensor, second: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> PairedComparison:
    """Percentile bootstrap over images of the mean difference ``first − second`` (Efron and Tibshirani 1993, ch. 13).

    Images are drawn with both their scores, so that what makes an image hard for both models cancels.

    Args:
        first: scores ``(N,)`` in any unit, one an image.
        second: scores of the same images in the same order.
        level: coverage.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: the scores are not two vectors of one length, at least 2, one is not finite, or as for
            :func:`~vi_flows.evaluation.nll.bootstrap_interval`.
    """
    check_tensors(first=first, second=second)
    check_level(level)
    if first.shape == second.shape == (1,):
        raise ValueError("one image says nothing of how images differ; evaluate at least 2 (--limit)")
    if first.dim() != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"need two vectors of the same images, got {tuple(first.shape)} and {tuple(second.shape)}")
    difference = first.double().cpu() - second.double().cpu()
    if not difference.isfinite().all():
        raise ValueError(
            f"the score of image {int((~difference.isfinite()).nonzero()[0])} is not finite, so that no mean "
            "difference exists; leave it out"
        )
    interval = bootstrap_interval(difference, level, resamples, seed)
    return PairedComparison(difference.mean().item(), interval, level, len(difference), seed)
