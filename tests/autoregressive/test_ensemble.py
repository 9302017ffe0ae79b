"""Ensembles of models with weights and orders of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.autoregressive.cases import all_binary, jacobian, past
from vi_flows.autoregressive import MADE, Bernoulli, Categorical, Ensemble, GatedPixelCNN, LogisticMixture
from vi_flows.autoregressive.config import Made, PixelConfig, build_pixel_model
from vi_flows.training import Run, Trainer
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.pixel import PixelTrainConfig
from vi_flows.training.tasks.pixel_vae import PixelVAETrainConfig


def members(count=3, event=(4,), context_dim=0):
    torch.manual_seed(0)
    found = [MADE(event, Bernoulli(), (12,), context_dim=context_dim).double() for _ in range(count)]
    for seed, member in enumerate(found):
        member.resample_masks(seed)
        for p in member.parameters():
            torch.nn.init.normal_(p)
    return found


def test_the_density_is_the_mean_of_the_members():
    parts = members()
    model, events, none = Ensemble(parts), all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    apart = torch.stack([part.log_prob(events) for part in parts])
    found = model.log_density(events, none)
    torch.testing.assert_close(found.exp(), apart.exp().mean(0), atol=1e-14, rtol=1e-12)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (found > apart.mean(0)).all()
    torch.testing.assert_close(model.log_prob(events), found)


@pytest.mark.parametrize("build", [lambda: Ensemble(members()), lambda: MADE((4,), Bernoulli(), (12,), num_masks=3)])
def test_a_mixture_is_one_wherever_it_stands_and_has_no_conditionals_of_one_order(build):
    model = build().double()
    events, none = all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    p = model.distribution()
    torch.testing.assert_close(p.log_prob(events.reshape(2, 8, 4)).flatten(), model.log_density(events, none))
    assert p.log_prob(events).exp().sum().item() == pytest.approx(1.0)
    for ask in (p.conditional_logits, lambda x: p.complete(x, 2)):
        with pytest.raises(ValueError, match="mixture of models of several orders has no conditionals of one order"):
            ask(events)


def test_draws_are_those_of_the_mixture():
    model = Ensemble(members())
    events = all_binary((4,))
    expected = model.log_density(events, torch.zeros(16, 0, dtype=torch.float64)).exp()
    n = 30_000
    draws = model.sample((n,))
    found = torch.bincount((draws @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long(), minlength=16) / n
    # A member alone is further away than the draws' noise, at most 0.003 a cell.
    assert (model.members[0].log_prob(events).exp() - expected).abs().max() > 0.03
    assert (found - expected).abs().max() < 0.015


def test_every_draw_and_score_has_its_own_context():
    model = Ensemble(members(context_dim=2))
    contexts = torch.eye(2, dtype=torch.float64).repeat_interleave(16, 0)
    total = model.log_density(all_binary((4,)).repeat(2, 1), contexts).exp().unflatten(0, (2, 16))
    torch.testing.assert_close(total.sum(1), torch.ones(2, dtype=torch.float64))
    assert (total[0] - total[1]).abs().max() > 0.01
    n = 20_000
    draws = model.condition(torch.eye(2, dtype=torch.float64)).sample((n,))
    cells = (draws @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
    for index in range(2):
        found = torch.bincount(cells[:, index], minlength=16) / n
        assert (found - total[index]).abs().max() < 0.015


def test_members_are_trained_in_turn():
    model, x, none = Ensemble(members()), all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    for step in range(5):
        model.zero_grad()
        model.training_params(x, none).square().sum().backward()
        trained = [index for index, m in enumerate(model.members) if any(p.grad is not None for p in m.parameters())]
        assert trained == [step % 3]


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
    with pytest.raises(TypeError, match=r"members\[1\] must be of type Autoregressive, got Linear, such as a MADE"):
        Ensemble([*members(1), torch.nn.Linear(2, 2)])
    for other, name in (
        (MADE((5,), Bernoulli(), (12,)), "event_shape"), (MADE((4,), Bernoulli(), (12,), context_dim=1), "context_dim"),
        (MADE((4,), Categorical(2), (12,)), "family of conditionals"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"must have one {name}"):
            Ensemble([*members(1), other])
    with pytest.raises(ValueError, match="one family of conditionals, of the same entries"):  # 3 parameters a component
        Ensemble([MADE((2,), LogisticMixture(bins, 2), (4,)) for bins in (4, 9)])
    mixed = Ensemble([MADE((1, 2, 2), Bernoulli(), (8,)), GatedPixelCNN((1, 2, 2), Bernoulli(), 4, 1)])
    total = mixed.log_density(all_binary((1, 2, 2)).float(), torch.zeros(16, 0)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_an_ensemble_of_one_model_is_that_model():
    x, none = all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    model = Ensemble(members(1))
    assert not model.is_mixture
    assert torch.equal(model.params(x, none), model.members[0].params(x, none))
    assert torch.equal(model.log_prob(x), model.members[0].log_prob(x))
    assert model.distribution().complete(x, 2)[:, :2].equal(x[:, model.generation_order()[:2]])
    masked = Ensemble([MADE((4,), Bernoulli(), (12,), num_masks=3).double()])
    assert masked.is_mixture
    assert torch.equal(masked.log_prob(x), masked.members[0].log_prob(x))
    assert masked.log_prob(x).exp().sum().item() == pytest.approx(1.0)


def test_what_a_mixture_has_not_is_refused_by_each_of_its_names():
    x, none = all_binary((4,)), torch.zeros(16, 0, dtype=torch.float64)
    refused = pytest.raises(ValueError, match="a mixture of models of several orders has no conditionals")
    for model in (Ensemble(members(2)), Ensemble([MADE((4,), Bernoulli(), (12,), num_masks=3).double()])):
        with refused:
            model.params(x, none)
        with refused:
            model.generation_order()
        with refused:
            model.generate(none)
        with refused:
            model.conditional_logits(x)
        with refused:
            model.distribution().complete(x, 2)


def test_an_order_is_that_of_its_masks():
    model = MADE((1, 2, 2), Bernoulli(), (24,), direct=True).double()
    model.reorder(torch.tensor([2, 0, 3, 1]))
    assert model.generation_order().tolist() == [2, 0, 3, 1]
    assert ((jacobian(model) > 0) == past(model)).all()
    assert model.log_prob(all_binary((1, 2, 2))).exp().sum().item() == pytest.approx(1.0)
    for wrong in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match=r"order must have each of 0 … 3 once"):
            model.reorder(torch.tensor(wrong))


def test_networks_by_settings():
    config = PixelConfig(Made(hidden_dims=(6,), direct=True, num_networks=3))
    assert config.name == "made-h6-direct-num_networks3"
    model = build_pixel_model(config, (1, 2, 2))
    assert isinstance(model, Ensemble)
    assert [m.generation_order().tolist() for m in model.members] == [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0]]
    five = build_pixel_model(PixelConfig(Made(hidden_dims=(6,), num_networks=5)), (1, 2, 3))
    orders = [m.generation_order().tolist() for m in five.members]
    assert orders[3:] == [[5, 2, 4, 1, 3, 0], [0, 1, 2, 3, 4, 5]]
    drawn = build_pixel_model(PixelConfig(Made(hidden_dims=(6,), num_networks=3, order="random")), (1, 2, 2))
    seeds = [torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(3)]
    assert [m.generation_order().tolist() for m in drawn.members] == seeds
    model.set_output_bias(torch.tensor([0.5, 0.1, 0.9, 0.5]))
    assert [m.last[0].bias[1].item() for m in model.members] == [pytest.approx(math.log(1 / 9), abs=1e-5)] * 3
    with pytest.raises(ValueError, match="two ways to an ensemble"):
        Made(num_masks=2, num_networks=2)
    with pytest.raises(ValueError, match="take turns: leave it out"):
        PixelTrainConfig(pixel=config, cuda_graph=True)


def test_a_run_goes_on_to_the_bit_in_the_middle_of_a_turn(tmp_path):
    pixel = PixelConfig(Made(hidden_dims=(6,), num_networks=3))
    config = PixelTrainConfig(dataset="digits", pixel=pixel, epochs=1, batch_size=200, threads=1, ema_decay=0.9)
    stops: dict[str, list[int | None]] = {"whole": [None], "stopped": [2, 4, None]}
    for name, untils in stops.items():
        Run.create(tmp_path / name, config)
        for until in untils:
            trainer = Trainer(Run.open(tmp_path / name), progress=False)
            trainer.resume()
            trainer.fit(until)
    whole, stopped = (load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in stops)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    nll = [
        evaluate_run(Run.open(tmp_path / name), record=tmp_path / f"{name}.json", progress=False)[0].figures["nll"]
        for name in stops
    ]
    assert nll[0] == nll[1] < 64 * math.log(2)
    with pytest.raises(ValueError, match="num_networks"):
        Run.create(
            tmp_path / "other",
            replace(config, pixel=PixelConfig(Made(hidden_dims=(6,))), start_from=tmp_path / "whole"),
        )


def test_runs_know_how_many_networks_take_turns():
    pixel = PixelConfig(Made(hidden_dims=(8,), num_networks=3))
    assert PixelTrainConfig(pixel=pixel).num_in_turn == 3
    assert PixelTrainConfig(pixel=PixelConfig(Made(hidden_dims=(8,)))).num_in_turn == 1
    with pytest.raises(ValueError, match="the networks of made take turns: leave it out"):
        PixelVAETrainConfig(decoder=Made(hidden_dims=(8,), num_networks=3), ema_decay=0.9)
