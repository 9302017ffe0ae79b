"""The guide of an amortised posterior stands in the plates of its program, and every bound counts its maps."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from vi_flows.flows import IAF
from vi_flows.guides.amortize import AmortizedPosterior

ZEROS = torch.zeros(4)


def plated(y=ZEROS):
    tau = pyro.sample("tau", dist.LogNormal(2.0, 0.1))
    with pyro.plate("p", 4):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(theta.sum(-1) * tau, 0.5), obs=y)


@pytest.fixture(scope="module")
def of_plates():
    torch.manual_seed(0)
    return AmortizedPosterior(plated, flow=IAF(num_layers=1), hidden_dims=(8,)).posterior(torch.ones(4))


def test_its_guide_stands_in_the_plates_of_the_program(of_plates):
    sites = pyro.poutine.trace(of_plates.guide).get_trace().nodes
    assert [frame.name for frame in sites["theta"]["cond_indep_stack"]] == ["p"]
    assert sites["theta"]["fn"].event_dim == 1
    assert sites["theta"]["value"].shape == (4, 2)
    assert sites["tau"]["cond_indep_stack"] == ()


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(3),
        TraceGraph_ELBO(3),
    ],
    ids=["trace", "mean-field", "mean-field-loop", "graph-loop"],
)
def test_every_bound_counts_the_log_determinants_of_its_guide(of_plates, elbo):
    drawn = []

    def guide():
        drawn.append(of_plates.guide())

    torch.manual_seed(1)
    at_data = pyro.poutine.condition(plated, data={"y": torch.ones(4)})
    bound = -elbo.loss(at_data, guide)
    tau = torch.cat([draw["tau"].reshape(-1) for draw in drawn])[-3:]
    theta = torch.cat([draw["theta"].reshape(-1, 4, 2) for draw in drawn])[-3:]
    log_p = dist.LogNormal(2.0, 0.1).log_prob(tau) + dist.Normal(0.0, 1.0).log_prob(theta).sum((-1, -2))
    log_p = log_p + dist.Normal(theta.sum(-1) * tau[:, None], 0.5).log_prob(torch.ones(4)).sum(-1)
    log_q = of_plates.log_prob({"tau": tau, "theta": theta})
    assert bound == pytest.approx(float((log_p - log_q).detach().mean()), rel=1e-4)
