"""Measured attributes, their directions in latent space, and edits."""

from __future__ import annotations

import math

import pytest
import torch

from tests.image.small_flows import images, small_flow
from vi_flows.diagnostics.attributes import ATTRIBUTES, attribute_directions, edit, measure_colors, measure_digits
from vi_flows.distributions.image import ImageDensity
from vi_flows.transforms import ActNorm


def bar(width, lean=0.0, size=28):
    rows = torch.arange(size).double()[:, None]
    columns = torch.arange(size).double()[None]
    center = (size - 1) / 2 - math.tan(lean) * (rows - (size - 1) / 2)
    inside = ((width + 1) / 2 - (columns - center).abs()).clamp(0, 1) * ((rows - (size - 1) / 2).abs() < 9.6)
    return (255 * inside).round()[None]


@pytest.mark.parametrize("width", [2, 3, 4, 6])
def test_thickness_of_bars(width):
    thickness, slant, spread = measure_digits(bar(width)[None])[0]
    assert thickness.item() == pytest.approx(width, abs=0.6)
    assert slant.item() == pytest.approx(0, abs=1e-9)
    assert spread.item() == pytest.approx(4 * width / math.sqrt(12), rel=0.15)


@pytest.mark.parametrize("lean", [-0.4, -0.1, 0.2, 0.5])
def test_slant_is_the_lean_and_leaves_width_alone(lean):
    upright, leaning = measure_digits(torch.stack([bar(3), bar(3, lean)]))
    assert leaning[1].item() == pytest.approx(lean, abs=0.02)
    assert leaning[2].item() == pytest.approx(upright[2].item(), rel=0.1)


def test_a_single_pixel_by_hand():
    """Four times finer it is a square of 4 × 4: twelve pixels next to the ground, four in the second row, mean 1¼."""
    image = torch.zeros(1, 8, 8)
    image[0, 3, 4] = 255
    assert measure_digits(image)[0].tolist() == pytest.approx([0.75, 0.0, 0.0])


def test_images_without_ink_are_not_measured():
    assert measure_digits(torch.zeros(2, 1, 8, 8)).isnan().all()
    with pytest.raises(ValueError, match="N, 1, H, W"):
        measure_digits(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_greys_below_zero_or_not_finite_are_refused(wrong):
    images = torch.zeros(2, 1, 8, 8)
    images[:, :, 2:6, 3:5] = 1
    images[1, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match="grey values must be finite and at least 0"):
        measure_digits(images)


@pytest.mark.parametrize("wrong", [torch.full((3, 2), math.nan), torch.ones(3, 2, dtype=torch.long)])
def test_latents_that_have_no_directions_are_refused(wrong):
    with pytest.raises(ValueError, match="latents must be finite floating-point numbers"):
        attribute_directions(wrong, torch.tensor([[0.0], [1.0], [2.0]]))


def test_colors_by_hand():
    """Two pixels, (255, 102, 0) and (0, 51, 102): grey 0.4667 and 0.2, warmth 1 and −0.4."""
    image = torch.tensor([[255, 0], [102, 51], [0, 102]], dtype=torch.uint8).reshape(1, 3, 1, 2)
    assert measure_colors(image)[0].tolist() == pytest.approx([1 / 3, 2 / 15, 0.3])
    assert measure_colors(image.flip(1))[0, 2].item() == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="N, 3, H, W"):
        measure_colors(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(("name", "channels"), [("strokes", 1), ("colors", 3)])
def test_a_measure_has_a_column_for_each_of_its_names(name, channels):
    attributes = ATTRIBUTES[name]
    assert attributes.measure(images(5, channels, 8, 8)).shape == (5, len(attributes.names))


def test_directions_recover_a_linear_model():
    """With z = A a + noise and correlated attributes, the partial directions are A; the covariances are not."""
    torch.manual_seed(0)
    attributes = torch.randn(20000, 2, dtype=torch.float64)
    attributes[:, 1] = 0.8 * attributes[:, 0] + 0.6 * attributes[:, 1]
    truth = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    latents = torch.einsum("na,achw->nchw", attributes, truth) + torch.randn(20000, 1, 2, 3, dtype=torch.float64)
    partial = attribute_directions(latents, 5 * attributes + 3)
    torch.testing.assert_close(partial, truth, atol=0.06, rtol=0)
    whole = attribute_directions(latents, attributes, partial=False)
    torch.testing.assert_close(whole[0], truth[0] + 0.8 * truth[1], atol=0.06, rtol=0)
    with pytest.raises(ValueError, match="vary"):
        attribute_directions(latents, torch.ones(20000, 2))
    with pytest.raises(ValueError, match="rows"):
        attribute_directions(latents[:5], attributes)


def test_all_classes_of_a_label_have_no_partial_directions():
    """They sum to one, so that a direction that leaves the others as they are does not exist."""
    torch.manual_seed(0)
    latents, labels = torch.randn(200, 3), torch.nn.functional.one_hot(torch.arange(200) % 10, 10)
    with pytest.raises(ValueError, match="10 attributes of 200 images have only 9 directions"):
        attribute_directions(latents, labels)
    with pytest.raises(ValueError, match="2 attributes of 200 images have only 1 directions"):
        attribute_directions(latents, labels[:, [3, 3]])
    assert float(attribute_directions(latents, labels[:, 1:]).abs().max()) < 1
    assert attribute_directions(latents, labels, partial=False).shape == (10, 3)


def test_edits_move_along_the_direction():
    density = ImageDensity(small_flow("glow"), (1, 8, 8)).eval()
    x = images(5, 1, 8, 8)
    density.initialize(x)
    density.eval()
    edited = edit(density, x, torch.ones(1, 8, 8), (-1.0, 0.0, 1.0))
    assert edited.shape == (3, 5, 1, 8, 8)
    assert torch.equal(edited[1], x)
    assert not torch.equal(edited[0], x)
    assert all(m.initialized for m in density.modules() if isinstance(m, ActNorm))
