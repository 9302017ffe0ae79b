"""Small Pyro programs that the guides' tests share."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

FIVE_VALUES = torch.tensor([1.0, 2.0, -0.5, 0.3, 4.0])
TABLE = torch.tensor([[0.3, 1.0, -1.0], [2.0, 0.1, 0.4]])


def gaussian():
    """x ~ N(1000, 50²), y | x ~ N(x, 50²) observed at 1100: the posterior is N(1050, 1250)."""
    x = pyro.sample("x", dist.Normal(1000.0, 50.0))
    pyro.sample("y", dist.Normal(x, 50.0), obs=torch.tensor(1100.0))


def correlated():
    loc = torch.tensor([3.0, -2.0, 0.5])
    tril = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.3, 0.0], [0.1, -0.2, 0.05]])
    pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril))


def supports():
    """One site of every kind of support."""
    pyro.sample("positive", dist.Gamma(2.0, 1.0))
    pyro.sample("interval", dist.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])).to_event(1))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("ordered", dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]))  # fmt: skip
    pyro.sample("correlation", dist.LKJCholesky(3, 1.0))
    with pyro.plate("rows", 2):
        pyro.sample("real", dist.Normal(0.0, 1.0))


def flat():
    """A flat prior on a line, as Stan programs have them."""
    x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(3.0))


def hierarchical(y, subsample_size=None, local=True):
    """Local latents in a plate that may be subsampled."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y), subsample_size=subsample_size) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0)) if local else mu
        pyro.sample("y", dist.Normal(z, 0.1), obs=y[index])


def shifted(y):
    """A parameter of five rows' location; ``lifted`` has a prior for it."""
    s = pyro.param("shift", torch.tensor(1.0))
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 5):
        pyro.sample("y", dist.Normal(m + s, 1.0), obs=y)


lifted = poutine.lift(shifted, prior={"shift": dist.Normal(0.0, 1.0)})


def levels():
    """Three levels of latents above a table."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 2, dim=-2):
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("rows", 3, dim=-1):
            c = pyro.sample("c", dist.Normal(b, 1.0))
            pyro.sample("y", dist.Normal(c, 1.0), obs=TABLE)
