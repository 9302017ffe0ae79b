"""Programs of random shape have their exact posterior and evidence: plates, events, masks, scales, factors, gaps."""

from __future__ import annotations

import pyro
import pytest
import torch

from tests.guides.random_programs import RandomProgram
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

NUM_DRAWS = 4000
SEEDS = [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 150))]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_posterior_is_the_exact_one(seed: int) -> None:
    program = RandomProgram(seed)
    means, sds, evidence = program.exact()
    pyro.set_rng_seed(seed)
    guide = AutoConvFlow(program, num_blocks=1)
    fit(program, guide, progress=False)
    found = diagnose(program, guide)
    assert found.verdict == "ok", found.reason
    assert found.log_evidence == pytest.approx(evidence, abs=0.05)
    draws = guide.sample_posterior(NUM_DRAWS)
    for name, mean in means.items():
        log_normal = program.sites[name.partition("_")[0]].kind == "log_normal"
        value = draws[name].double().log() if log_normal else draws[name].double()
        assert value.shape == (NUM_DRAWS, *mean.shape)
        assert ((value.mean(0) - mean) / sds[name]).abs().max() < 0.1
        assert (value.std(0) / sds[name]).log().abs().max() < 0.08


def test_the_programs_are_of_all_kinds() -> None:
    sites = [site for seed in range(150) for site in RandomProgram(seed).sites.values()]
    assert {site.kind for site in sites} == {"normal", "vector", "mvn", "log_normal", "sum", "matrix"}
    assert {site.counts for site in sites} == {"plain", "scale", "mask", "masked", "obs_mask", "factor"}
    assert {site.plates for site in sites} == {(), ("a",), ("b",), ("a", "b")}
    means, sds, evidence = RandomProgram(3).exact()
    assert torch.cat([t.flatten() for t in (*means.values(), *sds.values())]).isfinite().all()
    assert evidence < 0
