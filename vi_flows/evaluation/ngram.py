r"""An interpolated n-gram model of integer sequences: the baseline that a network has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["NGram"]


class NGram:
    r"""Witten and Bell's interpolation of all orders up to ``n`` over ``V`` values, down to the uniform distribution.

    ``p_k(x | c) = (N(c x) + T(c) p_{k−1}(x | c')) / (N(c) + T(c))`` with the ``k − 1`` values ``c`` before ``x``,
    ``c'`` without the first of them, the counts ``N`` and the number ``T(c)`` of distinct values seen after ``c``; an
    unseen context leaves ``p_{k−1}``. It sums to one over ``x`` exactly. Witten and Bell 1991, *The zero-frequency
    problem*.

    Args:
        order: ``n``, at least 1.
        num_values: ``V``.
        sequences: integer arrays with values from 0 to ``V − 1``, to count.

    Raises:
        ValueError: the order is less than 1, contexts of this order don't fit 64 bits, there are no sequences, or a
            value is none of the ``V``.
    """

    def __init__(self, order: int, num_values: int, sequences: Sequence[np.ndarray]) -> None:
        if order < 1 or num_values**order >= 2**63:
            raise ValueError(f"the order must be at least 1, and {num_values}^order fit 64 bits; got {order}")
        if not len(sequences):
            raise ValueError("there are no sequences to count, and so nothing to learn probabilities from")
        self.order, self.num_values = order, num_values
        self.grams, self.contexts = [], []
        for k in range(1, order + 1):
            codes = np.concatenate([self._codes(s, k) for s in sequences])
            grams, counts = np.unique(codes, return_counts=True)
            contexts, places = np.unique(grams // num_values, return_inverse=True)
            totals = np.bincount(places, counts, len(contexts))
            self.grams.append((grams, counts.astype(float)))
            self.contexts.append((contexts, totals, np.bincount(places, minlength=len(contexts)).astype(float)))

    def _codes(self, sequence: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` values up to each place as one number; places with fewer are left out.

        Raises:
            ValueError: a value is not counted here: its number would be that of other values.
        """
        known = (sequence >= 0) & (sequence < self.num_values) & (sequence == np.floor(sequence))
        if not known.all():
            raise ValueError(
                f"the values must be whole numbers from 0 to {self.num_values - 1}, got {sequence[~known][0]:g}: "
                "quantise them first"
            )
        values = sequence.astype(np.int64)
        size = max(len(values) - k + 1, 0)
        codes = np.zeros(size, dtype=np.int64)
        for shift in range(k):
            codes = codes * self.num_values + values[shift : shift + size]
        return codes

    def log_probs(self, sequence: np.ndarray) -> np.ndarray:
        """``log p`` of every value given those before it, nats; the first ones have shorter contexts.

        Raises:
            ValueError: a value is none of the ``V``.
        """
        found = np.full(len(sequence), 1.0 / self.num_values)
        for k, ((grams, counts), (contexts, totals, kinds)) in enumerate(
            zip(self.grams, self.contexts, strict=True), start=1
        ):
            codes = self._codes(sequence, k)
            count, total, kind = (
                _look_up(codes, grams, counts),
                *(_look_up(codes // self.num_values, contexts, table) for table in (totals, kinds)),
            )
            lower = found[k - 1 :]
            found[k - 1 :] = np.where(total > 0, (count + kind * lower) / np.maximum(total + kind, 1.0), lower)
        return np.log(found)


def _look_up(codes: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` at the sorted ``keys``, zero elsewhere."""
    if not len(keys):
        return np.zeros(len(codes))
    places = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    return np.where(keys[places] == codes, values[places], 0.0)
