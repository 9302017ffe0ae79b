"""Every Pyro program of ``experiments/posteriordb`` against the Stan program's formula in NumPy and SciPy."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.posteriordb import collection
from vi_flows.guides import AutoConvFlow
from vi_flows.guides.log_joint import LogJoint

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
    joint = LogJoint(program.model, args, dtype=torch.float64)
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
