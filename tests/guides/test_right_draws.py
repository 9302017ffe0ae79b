"""Programs are simulated by draws that follow their densities, where PyTorch's don't: the LKJ prior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.guides.amortize import Simulator
from vi_flows.guides.right_draws import with_right_draws

NUM_DRAWS = 40_000


def factors(make, num_draws=NUM_DRAWS, at_once=True):
    """Joint draws of a program with one prior, ``(N, …, d, d)``."""

    def program():
        factor = pyro.sample("L", make())
        site = dist.Normal(factor[..., 1, 0], 1.0)
        pyro.sample("y", site.to_event(len(make().batch_shape)), obs=torch.zeros(site.batch_shape))

    pyro.set_rng_seed(0)
    return Simulator(program).draw(num_draws, at_once=at_once).values["L"]


def below(matrix):
    row, column = torch.tril_indices(*matrix.shape[-2:], -1)
    return matrix[..., row, column]


@pytest.mark.parametrize(("dim", "concentration"), [(2, 0.5), (3, 1.5), (4, 1.0), (6, 3.0)])
def test_all_correlations_of_an_lkj_prior_are_alike(dim, concentration):
    factor = factors(lambda: dist.LKJCholesky(dim, concentration))
    assert torch.allclose(factor.square().sum(-1), torch.ones(()), atol=1e-5)
    assert below(factor).abs().max() < 1  # in float32 one draw in 6000 of the first prior would round to it
    found = below(factor @ factor.mT)
    # Each is 2 Beta(a, a) − 1 with a = η − 1 + d/2: variance 1 / (2a + 1), fourth moment 3 / ((2a + 1)(2a + 3)).
    a = concentration - 1 + dim / 2
    variance, fourth = 1 / (2 * a + 1), 3 / ((2 * a + 1) * (2 * a + 3))
    error = ((fourth - variance**2) / NUM_DRAWS) ** 0.5
    assert found.mean(0).abs().max() < 5 * (variance / NUM_DRAWS) ** 0.5
    assert (found.square().mean(0) - variance).abs().max() < 5 * error
    # The determinant is the product of Beta(η + (d − 1 − i)/2, i/2), i = 1 … d − 1.
    row = torch.arange(1, dim)
    whole = torch.tensor(concentration + (dim - 1) / 2)
    expected = (torch.digamma(whole - row / 2) - torch.digamma(whole)).sum()
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    assert abs(log_det.mean() - expected) < 5 * log_det.std() / NUM_DRAWS**0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.LKJ(3, 1.5),
        lambda: dist.LKJCholesky(3, torch.tensor([1.5, 1.5])).to_event(1),
        lambda: dist.LKJCholesky(3, 1.5).expand([2]).to_event(1),
        lambda: dist.LKJCholesky(3, torch.tensor([1.5])).expand_by([2]).mask(True).to_event(2),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_wrapped_ones_are_drawn_right_too(make, at_once):
    drawn = factors(make, 2000, at_once)
    found = below(drawn if make().event_shape == (3, 3) and type(make()) is dist.LKJ else drawn @ drawn.mT)
    assert (found.square().mean(0) - 0.2).abs().max() < 0.03  # PyTorch's: 0.25


def test_the_density_stays_and_so_do_others():
    given = dist.LKJCholesky(4, torch.tensor([0.7, 3.0]))
    before, value = given._beta.concentration1.clone(), given.sample()
    right = with_right_draws(given)
    assert torch.equal(right.log_prob(value), given.log_prob(value))
    assert torch.equal(given._beta.concentration1, before)  # the program's own is as it was
    assert right.expand([3, 2]).sample().shape == (3, 2, 4, 4)
    for fn in (
        dist.Normal(0.0, 1.0),
        dist.LogNormal(0.0, 1.0).expand([3]).to_event(1),
        dist.Beta(1.0, 2.0).mask(False),
    ):
        assert with_right_draws(fn) is fn
