"""What is around a call: gradients off, inference mode, threads, Pyro's own objectives."""

import math
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit
from vi_flows.guides.amortize import Simulator

Y = torch.tensor([1.0, 2.0, -0.5, 0.3, 4.0])


def location(y=Y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("d", 5):
        pyro.sample("y", dist.Normal(a, s), obs=y)


def both(y=Y, **options):
    guide = AutoConvFlow(location, num_blocks=1, prototype_args=(y,))
    result = fit(location, guide, y, num_steps=20, **options)
    return result.elbo, diagnose(location, guide, y, num_samples=200, num_paths=10).log_evidence


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_whatever_is_around_gradients_are_there_within(around):
    pyro.set_rng_seed(0)
    expected = both()
    pyro.set_rng_seed(0)
    with around():
        y = Y.clone()
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert both(y) == pytest.approx(expected, abs=1e-3)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode


def test_threads_wait_for_each_other():
    """Pyro's handlers and the generators are those of the process."""
    found = {}

    def run(shift):
        guide = AutoConvFlow(location, num_blocks=1)
        found[shift] = fit(location, guide, Y + shift, num_steps=10, progress=False).elbo

    state = torch.get_rng_state()
    threads = [threading.Thread(target=run, args=(shift,)) for shift in (0.0, 1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    for shift, elbo in dict(found).items():
        run(shift)
        assert found[shift] == elbo
    assert len(found) == 3


def in_threads(work, count=4):
    """What each of them ended in, and whether Pyro's stack of handlers is as it was."""
    ends = []

    def run():
        try:
            ends.append(work())
        except Exception as error:
            ends.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pyro.poutine.runtime._PYRO_STACK == []
    return ends


@pytest.mark.parametrize("work", ["construct", "start", "evaluate", "map", "resample", "simulate"])
def test_threads_wait_for_each_other_wherever_a_program_runs(work):
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(chain, num_blocks=1, warm_start=False, init_scale=0.8)
    values = guide.sample_posterior(50)
    latent, _ = guide.unconstrain(values)
    simulator = Simulator(chain, data="b")

    def several():
        for _ in range(3):
            match work:
                case "construct":
                    result = AutoConvFlow(chain, num_blocks=1, warm_start=False)
                case "start":
                    result = AutoConvFlow(chain, num_blocks=1)
                case "evaluate":
                    result = LogJoint(chain)(values)
                case "map":
                    result = guide.constrain(latent)[1]
                case "resample":
                    result = guide.resample(10)
                case _:
                    result = len(simulator.draw(20, at_once=False))
        return result

    expected = several()
    for end in in_threads(several):
        assert type(end) is type(expected), end
        if isinstance(end, torch.Tensor):
            torch.testing.assert_close(end, expected)


def priors():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("s", dist.LogNormal(0.0, 0.5))
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("d", 2):
        pyro.sample("b", dist.Beta(2.0, 3.0))
        pyro.sample("v", dist.Gamma(3.0, 1.0).expand([2]).to_event(1))


def chain():
    """A support that depends on another site."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, 2 - a))


@pytest.mark.parametrize("model", [priors, chain])
def test_the_maps_to_the_supports_count_in_divergences_too(model):
    guide = AutoConvFlow(model, num_blocks=1, warm_start=False, init_scale=0.8)
    bounds = []
    for kind in (Trace_ELBO, TraceMeanField_ELBO):
        pyro.set_rng_seed(0)
        with torch.no_grad():
            bounds.append(kind(num_particles=20, vectorize_particles=False).loss(model, guide))
    assert math.isfinite(bounds[0])
    assert bounds[1] == pytest.approx(bounds[0], abs=1e-3)
