"""Several guides in one program or one session: Pyro's parameter store holds one tensor a name."""

import copy
import io
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroModule
from pyro.optim import Adam

from tests.transforms.cases import CASES, build
from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow, fit
from vi_flows.guides.base import MixtureBase
from vi_flows.parameters import module_of
from vi_flows.vae import VAEConfig, build_vae

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


def vae():
    return build_vae(VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), data_dim=3)


def test_a_second_vae_of_a_session_is_trained_too():
    pyro.clear_param_store()
    data = torch.bernoulli(torch.full((5, 3), 0.5))
    first, second = vae(), vae()
    for one in (first, second, copy.deepcopy(first)):
        for part in (one.model, one.guide):
            assert len(changes(part, lambda one=one: steps(one.model, one.guide, data))) == len(list(part.parameters()))


@pytest.fixture
def new_session(monkeypatch):
    """Names begin at the first again, as in a process of its own."""
    return lambda: monkeypatch.setattr("vi_flows.parameters._named", Counter())


def local():
    return AmortizedFlowGuide(1, 1, (4,), scalar=True)


CALLS = {
    "guide": (made, lambda g: steps(location, g, torch.tensor(1.0))),
    "median": (made, lambda g: g.median()),
    "fit": (made, lambda g: fit(location, g, torch.tensor(1.0), num_steps=3)),
    "local": (local, lambda g: g(Y[:, None])),
    "model": (vae, lambda v: v.model(torch.zeros(5, 3))),
    "posterior": (vae, lambda v: v.guide(torch.zeros(5, 3))),
}
TRAININGS = {
    made: lambda g: steps(location, g, torch.tensor(20.0)),
    local: lambda g: steps(one_row, lambda: pyro.sample("a", g(Y[:1]))),
    vae: lambda v: steps(v.model, v.guide, torch.zeros(5, 3)),
}


def one_row():
    pyro.sample("a", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS)
def test_a_store_from_a_file_is_refused_where_it_would_be_trained_in_place_of_the_guide(
    make, call, tmp_path, new_session
):
    """Pyro's optimizer would have the file's tensors, and the guide its own."""
    pyro.clear_param_store()
    new_session()
    TRAININGS[make](first := make())
    pyro.get_param_store().save(tmp_path / "store")
    new_session()
    second = make()
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    with pytest.raises(ValueError, match=r"store has another tensor .*load_state_dict"):
        call(second)
    pyro.clear_param_store()
    if isinstance(second, torch.nn.Module):
        second.load_state_dict(first.state_dict())
    call(second)


def test_a_parameter_that_pyro_would_copy_is_refused():
    pyro.clear_param_store()
    one = vae()
    weight = next(p for p in one.guide.parameters() if p.dim() == 2)
    weight.data = weight.data.T.contiguous().T
    with pytest.raises(ValueError, match="is not contiguous, and Pyro's parameter store trains a contiguous copy"):
        steps(one.model, one.guide, torch.zeros(5, 3))


def test_the_triangles_of_a_mixture_are_trained():
    """SciPy's matrices are columns in a row, and so were parameters made like them."""
    pyro.clear_param_store()
    columns = torch.eye(2).repeat(3, 1, 1).mT.contiguous().mT
    base = MixtureBase(torch.zeros(3), torch.randn(3, 2), columns)
    assert all(parameter.is_contiguous() for parameter in base.parameters())


@pytest.mark.parametrize("name", CASES)
def test_parameters_of_bijections_are_contiguous(name):
    """Pyro would train copies of others."""
    assert all(parameter.is_contiguous() for parameter in module_of(build(name)).parameters())


def both(y):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def parts():
    found = AutoGuideList(both)
    for hidden in ("a", "b"):
        found.append(AutoConvFlow(poutine.block(both, hide=[hidden]), num_blocks=1, init_scale=1.0))
    return found


@pytest.mark.parametrize("again", [lambda first: parts(), copy.deepcopy], ids=["new", "copy"])
def test_a_second_list_of_guides_is_trained_too(again):
    pyro.clear_param_store()
    first = parts()
    steps(both, first, torch.tensor(1.0))
    second = again(first)
    steps(both, second, torch.tensor(1.0), num=1)
    moved = changes(second, lambda: steps(both, second, torch.tensor(50.0)))
    assert len(moved) > len(list(second.parameters())) // 2
    assert not changes(first, lambda: steps(both, second, torch.tensor(50.0)))
    assert changes(first, lambda: steps(both, first, torch.tensor(50.0)))


class Outer(PyroModule):
    def __init__(self):
        super().__init__()
        self.guide = made()

    def forward(self, y):
        return self.guide(y)


def test_guides_within_modules_of_one_class_are_all_trained():
    pyro.clear_param_store()
    for outer in (Outer(), Outer(), copy.deepcopy(Outer())):
        assert changes(outer, lambda outer=outer: steps(location, outer, torch.tensor(50.0)))
