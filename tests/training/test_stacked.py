"""Stacked training: each run comes out as if it had been trained alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vi_flows.flows import ConvFlow
from vi_flows.training import ImageTrainConfig, Run, Trainer, TrainingDivergedError, VAETrainConfig
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.stacked import StackedTrainer
from vi_flows.training.stacked_layers import MemberStreams, stack_modules
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import VAEConfig, build_vae

TINY = VAEConfig(latent_dims=(4,), hidden_dims=((16,),))
FLOW = ConvFlow(kernel_size=3)
KINDS = {
    "plain": TINY,
    "batch norm, global": replace(TINY, batch_norm=True, flow=FLOW, amortized=False),
    "amortised": replace(TINY, flow=replace(FLOW, activation="tanh", amortize_weight=True)),
    "full rank": replace(TINY, flow=replace(FLOW, rank=None)),
    "extra layers": replace(TINY, num_extra_layers=2, flow=FLOW),
    "g2": VAEConfig("g2", (3, 4), ((8,), (16,)), batch_norm=True, flow=ConvFlow(kernel_size=2), amortized=False),
}
CONFIG = VAETrainConfig(vae=TINY, epochs=2, batch_size=200, threads=1, checkpoint_seconds=1e9)


def runs_of(folder, config, seeds=(0, 1, 5)):
    return [Run.create(folder / f"s{seed}", replace(config, seed=seed)) for seed in seeds]


def alone(run):
    trainer = Trainer(run, progress=False)
    trainer.start()
    trainer.fit()


def assert_close(mine, theirs, tolerance=2e-3):
    """All that a run left behind, up to rounding."""
    for name in ("checkpoint", "best", "last"):
        a, b = (load_tensors(run.folder / f"{name}.safetensors") for run in (mine, theirs))
        assert a[0].keys() == b[0].keys()
        for key, tensor in a[0].items():
            if key == "rng.cpu":
                assert torch.equal(tensor, b[0][key])
            else:
                error = (tensor.double() - b[0][key].double()).abs().max()
                assert error <= tolerance * (1e-2 + b[0][key].double().abs().max()), (name, key)
    assert a[1]["epoch"] == b[1]["epoch"]
    lines = [
        [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in (mine, theirs)
    ]
    for left, right in zip(*lines, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds", "cpu_seconds"}:
            assert left[key] == pytest.approx(right[key], rel=1e-4), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_stacked_run_is_the_run_alone(tmp_path, kind):
    config = replace(CONFIG, vae=KINDS[kind], ema_decay=0.9, kl_warmup_epochs=1.0, clip_norm=20.0)
    if kind == "plain":
        config = replace(config, objective="dreg", particles_schedule=(1, 3), ema_decay=None)
    stacked, single = runs_of(tmp_path / "stacked", config), runs_of(tmp_path / "alone", config)
    trainer = StackedTrainer(stacked, progress=False)
    trainer.start()
    trainer.fit()
    for run in single:
        alone(run)
    for mine, theirs in zip(stacked, single, strict=True):
        assert_close(mine, theirs)
        settings = VAEEvaluationSettings(limit=30, num_samples=20)
        records = [evaluate_run(Run.open(run.folder), settings, progress=False)[0] for run in (mine, theirs)]
        assert records[0].figures["nll"] == pytest.approx(records[1].figures["nll"], rel=1e-3)
        assert records[0].settings["seed"] == mine.config.seed
    first, second = (load_tensors(run.folder / "last.safetensors")[0] for run in stacked[:2])
    assert not any(torch.allclose(first[n], second[n]) for n in first if n.endswith("weight") and first[n].dim() == 2)


@pytest.mark.parametrize("stop_after", [3, 9])
def test_a_stack_killed_while_it_saves_goes_on(tmp_path, stop_after):
    """The first member's checkpoint is newer than the others': all end as if nothing had happened."""
    stacked, single = runs_of(tmp_path / "stacked", CONFIG), runs_of(tmp_path / "alone", CONFIG)
    trainer = StackedTrainer(stacked, progress=False)
    trainer.start()
    saved = []

    class StopError(Exception):
        pass

    inner = trainer.take_step

    def counted(rows):
        bound = inner(rows)
        if trainer.state["step"] == 1:
            trainer.save()
        if trainer.state["step"] == stop_after:
            trainer._share_optimizer()
            with trainer._as_alone(0) as first:
                first.save()
            saved.append(first.state["step"])
            raise StopError
        return bound

    trainer.take_step = counted
    with pytest.raises(StopError):
        trainer.fit()
    torch.manual_seed(99)
    again = StackedTrainer([Run.open(run.folder) for run in stacked], progress=False)
    again.resume()
    assert [member.state["step"] for member in again.members] == saved * 3
    again.fit()
    for run in single:
        alone(run)
    for mine, theirs in zip(stacked, single, strict=True):
        assert_close(mine, theirs)


def test_a_member_of_a_stack_can_go_on_alone(tmp_path):
    config = replace(CONFIG, epochs=3)
    stacked, single = runs_of(tmp_path / "stacked", config, (2, 3)), runs_of(tmp_path / "alone", config, (2,))
    trainer = StackedTrainer(stacked, progress=False)
    trainer.start()
    trainer.fit(until=4)
    lonely = Trainer(Run.open(stacked[0].folder), progress=False)
    lonely.resume()
    lonely.fit()
    alone(single[0])
    assert_close(stacked[0], single[0])
    assert not (stacked[1].folder / "last.safetensors").exists()


def test_divergence_names_the_run_and_updates_nobody(tmp_path):
    trainer = StackedTrainer(runs_of(tmp_path, CONFIG), progress=False)
    trainer.start()
    with torch.no_grad():
        trainer.members[1].module.model.logits.weight[0, 0] = torch.nan
    before = [p.detach().nan_to_num(0.5) for p in trainer.parameters]
    with pytest.raises(TrainingDivergedError, match=r"step 0 .*s1.checkpoint\.safetensors"):
        trainer.fit()
    for old, new in zip(before, trainer.parameters, strict=True):
        assert torch.equal(old, new.nan_to_num(0.5))


def test_a_stack_speaks_for_its_first_run_and_ignores_where_the_data_lie(tmp_path):
    runs = [
        Run.create(tmp_path / str(n), replace(CONFIG, seed=n, data_root=root))
        for n, root in enumerate((None, tmp_path))
    ]
    trainer = StackedTrainer(runs, progress=False)
    assert trainer.run is runs[0]
    trainer.start()
    assert trainer.state["step"] == 0


def test_members_share_memory_with_their_stack():
    torch.manual_seed(0)
    vaes = [build_vae(KINDS["batch norm, global"], 12) for _ in range(3)]
    before = [{name: t.clone() for name, t in vae.state_dict().items()} for vae in vaes]
    stack = stack_modules(vaes)
    for name, tensor in stack.state_dict().items():
        for m, vae in enumerate(vaes):
            own = vae.state_dict()[name]
            assert torch.equal(own, before[m][name])
            assert own.data_ptr() == tensor[m].data_ptr()


def test_what_can_not_be_stacked(tmp_path):
    with pytest.raises(ValueError, match="nothing to stack"):
        stack_modules([])
    with pytest.raises(ValueError, match="architecture"):
        stack_modules([torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)])
    with pytest.raises(ValueError, match="Conv1d"):
        stack_modules([torch.nn.Conv1d(2, 3, 1), torch.nn.Conv1d(2, 3, 1)])
    with pytest.raises(ValueError, match="no run"):
        StackedTrainer([])
    one, other = (Run.create(tmp_path / str(n), replace(CONFIG, learning_rate=10.0**-n)) for n in (2, 3))
    with pytest.raises(ValueError, match="more than the seed"):
        StackedTrainer([one, other])
    with pytest.raises(ValueError, match="CUDA graph"):
        StackedTrainer([Run.create(tmp_path / "graph", replace(CONFIG, cuda_graph=True))])
    with pytest.raises(ValueError, match="of the kind image"):
        StackedTrainer([Run.create(tmp_path / "image", ImageTrainConfig())])


def test_streams_give_each_member_its_own_numbers():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    with MemberStreams(generators):
        drawn = torch.randn(5, 2, 7), torch.rand((2, 6), dtype=torch.float64)
        with pytest.raises(ValueError, match="2 members"):
            torch.randn(3)
        own = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert own.shape == (3,)
    for m, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(drawn[0][:, m], torch.randn(5, 7, generator=generator))
        assert torch.equal(drawn[1][m], torch.rand(6, generator=generator, dtype=torch.float64))
