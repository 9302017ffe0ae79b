"""Stacked training: each run comes out as if it had been trained alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vi_flows.train import Run, TrainConfig, Trainer, TrainingDivergedError
from vi_flows.train.checkpoint import load_tensors
from vi_flows.train.evaluate import evaluate_run
from vi_flows.train.stacked import StackedTrainer
from vi_flows.train.stacked_layers import MemberStreams, stack_modules
from vi_flows.vae import VAEConfig, build_vae

TINY = VAEConfig(latent_dims=(4,), hidden_dims=((16,),), kernel_size=3)
KINDS = {
    "plain": TINY,
    "batch norm, global": replace(TINY, batch_norm=True, flow="global"),
    "amortised": replace(TINY, flow="amortized", flow_activation="tanh", amortize_weight=True),
    "full rank": replace(TINY, flow="amortized", flow_rank=None),
    "extra layers": replace(TINY, num_extra_layers=2, flow="amortized"),
    "g2": VAEConfig("g2", (3, 4), ((8,), (16,)), batch_norm=True, flow="global", kernel_size=2),
}
CONFIG = TrainConfig(vae=TINY, epochs=2, batch_size=200, threads=1, checkpoint_seconds=1e9)


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
        for key in left.keys() - {"seconds"}:
            assert left[key] == pytest.approx(right[key], rel=1e-4), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_stacked_run_is_the_run_alone(tmp_path, kind):
    config = replace(CONFIG, vae=KINDS[kind], ema_decay=0.9, kl_warmup_epochs=1.0, clip_norm=20.0)
    if kind == "plain":
        config = replace(config, objective="iwae", num_particles=3, ema_decay=None)
    stacked, single = runs_of(tmp_path / "stacked", config), runs_of(tmp_path / "alone", config)
    trainer = StackedTrainer(stacked, progress=False)
    trainer.start()
    trainer.fit()
    for run in single:
        alone(run)
    for mine, theirs in zip(stacked, single, strict=True):
        assert_close(mine, theirs)
        records = [evaluate_run(Run.open(run.folder), 20, limit=30, progress=False)[0] for run in (mine, theirs)]
        assert records[0]["nll"] == pytest.approx(records[1]["nll"], rel=1e-3)
        assert records[0]["seed"] == mine.config.seed
    first, second = (load_tensors(run.folder / "last.safetensors")[0] for run in stacked[:2])
    assert not any(torch.allclose(first[n], second[n]) for n in first if n.endswith("weight") and first[n].dim() == 2)
