"""Generation with memory is the naive one, logit by logit and draw for draw; completions keep what they got."""

import pytest
import torch

from tests.autoregressive.cases import MODELS, all_binary, build
from vi_flows.autoregressive import MADE, Autoregressive, Bernoulli, GatedPixelCNN

REMEMBERING = [name for name in MODELS if type(build(name)).extend is not Autoregressive.extend]


class Watching:
    """An output family that notes the parameters of every draw."""

    def __init__(self, output):
        self.output, self.seen = output, []

    def __getattr__(self, name):
        return getattr(self.output, name)

    def sample(self, params):
        self.seen.append(params.clone())
        return self.output.sample(params)


def drawn(model, extend, *args):
    model.output = Watching(model.output)
    torch.manual_seed(3)
    with torch.no_grad():
        x = extend(model, *args)
    seen, model.output = torch.stack(model.output.seen), model.output.output
    return x, seen


@pytest.mark.parametrize("known", [0, 5])
@pytest.mark.parametrize("name", REMEMBERING)
def test_the_same_logits_at_every_step_and_the_same_draws(name, known):
    model = build(name, context_dim=2, scale=0.5)
    known = min(known, model.event_shape.numel() - 1)
    torch.manual_seed(0)
    context = torch.randn(3, 2, dtype=torch.float64)
    start = model.output.sample(torch.randn(3, *model.event_shape, model.output.num_params, dtype=torch.float64))
    naive, logits = drawn(model, Autoregressive.extend, start, known, context)
    fast, fast_logits = drawn(model, type(model).extend, start, known, context)
    assert len(logits) == model.event_shape.numel() - known
    assert logits.std() > 0.02
    assert (logits - fast_logits).abs().max() < 1e-10
    assert torch.allclose(naive, fast, rtol=0, atol=1e-9)  # of discrete entries: equal


def test_the_models_that_remember():
    assert {name.split("-")[0] for name in REMEMBERING} == {
        "made", "pixel_cnn", "gated", "diagonal", "row", "wavenet",
    }  # fmt: skip


def test_a_hidden_unit_of_made_is_computed_once():
    """All steps together ask for every unit of every layer exactly once, and for the outputs of the drawn entries."""
    model = build("made-order-3")
    asked = {}

    def count(layer, original):
        def rows_under(mask, rows, x):
            asked.setdefault(layer, []).extend(rows.tolist())
            return original(mask, rows, x)

        return rows_under

    for layer in [*model.hidden, *model.last]:
        layer.rows_under = count(layer, layer.rows_under)
    model.extend(torch.zeros(2, 1, 3, 3, dtype=torch.float64), 4, torch.zeros(2, 0, dtype=torch.float64))
    for layer, width in zip(model.hidden, model.hidden_dims, strict=True):
        assert sorted(asked[layer]) == list(range(width))
    assert asked[model.last[0]] == model.order[4:].tolist()


def test_an_ensemble_draws_from_the_mixture_that_it_is_judged_by():
    torch.manual_seed(0)
    model = MADE((4,), Bernoulli(), (12,), num_masks=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    events, none = all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    expected = model.log_density(events, none).exp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    n = 30_000
    draws = model.sample((n,))
    found = torch.bincount((draws @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long(), minlength=16) / n
    # One mask alone is further away than the draws' noise, at most 0.003 a cell.
    alone = model.output.log_prob(model.params(events, none), events).sum(1).exp()
    assert (alone - expected).abs().max() > 0.03
    torch.testing.assert_close(model.log_prob(events).exp(), expected)
    assert (found - expected).abs().max() < 0.015
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["made-order-3", "gated", "pixel_cnn-rgb-256", "wavenet"])
def test_completions_keep_the_beginning_and_ignore_the_rest(name):
    model = build(name)
    p, order = model.distribution(), model.generation_order()
    torch.manual_seed(0)
    x = p.sample((2, 3))
    torch.manual_seed(1)
    first = p.complete(x, 4)
    assert first.shape == x.shape
    assert torch.equal(first.flatten(2)[..., order[:4]], x.flatten(2)[..., order[:4]])
    other = x.clone().flatten(2)
    other[..., order[4:]] = 1 - other[..., order[4:]].clamp(max=1)
    torch.manual_seed(1)
    assert torch.equal(p.complete(other.reshape(x.shape), 4), first)
    assert torch.equal(p.complete(x, model.event_shape.numel()), x)
    with pytest.raises(ValueError, match="num_known"):
        p.complete(x, 28)


@pytest.mark.parametrize("missing", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [name for name in MODELS if not build(name).is_mixture])
def test_what_is_to_be_drawn_may_be_anything(name, missing):
    model = build(name, scale=0.5)
    p, order = model.distribution(), model.generation_order()
    torch.manual_seed(0)
    x = model.output.sample(torch.randn(2, *model.event_shape, model.output.num_params, dtype=torch.float64))
    known = min(3, len(order) - 1)
    torch.manual_seed(1)
    expected = p.complete(x, known)
    x.flatten(1)[:, order[known:]] = missing
    torch.manual_seed(1)
    assert torch.equal(p.complete(x, known), expected)


def test_completions_follow_the_conditional_distribution():
    """Over the last three of nine pixels, against the enumerated conditional."""
    model = GatedPixelCNN((1, 3, 3), Bernoulli(), 6, 1, first_kernel=3).double()
    x = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 0], dtype=torch.float64).reshape(1, 3, 3)
    torch.manual_seed(0)
    draws = model.distribution().complete(x.expand(4000, 1, 3, 3), 6).reshape(4000, 9)
    code = (draws[:, 6:] @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
    ends = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=torch.float64)
    events = torch.cat([x.reshape(1, 9)[:, :6].expand(8, 6), ends], 1).reshape(8, 1, 3, 3)
    expected = model.log_prob(events).softmax(0).detach()
    assert (torch.bincount(code, minlength=8) / 4000 - expected).abs().max() < 0.035


@pytest.mark.parametrize("name", ["pixel_cnn", "gated", "diagonal", "row", "gated-rgb-256"])
def test_a_placed_context_is_remembered_too_and_says_another_thing_at_each_place(name):
    torch.manual_seed(0)
    model = build(name, context_dim=2).float()
    x = model.output.sample(torch.randn(3, *model.event_shape, model.output.num_params))
    before = model.params(x, torch.zeros(3, 2))
    model.place_context()
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_().mul_(0.4)
        model.context_maps[0].maps.weight.mul_(3)
    start, context = x.double(), torch.randn(3, 2, dtype=torch.float64)
    naive, logits = drawn(model, Autoregressive.extend, start, 3, context)
    fast, fast_logits = drawn(model, type(model).extend, start, 3, context)
    assert before.shape == model.params(start, context).shape
    assert (logits - fast_logits).abs().max() < 1e-10
    assert torch.equal(naive, fast)
    # On an empty image the layers of a context that is not placed treat inner pixels of a large one alike.
    shift = model.context_maps[0](context)
    assert (shift[:, :, 0, 0] - shift[:, :, 2, 1]).abs().min() > 1e-3
    changed = model.params(start, context + 1.0) - model.params(start, context)
    assert (changed.abs().amax((0, -1)) > 1e-4).all()


def test_a_context_that_is_not_there_cannot_be_placed():
    with pytest.raises(ValueError, match="without context"):
        build("gated").place_context()
    build("made", context_dim=2).place_context()  # its entries have weights of their own
