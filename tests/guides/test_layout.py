"""Names of sites, dimensions and labels in ArviZ's groups: those that can't be, and those of nothing, are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope

from vi_flows.guides import AutoConvFlow, datatree

pytest.importorskip("xarray")

Y = torch.tensor([1.0, 2.0, 3.5, 0.5])


def named(site="mu", plate="rows", observed="y", computed="twice"):
    def program():
        mu = pyro.sample(site, dist.Normal(0.0, 5.0))
        pyro.deterministic(computed, 2 * mu)
        pyro.factor("a/factor", 0.0 * mu)
        with pyro.plate(plate, 4):
            pyro.sample(observed, dist.Normal(mu, 1.0), obs=Y)

    return program


def tree_of(program, **options):
    return datatree(program, AutoConvFlow(program, num_blocks=1), num_draws=5, num_chains=2, **options)


@pytest.mark.parametrize(
    "names",
    [{"site": "x/a"}, {"observed": "x/y"}, {"computed": "x/c"}, {"site": "chain"}, {"observed": "draw"}],
)
def test_names_of_sites_that_a_tree_cannot_hold_are_refused(names):
    (name,) = names.values()
    with pytest.raises(ValueError, match=rf"site '{name}' can't have that name in a DataTree.*rename it"):
        tree_of(named(**names))


@pytest.mark.parametrize("plate", ["draw", "chain", "a/b"])
def test_plates_of_such_names_give_their_dimensions_no_name(plate):
    tree = tree_of(named(plate=plate))
    assert tree["log_likelihood"]["y"].sizes == {"chain": 2, "draw": 5, "y_dim_0": 4}
    assert tree["posterior_predictive"]["y"].sizes == {"chain": 2, "draw": 5, "y_dim_0": 4}


def test_a_site_called_as_a_dimension_of_another():
    def program():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("mu_dim_0", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=Y)

    tree = tree_of(program)
    assert tree["posterior"]["mu"].sizes == {"chain": 2, "draw": 5, "mu_dim_0_": 2}


def test_dims_of_no_site_are_refused():
    with pytest.raises(ValueError, match=r"dims names 'z', which is no site of the model; it has 'mu'.*'y'"):
        tree_of(named(), dims={"z": ["school"]})


@pytest.mark.parametrize("dim", ["chain", "draw", "mu", "a/b"])
def test_dims_that_are_something_else_are_refused(dim):
    with pytest.raises(ValueError, match=rf"dims of 'y': no dimension can be called '{dim}'"):
        tree_of(named(), dims={"y": [dim]})


def test_coords_of_no_dimension_and_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"coords labels 'row', which is no dimension; there are .*'rows'"):
        tree_of(named(), coords={"row": list("abcd")})
    with pytest.raises(ValueError, match=r"coords of 'rows': 3 labels for a dimension of length 4"):
        tree_of(named(), coords={"rows": list("abc")})


def test_two_lengths_of_one_name_are_refused():
    def program():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=Y)

    with pytest.raises(ValueError, match=r"dims of 'y': 'k' has the length 4, and 2 elsewhere"):
        tree_of(program, dims={"mu": ["k"], "y": ["k"]})
    with pytest.raises(ValueError, match=r"dims of 'mu': no dimension can be called 'k'"):
        tree_of(program, dims={"mu": ["k", "k"]})


def test_labels_of_chains_draws_and_coordinates():
    coords = {"chain": ["one", "two"], "rows": list("abcd"), "draw": [1, 2, 3, 4, 5]}
    tree = tree_of(named(), coords=coords)
    for dim, labels in coords.items():
        assert tree["log_likelihood"].coords[dim].values.tolist() == labels


def test_log_likelihoods_of_vectors_have_the_dimensions_of_their_rows():
    def program():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=torch.stack([Y, Y], -1))

    assert tree_of(program)["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    tree = tree_of(program, dims={"y": ["school", "subject"]})
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "school", "subject")
    assert tree["observed_data"]["y"].dims == ("school", "subject")


def test_scoped_programs_are_refused_by_name_and_can_be_drawn_from():
    program = scope(named(), prefix="x")
    guide = AutoConvFlow(program, num_blocks=1)
    with pytest.raises(ValueError, match="site 'x/mu'"):
        datatree(program, guide)
    assert guide.sample_posterior(3)["x/mu"].shape == (3,)
