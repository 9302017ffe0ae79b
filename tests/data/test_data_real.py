"""The public files themselves, where they are at hand."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vi_flows.data import load, registry
from vi_flows.data.sources import resolve_root

# Counts, hash of the images, mean of the training images, hash of the one binary draw of the test images.
REAL = {
    "binarized_mnist": ((50_000, 10_000, 10_000), "cd14e33f9cdc2351", 0.1306, None),
    "mnist": ((50_000, 10_000, 10_000), "0b2769512907c387", 0.1310, "81da61c13385c7ee"),
    "omniglot28": ((23_000, 1_345, 8_115), "f537f472733ae7cb", 0.0829, "85defdc43340fc7e"),
    "chardata": ((23_000, 1_345, 8_070), None, None, None),
}


@pytest.fixture
def real_root() -> Path:
    named = os.environ.get("VI_FLOWS_DATA")
    if not named:
        pytest.skip("VI_FLOWS_DATA does not name a folder with the public files")
    return Path(named)


@pytest.mark.parametrize("name", REAL)
def test_real_files(real_root: Path, name: str) -> None:
    if missing := registry.find(name).missing(resolve_root(real_root)):
        pytest.skip(f"{', '.join(file.name for file in missing)} not under VI_FLOWS_DATA")
    counts, sha256, mean, draw = REAL[name]
    data = load(name)
    assert tuple(map(len, data.split("clean"))) == counts
    assert len(data.split("paper").train) == counts[0] + counts[1]
    if sha256 is not None:
        assert data.sha256.startswith(sha256)
        assert data.sha256 == registry.find(name).sha256
        assert float(data.means("train").mean()) == pytest.approx(mean, abs=1e-4)
    if draw is not None:
        found = hashlib.sha256(data.binarized("test").byte().numpy().tobytes()).hexdigest()
        assert found.startswith(draw)
    again = load(name)
    assert again.sha256 == data.sha256
