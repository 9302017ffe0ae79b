from __future__ import annotations

import hashlib

import pytest
import torch

from vi_flows.data import BINARIZATION_SEED, ImageData, binarize, load, names
from vi_flows.data.base import content_sha256


def make(levels: int = 4, binarization: str = "dynamic", **changes: object) -> ImageData:
    splits = {
        name: torch.arange(n * 6).reshape(n, 6).remainder(levels).byte()
        for name, n in zip(("train", "valid", "test"), (5, 2, 3), strict=True)
    }
    fields = {
        "name": "x",
        "shape": (1, 2, 3),
        "levels": levels,
        "binarization": binarization,
        "sha256": "",
        "source": "",
    }
    return ImageData(**(fields | splits | changes))


def test_means_are_values_over_the_highest_level() -> None:
    data = make(levels=4)
    assert data.means("train").dtype == torch.float32
    assert torch.equal(data.means("train")[0], torch.tensor([0, 1 / 3, 2 / 3, 1, 0, 1 / 3]))
    assert torch.equal(data.means(data.test), data.means("test"))


def test_protocols() -> None:
    data = make()
    paper, clean = data.split("paper"), data.split("clean")
    assert torch.equal(paper.train, torch.cat([data.train, data.valid]))
    assert paper.valid.shape == (0, 6)
    assert paper.test is data.test
    assert clean == (data.train, data.valid, data.test)
    assert torch.equal(data.pixels("train+valid"), paper.train)
    with pytest.raises(ValueError, match="'paper' or 'clean'"):
        data.split("full")
    with pytest.raises(ValueError, match="no split 'split'"):
        data.means("split")


def test_images_are_row_major() -> None:
    data = make()
    assert data.images("test").shape == (3, 1, 2, 3)
    assert torch.equal(data.images("test")[0, 0, 1], data.test[0, 3:])


def test_binarize_keeps_certain_pixels_and_has_the_right_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float64).expand(40_000, 4)
    drawn = binarize(means, generator)
    assert drawn.dtype == means.dtype
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 3] == 1).all()
    torch.testing.assert_close(drawn.mean(0), means[0], atol=0.012, rtol=0)  # 5 standard errors
    assert not torch.equal(drawn, binarize(means, generator))


def test_a_mean_of_zero_is_never_drawn_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform draws lie in [0, 1): an exact 0 is rare but happens within an epoch."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(2))
    assert binarize(torch.tensor([0.0, 0.1])).tolist() == [0, 1]


def test_binarized_is_one_draw_per_seed() -> None:
    data = make()
    first = data.binarized("train", seed=1)
    torch.manual_seed(5)
    assert torch.equal(first, data.binarized("train", seed=1))
    assert not torch.equal(first, data.binarized("train", seed=2))
    assert torch.equal(first, binarize(data.means("train"), torch.Generator().manual_seed(1)))


def test_binarized_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make().binarized("test")
    assert torch.equal(torch.rand(3), expected)


def test_static_images_are_their_own_draw() -> None:
    data = make(levels=2, binarization="static")
    assert torch.equal(data.binarized("test", seed=9), data.test.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": torch.zeros(5, 6)}, "train must be torch.uint8"),
        ({"test": torch.zeros(5, 7, dtype=torch.uint8)}, r"test must be torch.uint8 \(N, 6\)"),
        ({"valid": torch.full((1, 6), 4, dtype=torch.uint8)}, "valid has the value 4, levels is 4"),
        ({"binarization": "static"}, "have 2 levels, not 4"),
        ({"binarization": "none"}, "binarization must be"),
        ({"labels": {"train": torch.zeros(5), "valid": torch.zeros(2), "test": torch.zeros(2)}}, r"labels\['test'\]"),
    ],
)
def test_inconsistent_data_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_content_hash_depends_on_pixels_shape_levels_and_split_borders() -> None:
    splits = {
        "train": torch.ones(3, 6, dtype=torch.uint8),
        "valid": torch.ones(1, 6).byte(),
        "test": torch.ones(2, 6).byte(),
    }
    reference = content_sha256((1, 2, 3), 2, splits)
    assert reference == content_sha256((1, 2, 3), 2, {name: x.clone() for name, x in reversed(splits.items())})
    assert reference == content_sha256((1, 2, 3), 2, splits | {"train": torch.ones(6, 3).byte().T})
    moved = {"train": torch.ones(2, 6).byte(), "valid": torch.ones(2, 6).byte(), "test": splits["test"]}
    changed = splits | {"test": torch.tensor([[1] * 6, [1, 1, 1, 1, 1, 0]]).byte()}
    others = [content_sha256((1, 3, 2), 2, splits), content_sha256((1, 2, 3), 3, splits)]
    others += [content_sha256((1, 2, 3), 2, moved), content_sha256((1, 2, 3), 2, changed)]
    assert len({reference, *others}) == 5
    empty = splits | {"valid": torch.empty(0, 6, dtype=torch.uint8)}
    assert content_sha256((1, 2, 3), 2, empty) != reference


def test_digits_split_is_balanced_disjoint_and_fixed() -> None:
    data = load()
    assert (data.name, data.shape, data.levels, data.binarization) == ("digits", (1, 8, 8), 17, "dynamic")
    assert [len(part) for part in data.split("clean")] == [1297, 200, 300]
    assert len(data.split("paper").train) == 1497
    assert data.labels["test"].bincount().tolist() == [30] * 10
    assert data.labels["valid"].bincount().tolist() == [20] * 10

    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    ours = torch.cat([data.train, data.valid, data.test])
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, pixels.astype(int).tolist()))
    known = {tuple(row): label for row, label in zip(pixels.astype(int).tolist(), classes.tolist(), strict=True)}
    assert [known[tuple(row)] for row in data.test.tolist()] == data.labels["test"].tolist()
    # Both are on record: a change of either would make new results incomparable with published ones.
    assert data.sha256 == "07e808ee73874fd183f2c5815ff64f4e403cff278aed855d7f7cec83dcdd036f"
    assert BINARIZATION_SEED == 0
    draw = data.binarized("test").byte().numpy().tobytes()
    assert hashlib.sha256(draw).hexdigest() == "6f2e8003c07a8bb9cb62b666bbf1466235c2ce6e0b0ec0e13d0c64022bdbc760"


def test_unknown_name_lists_the_known_ones() -> None:
    assert names() == ("digits", "binarized_mnist", "mnist", "omniglot28", "chardata", "cifar10")
    with pytest.raises(ValueError, match="no data set 'cifar': choose one of digits, binarized_mnist, mnist"):
        load("cifar")
