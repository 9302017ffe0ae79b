"""Several guides in one program or one session: Pyro's parameter store holds one tensor a name."""

import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow, fit

Y = torch.tensor([0.5, -1.0, 2.0])


def location(y):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def made():
    return AutoConvFlow(location, num_blocks=1, init_scale=1.0, prototype_args=(torch.tensor(0.0),))


def saved_and_loaded(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def steps(model, guide, *args, num=3):
    svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO(2))
    for _ in range(num):
        svi.step(*args)


def changes(module, run):
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run()
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("again", [lambda first: made(), copy.deepcopy, saved_and_loaded], ids=["new", "copy", "file"])
def test_a_second_guide_of_one_class_is_trained_too(again):
    pyro.clear_param_store()
    first = made()
    steps(location, first, torch.tensor(1.0))
    second = again(first)
    moved = changes(second, lambda: steps(location, second, torch.tensor(50.0)))
    assert len(moved) > len(list(second.parameters())) // 2
    assert not changes(first, lambda: steps(location, second, torch.tensor(50.0)))


def rows():
    with pyro.plate("d", 3):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(3.0, 1.0))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=Y)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("train", [lambda g: steps(rows, g), lambda g: fit(rows, g, num_steps=3)], ids=["svi", "fit"])
def test_two_local_guides_in_one_program_are_both_trained(copied, train):
    pyro.clear_param_store()
    first = AmortizedFlowGuide(1, 1, (4,), scalar=True)
    second = copy.deepcopy(first) if copied else AmortizedFlowGuide(1, 1, (4,), scalar=True)

    def guide():
        with pyro.plate("d", 3):
            pyro.sample("a", first(Y[:, None]))
            pyro.sample("b", second(Y[:, None]))

    moved = changes(second, lambda: train(guide))
    assert "head.weight" in moved
    assert "network.0.weight" in moved
