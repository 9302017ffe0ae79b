"""An autoregression on the annual flow of the Nile at Aswan, 1871–1970: intercept and slope correlated at −0.99.

python -m experiments.gallery nile
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.reference import Draws, nuts

NILE = [
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759,
    781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
    744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
]  # fmt: skip
"""10⁸ m³ a year."""


def model(y: Tensor) -> None:
    """y_t ~ N(α + β y_{t−1}, σ²), flat prior on α, stationary β."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0).mask(False))
    beta = pyro.sample("beta", dist.Uniform(-1.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(100.0)))
    with pyro.plate("years", len(y) - 1):
        pyro.sample("y", dist.Normal(alpha + beta * y[:-1], sigma), obs=y[1:])


def quantities(draws: Draws) -> Draws:
    """The three scalars."""
    return {name: draws[name] for name in ("alpha", "beta", "sigma")}


def load() -> tuple[Tensor]:
    """The series."""
    return (torch.tensor(NILE).float(),)


def posterior() -> Posterior:
    """The gallery's entry."""
    args = load()
    truth = lambda: nuts(model, args, quantities)  # noqa: E731
    return Posterior("nile", "flow of the Nile, autoregression", model, args, quantities, truth)
