"""What is counted of samples and inverses: shares of bad pixels and images, round trips, the range of logits."""

from __future__ import annotations

import math

import pytest
import torch

from vi_flows.distributions.image import ImageDensity
from vi_flows.distributions.image_checks import check_samples, extreme_share, round_trip_error
from vi_flows.transforms import ActNorm, Bijection, Chain, Inverse


class Broken(Bijection):
    """Latents to logits with known defects: one image of five is NaN, one has a pixel beyond what images can be."""

    def __init__(self):
        super().__init__(event_dim=3)

    def forward_and_ladj(self, x):
        y = x.clamp(-1, 1)
        y[0] = torch.nan
        y[1, 0, 0, 0] = -50.0
        return y, x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y):
        return y + 0.25, y.new_zeros(y.shape[:-3])


def test_defects_of_samples_are_counted():
    found = check_samples(ImageDensity(Broken(), (1, 2, 2)), 5)
    assert found.num_samples == 5
    assert found.finite_images == pytest.approx(0.8)
    assert found.saturated_pixels == pytest.approx(5 / 20)
    assert found.saturated_images == pytest.approx(0.4)
    assert found.largest_logit == 50.0
    assert found.extreme_pixels == pytest.approx(5 / 20)  # none of the others: sigmoid(±1) is far from both ends
    with pytest.raises(ValueError, match="num_samples"):
        check_samples(ImageDensity(Broken(), (1, 2, 2)), 0)


def test_black_and_white_pixels_are_counted_as_in_data():
    class Ends(Broken):
        def forward_and_ladj(self, x):
            logits = torch.tensor([-20.0, 20.0, math.log(0.99 / 255.01), math.log(1.01 / 254.99)])  # greys 0, 255, 0, 1
            return logits.reshape(1, 2, 2).expand_as(x), x.new_zeros(x.shape[:-3])

    found = check_samples(ImageDensity(Ends(), (1, 2, 2)), 7, batch_size=3)
    assert found.extreme_pixels == 0.75
    assert found.saturated_pixels == 0.5  # 0.99 of a grey level is one that data have
    assert extreme_share(torch.tensor([[0, 3], [255, 254]])) == 0.5
    assert extreme_share(torch.tensor([0, 1, 2, 3]), num_levels=4) == 0.5


def test_round_trip_errors_and_the_range_of_images():
    exact = ImageDensity(Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3)), (1, 2, 2), alpha=0.05)
    assert exact.logit_range[0] == pytest.approx(math.log(0.05 / 0.95))
    assert exact.logit_range[1] == pytest.approx(math.log((1 - 2**-23) / 2**-23), rel=1e-3)
    assert round_trip_error(exact, torch.randint(0, 256, (3, 1, 2, 2))) < 1e-6

    class Off(Broken):
        def forward_and_ladj(self, x):
            return x, x.new_zeros(x.shape[:-3])

    assert round_trip_error(ImageDensity(Off(), (1, 2, 2)), torch.zeros(3, 1, 2, 2)) == pytest.approx(0.25)
