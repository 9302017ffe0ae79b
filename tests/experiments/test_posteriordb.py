"""Every Pyro program of ``experiments/posteriordb`` against the Stan program's formula in NumPy and SciPy."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.posteriordb import collection
from experiments.posteriordb.regressions import exact
from vi_flows.guides import AutoConvFlow
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.promoting import Promoting

ROOT = Path(os.environ.get("VI_FLOWS_DATA", "shared/data"))
needs_data = pytest.mark.skipif(
    not (ROOT / "posteriordb").is_dir(), reason="no posteriordb/ below VI_FLOWS_DATA: its data are not there"
)


@needs_data
@pytest.mark.parametrize("name", list(collection.PROGRAMS))
def test_program_has_the_density_of_the_stan_formula(name):
    program = collection.PROGRAMS[name]
    data, _ = collection.load(name, ROOT)
    torch.manual_seed(0)
    args = program.arguments(data)
    guide = AutoConvFlow(program.model, num_blocks=1, warm_start=False, prototype_args=args)
    values, _ = guide.constrain(0.3 * torch.randn(5, guide.latent_dim, dtype=torch.float64))
    args = tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)
    joint = LogJoint(program.model, args, within=partial(Promoting, torch.float64))
    found = joint(values).numpy()
    assert joint.vectorized
    wanted = np.array([program.formula(data, {k: v[i].numpy() for k, v in values.items()}) for i in range(5)])
    # Up to one constant; data in single precision, differential equations in few steps.
    np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), rtol=2e-3, atol=2e-3)


@needs_data
@pytest.mark.parametrize("name", list(collection.PROGRAMS))
def test_scalars_have_the_names_of_the_reference_draws(name):
    program = collection.PROGRAMS[name]
    data, chains = collection.load(name, ROOT)
    guide = AutoConvFlow(program.model, num_blocks=1, warm_start=False, prototype_args=program.arguments(data))
    assert set(program.scalars(guide.sample_posterior(2))) == set(chains)


@needs_data
@pytest.mark.parametrize("name", ["kidiq-kidscore_momhsiq", "mesquite-mesquite"])
def test_draws_in_closed_form_agree_with_the_reference_draws(name):
    columns, cauchy = collection.PROGRAMS[name].arguments.args
    data, chains = collection.load(name, ROOT)
    found = exact(columns, cauchy, data)
    assert set(found) == set(chains)
    for scalar, reference in chains.items():
        sd = float(reference.std())
        assert found[scalar].shape == (10, 1000)
        assert abs(float(found[scalar].mean() - reference.mean())) < 0.06 * sd, scalar  # four standard errors
        assert abs(float(found[scalar].std()) / sd - 1) < 0.04, scalar


@needs_data
def test_a_posterior_without_reference_draws_has_its_own():
    data, chains = collection.load("mesquite-logmesquite_logva", ROOT)
    assert data["N"] == 46
    assert set(chains) == {"beta[1]", "beta[2]", "beta[3]", "beta[4]", "sigma"}
    with pytest.raises(FileNotFoundError, match="VI_FLOWS_DATA"):
        collection.load("mesquite-logmesquite_logva", ROOT / "nothing")
