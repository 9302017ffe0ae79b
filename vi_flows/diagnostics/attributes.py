r"""Attributes of images and the directions in latent space that change them (Nagar et al., section 4).

The covariance of an attribute with the latents of a flow says where to move a latent to add, remove or sweep the
attribute. Attributes are measured on the image itself, so that an edit can be checked by measuring the edited image:
stroke thickness, slant and width of digits and characters; brightness, contrast and warmth of coloured pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vi_flows.distributions.image import ImageDensity

__all__ = [
    "ATTRIBUTES",
    "COLOR_ATTRIBUTES",
    "DIGIT_ATTRIBUTES",
    "Attributes",
    "attribute_directions",
    "edit",
    "measure_colors",
    "measure_digits",
]

DIGIT_ATTRIBUTES = ("thickness", "slant", "width")
"""The columns of :func:`measure_digits`."""

COLOR_ATTRIBUTES = ("brightness", "contrast", "warmth")
"""The columns of :func:`measure_colors`."""


def measure_digits(images: Tensor, threshold: float = 0.5) -> Tensor:
    r"""Stroke thickness, slant and width of bright strokes on dark ground.

    Thickness, in pixels, is four times the mean distance of an ink pixel to the background, less the half pixel of the
    grid (a bar of width ``t`` has a mean distance of ``t/4``). Slant is the shear ``Cov(column, row)/Var(row)``
    weighted by the grey values, positive for digits that lean to the right, in radians. Width, in pixels, is four
    standard deviations of the grey-weighted column after the slant is taken out. Images without ink give NaN.

    Args:
        images: grey values of any dtype, ``(N, 1, H, W)`` or ``(N, H, W)``.
        threshold: ink is what is above this fraction of the image's largest value.

    Returns:
        float64 ``(N, 3)``.

    Raises:
        ValueError: the images are not of one channel, or a grey value is less than 0 or not finite.
    """
    from scipy.ndimage import distance_transform_edt

    if images.dim() == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.dim() != 3:
        raise ValueError(f"expected (N, 1, H, W) images, got {tuple(images.shape)}")
    grey = images.detach().cpu().double().numpy()
    if grey.size and not (grey.min() >= 0 and grey.max() < np.inf):  # also where one is NaN
        raise ValueError(
            f"grey values must be finite and at least 0 (no ink), got some from {grey.min():g} to {grey.max():g}; of "
            "images within [-1, 1], measure (images + 1) / 2"
        )
    result = np.full((len(grey), 3), np.nan)
    rows, columns = np.mgrid[: grey.shape[1], : grey.shape[2]].astype(float)
    for index, image in enumerate(grey):
        if image.max() <= 0:
            continue
        # Four times finer by linear interpolation: strokes are only a few pixels wide.
        fine = _enlarge(image, 4)
        ink = np.pad(fine > threshold * fine.max(), 1)
        distance = distance_transform_edt(ink)[ink].mean() / 4
        weight = image / image.sum()
        i, j = rows - (weight * rows).sum(), columns - (weight * columns).sum()
        spread = max((weight * i * i).sum(), 1e-12)
        shear = (weight * i * j).sum() / spread
        upright = (weight * (j - shear * i) ** 2).sum()
        result[index] = 4 * distance - 0.5, np.arctan(-shear), 4 * np.sqrt(upright)
    return torch.from_numpy(result)


def measure_colors(images: Tensor) -> Tensor:
    r"""Brightness, contrast and warmth of coloured pictures, as shares of the full scale of 255.

    Brightness is the mean over pixels of the grey value ``(R + G + B)/3``, contrast its standard deviation over pixels,
    warmth the mean of ``R − B``.

    Args:
        images: ``(N, 3, H, W)``, values 0 … 255 of any dtype.

    Returns:
        float64 ``(N, 3)``.

    Raises:
        ValueError: the images are not of three channels.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (N, 3, H, W) images, got {tuple(images.shape)}")
    values = images.detach().cpu().double() / 255
    grey = values.mean(1).flatten(1)
    warmth = (values[:, 0] - values[:, 2]).flatten(1).mean(1)
    return torch.stack([grey.mean(1), grey.std(1, unbiased=False), warmth], -1)


@dataclass(frozen=True)
class Attributes:
    """What is measured on an image.

    Attributes:
        names: of the columns.
        measure: from images ``(N, C, H, W)`` to float64 ``(N, len(names))``.
    """

    names: tuple[str, ...]
    measure: Callable[[Tensor], Tensor]


ATTRIBUTES = {
    "strokes": Attributes(DIGIT_ATTRIBUTES, measure_digits),
    "colors": Attributes(COLOR_ATTRIBUTES, measure_colors),
}
"""By the kind of image that they are for."""


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    tensor = torch.from_numpy(image)[None, None]
    return torch.nn.functional.interpolate(tensor, scale_factor=factor, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()


def attribute_directions(latents: Tensor, attributes: Tensor, partial: bool = True) -> Tensor:
    r"""For each attribute the move of the latents that goes with one standard deviation of it.

    ``partial=False`` is the paper's: the columns of ``Cov(z, a)`` divided by the attribute's standard deviation, which
    move everything that is correlated with the attribute. ``partial=True`` is ``Cov(z, a) Cov(a, a)⁻¹``, the
    least-squares coefficients of the latents on all attributes together: the change that goes with one attribute while
    the others stay.

    Args:
        latents: ``(N, …)``.
        attributes: ``(N, A)``, measured or 0/1 labels.
        partial: hold the other attributes.

    Returns:
        ``(A, …)``.

    Raises:
        ValueError: the numbers of rows differ, there are fewer than two, a latent is not finite or no floating-point
            number, or an attribute is constant or not finite; of
            partial directions, one of them follows from the others, as the last of all classes does.
    """
    if len(latents) != len(attributes) or len(latents) < 2 or attributes.dim() != 2:
        raise ValueError(f"expected as many attributes as latents, got {len(attributes)} and {len(latents)} rows")
    if not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise ValueError(f"latents must be finite floating-point numbers; of {latents.dtype}, they are not, or not all")
    a = attributes.to(torch.float64)
    deviation = a.std(0, unbiased=False)
    if not (deviation > 0).all():  # also where it is NaN
        raise ValueError("every attribute must be finite and vary over the images")
    a = (a - a.mean(0)) / deviation
    z = latents.flatten(1).to(torch.float64)
    covariance = a.mT @ (z - z.mean(0)) / len(z)
    if partial:
        rank = int(torch.linalg.matrix_rank(a))
        if rank < a.shape[1]:
            raise ValueError(
                f"{a.shape[1]} attributes of {len(a)} images have only {rank} directions (all classes of a one-hot "
                "label sum to one): leave out what follows from the others, or take partial=False"
            )
        covariance = torch.linalg.solve(a.mT @ a / len(a), covariance)
    return covariance.unflatten(1, latents.shape[1:]).to(latents.dtype)


def edit(density: ImageDensity, images: Tensor, direction: Tensor, amounts: Sequence[float]) -> Tensor:
    """Images with an attribute changed: their latents moved along its direction, and decoded.

    Args:
        density: the flow.
        images: integer images ``(N, C, H, W)``.
        direction: ``(C, H, W)``, from :func:`attribute_directions`.
        amounts: standard deviations of the attribute to move by; 0 gives the images back.

    Returns:
        ``(len(amounts), N, C, H, W)`` integer images.
    """
    latents = density.encode(images)
    return torch.stack([density.decode(latents + amount * direction.to(latents)) for amount in amounts])
