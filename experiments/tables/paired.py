"""Scores of two records on the images that both were scored on."""

from __future__ import annotations

import numpy as np

from vi_flows.records import Record

__all__ = ["paired_scores"]


def paired_scores(first: Record, second: Record, score: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores of both on the same images, float64 ``(n,)`` each.

    Args:
        first: has the score.
        second: has it, too.
        score: of single images, such as ``nll``.

    Raises:
        ValueError: the two were made with different data.
    """
    data = [record.provenance.get("data_sha256") for record in (first, second)]
    if data[0] != data[1]:
        raise ValueError(f"{first.key} and {second.key} were scored on different data: {data[0]} and {data[1]}")
    _, ours, theirs = np.intersect1d(first.images(score), second.images(score), return_indices=True)
    return first.scores[score][ours].astype(np.float64), second.scores[score][theirs].astype(np.float64)
