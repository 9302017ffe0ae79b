"""Observations with gaps in ArviZ's groups: what a mask leaves out counts nowhere."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from vi_flows.guides import AutoConvFlow, datatree

pytest.importorskip("xarray")

NAN = math.nan
Y = torch.tensor([1.0, 2.0, NAN, 1.5])
KEPT = [0, 1, 3]


def tree_of(program, **options):
    torch.manual_seed(0)
    return datatree(program, AutoConvFlow(program, num_blocks=1), num_draws=50, num_chains=2, **options)


def log_normal(y, b):
    return -0.5 * (np.asarray(y) - np.asarray(b)) ** 2 - 0.5 * math.log(2 * math.pi)


def slope():
    return pyro.sample("b", dist.Normal(0.0, 10.0))


def masked():
    b = slope()
    with pyro.plate("rows", 4), poutine.mask(mask=~Y.isnan()):
        pyro.sample("y", dist.Normal(b, 1.0), obs=Y)


def mask_of_the_distribution():
    b = slope()
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Normal(b, 1.0).mask(~Y.isnan()), obs=Y)


def filled():
    b = slope()
    with pyro.plate("rows", 4), poutine.mask(mask=~Y.isnan()):
        pyro.sample("y", dist.Normal(b, 1.0), obs=Y.nan_to_num(50.0))


def gaps_of_pyro():
    b = slope()
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.NanMaskedNormal(b, 1.0), obs=Y)


def rows_of_events():
    b = slope()
    with pyro.plate("rows", 4), poutine.mask(mask=~Y.isnan()):
        pyro.sample("y", dist.Normal(b, 1.0).expand([1]).to_event(1), obs=Y[:, None])


def vectors_with_gaps():
    b = slope()
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.NanMaskedMultivariateNormal(b[None], torch.eye(1)), obs=Y[:, None])


def events_with_gaps():
    b = slope()
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.NanMaskedNormal(b, torch.ones(1)).to_event(1), obs=Y[:, None])


PROGRAMS = [
    masked, mask_of_the_distribution, filled, gaps_of_pyro, rows_of_events, vectors_with_gaps, events_with_gaps
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_that_are_masked_out_have_no_log_likelihood(program):
    tree = tree_of(program)
    found = tree["log_likelihood"]["y"]
    assert found.dims == ("chain", "draw", "rows")
    assert found.coords["rows"].values.tolist() == KEPT
    wanted = log_normal(Y[KEPT], tree["posterior"]["b"].values[..., None])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-5)
    predicted = tree["posterior_predictive"]["y"]
    assert predicted.sizes["rows"] == tree["observed_data"]["y"].sizes["rows"] == 4
    assert np.isfinite(predicted.values).all()


def test_the_site_of_an_obs_mask():
    def program():
        b = slope()
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(b, 1.0), obs=Y, obs_mask=~Y.isnan())

    tree = tree_of(program)
    assert set(tree["log_likelihood"].data_vars) == {"y_observed"}
    assert tree["log_likelihood"]["y_observed"].coords["rows"].values.tolist() == KEPT
    assert np.isfinite(tree["posterior"]["y"].values).all()
    assert (tree["posterior"]["y"].values[..., KEPT] == Y[KEPT].numpy()).all()


def test_loo_is_that_of_the_rows_without_the_others():
    """Eight rows of which two are masked, with 50 in their places; they gave −2509 over eight."""
    stats = pytest.importorskip("arviz_stats")
    y = torch.tensor([1.0, 2.0, 50.0, 1.5, 0.5, 1.2, 50.0, 0.8])

    def program(y):
        b = slope()
        with pyro.plate("rows", len(y)), poutine.mask(mask=y < 40):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    found = []
    for data in (y, y[y < 40]):
        torch.manual_seed(0)
        guide = AutoConvFlow(program, num_blocks=1, prototype_args=(data,))
        guide.set_up(data)
        found.append(datatree(program, guide, (data,), num_draws=500))
    loo, without = map(stats.loo, found)
    assert loo.n_data_points == without.n_data_points == 6
    assert loo.elpd == pytest.approx(without.elpd, abs=0.05)
    assert loo.elpd == pytest.approx(-6.97, abs=0.3)
    counting = found[0].sel(rows=found[0]["log_likelihood"]["rows"])
    assert counting["observed_data"]["y"].values.max() < 40
    assert stats.loo_pit(counting)["y"].sizes == {"rows": 6}


def test_gaps_that_leave_no_block_are_one_dimension():
    y = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [4.0, 5.0, NAN]])

    def program():
        b = slope()
        with pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 3, dim=-2), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    tree = tree_of(program, coords={"columns": ["u", "v", "w"]})
    found = tree["log_likelihood"]["y"]
    assert found.dims == ("chain", "draw", "y_kept")
    assert found.coords["y_kept_rows"].values.tolist() == [0, 0, 2, 2]
    assert found.coords["y_kept_columns"].values.tolist() == ["u", "w", "u", "v"]
    wanted = log_normal([1.0, 3.0, 4.0, 5.0], tree["posterior"]["b"].values[..., None])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)


def test_whole_rows_and_columns_leave_a_block():
    kept = torch.tensor([True, False, True])[:, None] & torch.tensor([True, True, False, True])

    def program():
        b = slope()
        with pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 3, dim=-2), poutine.mask(mask=kept):
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.arange(12.0).reshape(3, 4))

    tree = tree_of(program)
    found = tree["log_likelihood"]["y"]
    assert found.coords["rows"].values.tolist() == [0, 2]
    assert found.coords["columns"].values.tolist() == [0, 1, 3]
    wanted = log_normal([[0.0, 1.0, 3.0], [8.0, 9.0, 11.0]], tree["posterior"]["b"].values[..., None, None])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)


def test_two_sites_with_gaps_of_their_own():
    other = torch.tensor([NAN, 2.0, 3.0, 4.0])

    def program():
        b = slope()
        with pyro.plate("rows", 4):
            with poutine.mask(mask=~Y.isnan()):
                pyro.sample("y", dist.Normal(b, 1.0), obs=Y)
            with poutine.mask(mask=~other.isnan()):
                pyro.sample("z", dist.Normal(b, 2.0), obs=other)

    tree = tree_of(program)["log_likelihood"]
    assert tree["y"].coords["rows"].values.tolist() == KEPT
    assert tree["z"].dims == ("chain", "draw", "z_dim_0")
    assert tree["z"].coords["z_dim_0"].values.tolist() == [1, 2, 3]


def test_a_site_that_is_masked_out_whole_has_no_log_likelihood():
    def program():
        b = slope()
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(b, 1.0).mask(False), obs=Y)

    tree = tree_of(program)
    assert "log_likelihood" not in tree.children
    assert tree["posterior_predictive"]["y"].sizes["rows"] == 4


def test_a_mask_that_moves_leaves_zeros():
    def program():
        b = slope()
        with pyro.plate("rows", 4), poutine.mask(mask=(torch.arange(4) < 3) & ((b > 1.5) | (torch.arange(4) > 0))):
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor([1.0, 2.0, 1.0, NAN]))

    tree = tree_of(program)
    found, b = tree["log_likelihood"]["y"], tree["posterior"]["b"].values
    assert found.coords["rows"].values.tolist() == [0, 1, 2]
    assert ((b > 1.5).any(), (b > 1.5).all()) == (True, False)
    np.testing.assert_allclose(found.values[..., 0], np.where(b > 1.5, log_normal(1.0, b), 0.0), rtol=1e-5)
