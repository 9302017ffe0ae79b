"""The training recipe against numbers worked out by hand: schedules, KL weight, average, data order, output bias."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from vi_flows.data import load
from vi_flows.objectives import elbo_bound, iwae_bound
from vi_flows.training import Run, Trainer, TrainingInterrupted, VAETrainConfig
from vi_flows.training.average import WeightAverage
from vi_flows.training.captured import trainer_for
from vi_flows.training.checkpoint import load_tensors
from vi_flows.vae import LogWeightTerms, VAEConfig

SMALL = VAETrainConfig(
    vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), epochs=2, batch_size=400, threads=1, checkpoint_seconds=1e9
)


def started(folder, **settings):
    trainer = Trainer(Run.create(folder / "run", replace(SMALL, **settings)), progress=False)
    trainer.start()
    return trainer


def spied(trainer):
    """What each step of the task is given."""
    calls, inner = [], trainer.task.step

    def step(rows, kl_weight, num_particles):
        calls.append((rows, kl_weight, num_particles))
        return inner(rows, kl_weight, num_particles)

    trainer.task.step = step
    return calls


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({"schedule": "constant"}, [2.0] * 8),
        # 1 + cos(kπ/8), k = 0 … 7: √2/2 at k = 2, zero at k = 4.
        ({"schedule": "cosine"}, [2.0, 1.9238795, 1.7071068, 1.3826834, 1.0, 0.6173166, 0.2928932, 0.0761205]),
        ({"schedule": "step"}, [2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02]),
        ({"schedule": "constant", "lr_warmup_steps": 4}, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ({"schedule": "step", "lr_warmup_steps": 5}, [0.4, 0.8, 1.2, 1.6, 0.2, 0.2, 0.02, 0.02]),
    ],
)
def test_learning_rates_are_those_of_the_table(settings, table):
    config = replace(SMALL, learning_rate=2.0, **settings)
    assert [config.learning_rate_at(step, 8) for step in range(8)] == pytest.approx(table, abs=1e-7)


def test_kl_weights_are_those_of_the_table():
    config = replace(SMALL, kl_warmup_epochs=4.0)
    assert [config.kl_weight_at(epoch) for epoch in (0, 0.5, 1, 3, 4, 9)] == [0.0, 0.125, 0.25, 0.75, 1.0, 1.0]
    assert SMALL.kl_weight_at(0.0) == 1.0


def test_the_kl_weight_multiplies_the_prior_and_the_posterior():
    """−10 + ¼(−3 − (−1)) = −10.5 and −8 + ¼(−2 − 2) = −9; the prior alone would give −9.75 and −10.5."""
    terms = LogWeightTerms(
        torch.tensor([[-10.0], [-8.0]]), torch.tensor([[-3.0], [-2.0]]), torch.tensor([[-1.0], [2.0]])
    )
    assert terms.log_weights(0.25).flatten().tolist() == [-10.5, -9.0]
    assert terms.log_weights().flatten().tolist() == [-12.0, -12.0]
    assert elbo_bound(terms, 0.25).item() == -9.75
    assert iwae_bound(terms, 0.25).item() == pytest.approx(math.log((math.exp(-10.5) + math.exp(-9)) / 2), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "bound"), [("elbo", -3.0), ("stl", -3.0), ("iwae", math.log(0.15)), ("dreg", math.log(0.15))]
)
def test_runs_are_validated_by_the_bound_that_they_train(tmp_path, objective, bound):
    """Weights 0.1 and 0.2 of each image: their mean is 0.15; with −1 and −5 the mean logarithm is −3."""
    trainer = started(tmp_path, objective=objective, valid_particles=2)
    log_w = [-1.0, -5.0] if bound == -3.0 else [math.log(0.1), math.log(0.2)]

    def terms(x, num_particles):
        assert num_particles == 2
        zeros = torch.zeros(2, len(x))
        return LogWeightTerms(torch.tensor(log_w)[:, None] + zeros, zeros, zeros)

    trainer.module.log_weight_terms = terms
    assert trainer.task.validate() == pytest.approx(-bound, rel=1e-6)


def test_the_kl_weight_of_a_step_is_that_of_its_fraction_of_an_epoch(tmp_path):
    trainer = started(tmp_path, kl_warmup_epochs=2.0)
    calls = spied(trainer)
    trainer.fit()
    per_epoch = math.ceil(len(load("digits").train) / 400)
    assert [weight for _, weight, _ in calls] == pytest.approx([s / (2 * per_epoch) for s in range(2 * per_epoch)])


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({"num_particles": 7}, [7] * 10),
        ({"particles_schedule": (1, 5, 50)}, [1, 1, 1, 1, 5, 5, 5, 50, 50, 50]),  # 3e/10 passes 1 at 10/3, 2 at 20/3
        ({"particles_schedule": (1, 5, 50), "particles_epochs": (8, 9)}, [1] * 8 + [5, 50]),
        ({"particles_schedule": (3,)}, [3] * 10),
    ],
)
def test_particles_are_those_of_the_table(settings, table):
    config = replace(SMALL, epochs=10, **settings)
    assert [config.num_particles_at(epoch) for epoch in range(10)] == table


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_particles": 2, "particles_schedule": (1, 5)}, "exclude each other"),
        ({"particles_schedule": (1, 2, 3)}, "3 parts, and there are 2 epochs"),
        ({"particles_epochs": (1,)}, "particles_epochs"),
        ({"particles_schedule": (1, 2), "particles_epochs": (2,)}, "below 2"),
        ({"epochs": 9, "particles_schedule": (1, 2, 4), "particles_epochs": (5, 5)}, "rising"),
        ({"epochs": 9, "particles_schedule": (1, 2, 4), "particles_epochs": (5,)}, "must be 2"),
    ],
)
def test_schedules_of_particles_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **settings)


def test_the_particles_of_a_step_are_those_of_its_epoch(tmp_path):
    trainer = started(tmp_path, objective="iwae", particles_schedule=(1, 3))
    calls, drawn, inner = spied(trainer), [], trainer.module.guide.sample_and_log_prob

    def sample(x, num_particles):
        latents, log_q = inner(x, num_particles)
        if trainer.module.training:
            drawn.append(len(log_q))
        return latents, log_q

    trainer.module.guide.sample_and_log_prob = sample
    trainer.fit()
    per_epoch = len(calls) // 2
    assert [count for _, _, count in calls] == drawn == [1] * per_epoch + [3] * per_epoch


def test_the_average_forgets_as_the_recursion_says(tmp_path):
    """Decays min(0.15, (1 + t)/(10 + t)): 1/10 at t = 0, then 2/11 > 0.15 and so 0.15."""
    trainer = started(tmp_path, ema_decay=0.15, learning_rate=0.1, schedule="constant")
    weight = trainer.module.model.logits.weight
    seen = [weight.detach().clone()]
    expected = seen[0]
    for step, decay in enumerate([0.1, 0.15, 0.15]):
        trainer.fit(until=step + 1)
        seen.append(weight.detach().clone())
        assert (seen[-1] - seen[-2]).abs().max() > 0.01  # else the average shows nothing
        expected = decay * expected + (1 - decay) * seen[-1]
        torch.testing.assert_close(trainer.average.tensors["model.logits.weight"], expected)


def test_the_ramp_of_the_average_is_one_tenth_to_the_full_decay():
    """(1 + t)/(10 + t) is 1/10, 2/11, 1/2, 10/19 at t = 0, 1, 8, 9."""

    module = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(module.weight)
    for step, kept in [(0, 1 / 10), (1, 2 / 11), (8, 1 / 2), (9, 0.51), (10_000, 0.51)]:
        average = WeightAverage(module, 0.51)
        average.restore({name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()})
        average.update(1 - average.decay_at(step))
        assert average.tensors["weight"].item() == pytest.approx(1 - kept, rel=1e-6)


@pytest.mark.parametrize("number", [1, 4])
def test_each_of_several_networks_has_the_average_of_one_alone(number):
    """A weight that rises by one at its own step lags behind by d/(1 − d) of these, after the ramp: 9 for 0.9."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = WeightAverage(module, 0.9, number)
    for step in range(300 * number):
        if step % number == 0:
            with torch.no_grad():
                module.weight += 1.0
        average.update(1 - average.decay_at(step))
    assert module.weight.item() - average.tensors["weight"].item() == pytest.approx(9.0, abs=1e-3)


def test_the_average_takes_the_place_of_the_weights_for_a_while():
    module = torch.nn.BatchNorm1d(2)
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
    module.num_batches_tracked.fill_(7)
    average.update(0.25)  # from one to three
    assert average.tensors["weight"].tolist() == [1.5, 1.5]
    assert average.tensors["num_batches_tracked"] == 7  # a count has no average

    def fail():
        with average.in_place():
            assert module.weight.tolist() == [1.5, 1.5]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert module.weight.tolist() == [3.0, 3.0]
    assert average.tensors["weight"].tolist() == [1.5, 1.5]


def test_every_epoch_has_its_own_order_and_all_rows(tmp_path):
    trainer = started(tmp_path)
    calls = spied(trainer)
    trainer.fit()
    half = len(calls) // 2
    first, second = (torch.cat([rows for rows, _, _ in part]) for part in (calls[:half], calls[half:]))
    train = load("digits").train.flatten(1)
    assert first.shape == second.shape == train.shape
    assert not torch.equal(first, second)

    def lexicographic(rows):
        return sorted(map(bytes, rows.flatten(1).numpy().astype(np.uint8)))

    assert lexicographic(first) == lexicographic(second) == lexicographic(train)
    # Neither is the order in the file, and the seed is part of the order.
    assert not torch.equal(first.flatten(1), train)
    other = started(tmp_path / "other", seed=1)
    calls = spied(other)
    other.fit(until=1)
    assert not torch.equal(calls[0][0], first[:400])


def test_the_output_bias_is_the_logit_of_the_mean_training_image(tmp_path):
    trainer = started(tmp_path)
    data = load("digits")

    def logit_of_mean(rows):
        mean = np.clip(rows.flatten(1).numpy().astype(np.float64).mean(0) / 16, 1e-3, 1 - 1e-3)  # grey values 0 … 16
        return np.log(mean) - np.log1p(-mean)

    bias = trainer.module.model.logits.bias.detach().numpy()
    np.testing.assert_allclose(bias, logit_of_mean(data.train), atol=1e-4)
    assert np.abs(bias - logit_of_mean(data.test)).max() > 0.05  # else the test above could not tell the splits apart


@pytest.mark.parametrize("how", ["until", "signal"])
def test_stopping_at_the_end_of_an_epoch_leaves_a_checkpoint_of_it(tmp_path, how):
    """Where epochs of milliseconds share a checkpoint too."""
    trainer = started(tmp_path)
    if how == "until":
        trainer.fit(until=trainer.steps_per_epoch)
    else:
        inner = trainer.end_epoch

        def end_epoch(bar):
            os.kill(os.getpid(), signal.SIGTERM)
            inner(bar)

        trainer.end_epoch = end_epoch
        with pytest.raises(TrainingInterrupted):
            trainer.fit()
    state = load_tensors(trainer.run.folder / "checkpoint.safetensors")[1]
    assert state["step"] == trainer.steps_per_epoch


@pytest.mark.parametrize("captured", [False, True])
def test_the_weights_decay_by_the_learning_rate_times_the_decay(tmp_path, captured):
    """A weight that no gradient moves: 1 (1 − 0.1 · 0.5)² after two steps at the rate 0.1."""
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "schedule": "constant", "cuda_graph": captured}
    trainer = trainer_for(Run.create(tmp_path / "run", replace(SMALL, **settings)), progress=False)
    trainer.start()
    weight = trainer.module.model.logits.weight
    with torch.no_grad():
        weight.fill_(1.0)
    weight.register_hook(torch.zeros_like)
    trainer.fit(until=2)
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.95**2))


@pytest.mark.parametrize(("objective", "bound"), [("elbo", elbo_bound), ("stl", elbo_bound), ("iwae", iwae_bound)])
def test_validation_is_by_the_bound_that_is_trained(tmp_path, objective, bound):
    """Weights trained by IWAE would never be chosen by the ELBO, which falls while the likelihood rises."""
    trainer = started(tmp_path, objective=objective, valid_particles=7)
    trainer.module.eval()
    torch.manual_seed(3)
    found = trainer.task.validate()
    torch.manual_seed(3)
    with torch.no_grad():
        parts = [bound(trainer.module.log_weight_terms(rows, 7)) for rows in trainer.task.valid_rows.split(1000)]
    assert found == pytest.approx(-float(torch.cat(parts).double().mean()), rel=1e-6)
