"""The 8×8 handwritten digits that scikit-learn carries: real images without a download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.dataset import Arrays, Dataset

_SEED = 0
_TEST_PER_CLASS, _VALID_PER_CLASS = 30, 20


def _build(contents: Sequence[bytes]) -> Arrays:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    if pixels.shape != (1797, 64) or pixels.max() > 16:
        raise DataCorruptError(f"scikit-learn has digits of shape {pixels.shape} with values up to {pixels.max()}")
    pixels = pixels.astype(np.uint8)
    # RandomState's streams are frozen, Generator's are not: the split must outlive versions of numpy.
    order = np.random.RandomState(_SEED).permutation(len(pixels))
    rank = np.empty(len(order), dtype=np.int64)  # of each image in the permutation, counted within its class
    for label in range(10):
        members = np.flatnonzero(classes[order] == label)
        rank[members] = np.arange(len(members))
    of_test = rank < _TEST_PER_CLASS
    of_valid = ~of_test & (rank < _TEST_PER_CLASS + _VALID_PER_CLASS)
    chosen = {"train": order[~of_test & ~of_valid], "valid": order[of_valid], "test": order[of_test]}
    return Arrays(
        **{name: pixels[index] for name, index in chosen.items()},
        labels={name: classes[index] for name, index in chosen.items()},
    )


DIGITS = Dataset(
    name="digits",
    title="8x8 handwritten digits carried by scikit-learn; valid and test are balanced over the classes",
    shape=(1, 8, 8),
    levels=17,
    counts=(1297, 200, 300),
    binarization="dynamic",
    files=(),
    build=_build,
    homepage="sklearn.datasets.load_digits (https://doi.org/10.24432/C50P49)",
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
    sha256="07e808ee73874fd183f2c5815ff64f4e403cff278aed855d7f7cec83dcdd036f",
)
