"""What a new bijection takes: its class and one entry in the registry. A toy goes through all the checks from there."""

from __future__ import annotations

import itertools
import types
from functools import partial

import pytest
import torch
from torch import nn

from tests.transforms import test_bijections
from tests.transforms.case import Case
from tests.transforms.cases import CASES
from vi_flows.transforms import Bijection


class Toy(Bijection):
    """``y = x eˢ + a``, ``log|det| = Σ s``: no more is to be written than this."""

    def __init__(self):
        super().__init__(event_dim=1)
        self.a = nn.Parameter(torch.zeros(2))
        self.s = nn.Parameter(torch.zeros(2))

    def forward_and_ladj(self, x):
        return x * self.s.exp() + self.a, self.s.sum().expand(x.shape[:-1])

    def inverse_and_ladj(self, y):
        return (y - self.a) * (-self.s).exp(), -self.s.sum().expand(y.shape[:-1])


class OneSlopeOnly(Toy):
    def forward_and_ladj(self, x):
        return x * self.s.exp() + self.a, self.s[0].expand(x.shape[:-1])


class WrongInverse(Toy):
    def inverse_and_ladj(self, y):
        return y * (-self.s).exp() - self.a, -self.s.sum().expand(y.shape[:-1])


class NoGradient(Toy):
    def forward_and_ladj(self, x):
        return x * self.s.exp() + self.a.detach(), self.s.sum().expand(x.shape[:-1])


class OneShape(Toy):
    def forward_and_ladj(self, x):
        y, ladj = super().forward_and_ladj(x)
        return y, ladj.flatten()[:1]


MARKED = type(pytest.param())


def checks(name):
    """Each check of the contract as the collection would make it for an entry of this name."""
    for title, function in vars(test_bijections).items():
        if not title.startswith("test_") or not isinstance(function, types.FunctionType):
            continue
        if title == "test_extreme_parameters" and not CASES[name].extreme:
            continue
        marks = {mark.args[0]: mark.args[1] for mark in function.pytestmark if mark.name == "parametrize"}
        del marks["name"]
        plain = [[value.values[0] if isinstance(value, MARKED) else value for value in of] for of in marks.values()]
        for values in itertools.product(*plain):
            yield title, partial(function, name, **dict(zip(marks, values, strict=True)))


def register(monkeypatch, kind):
    monkeypatch.setitem(CASES, "toy", Case(kind, (2,)))


def test_a_toy_passes_all_the_checks_of_its_entry(monkeypatch):
    register(monkeypatch, Toy)
    run = [title for title, check in checks("toy") if check() is None]
    assert len(run) == 17  # gradients twice a direction: a projection, and all of them
    assert len(set(run)) == 11  # all but that of layers which promise to be bijections for extreme parameters


@pytest.mark.parametrize(
    ("wrong", "caught_by"),
    [
        (OneSlopeOnly, {"test_ladj_equals_autograd", "test_round_trip_float64"}),
        (WrongInverse, {"test_round_trip_float64", "test_round_trip_float32"}),
        (NoGradient, {"test_gradient_reaches_every_parameter"}),
        (OneShape, {"test_leading_dimensions", "test_round_trip_float64"}),
    ],
)
def test_a_wrong_toy_does_not(monkeypatch, wrong, caught_by):
    register(monkeypatch, wrong)
    for title, check in checks("toy"):
        if title in caught_by:
            with pytest.raises((AssertionError, RuntimeError)):
                check()
