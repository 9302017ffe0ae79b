"""The training loop: resumption to the bit, divergence, averages, schedules, records."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from vi_flows.data import load
from vi_flows.flows import ConvFlow
from vi_flows.records import Record, RecordExistsError
from vi_flows.training import Run, RunError, Trainer, TrainingDivergedError, VAETrainConfig
from vi_flows.training.checkpoint import CheckpointError, load_tensors, save_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.base import EvaluationSettings
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import VAEConfig

SAMPLES = VAEEvaluationSettings(num_samples=200)

SMALL = VAETrainConfig(
    vae=VAEConfig(latent_dims=(4,), hidden_dims=((16,),), flow=ConvFlow(kernel_size=3), batch_norm=True),
    epochs=2, batch_size=200, threads=1, ema_decay=0.9, checkpoint_seconds=1e9,
)  # fmt: skip


def trainer_of(folder, config=SMALL):
    trainer = Trainer(Run.create(folder, config), progress=False)
    trainer.start()
    return trainer


def weights(folder, name="last"):
    return load_tensors(folder / f"{name}.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer_of(folder).fit()
    return folder


def test_training_improves_and_logs(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["step"] == 2 * math.ceil(len(load("digits").train) / 200)
    assert lines[-1]["train_bound"] > lines[0]["train_bound"]
    state = load_tensors(finished / "checkpoint.safetensors")[1]
    assert state["finished"]
    assert state["best"]["valid_loss"] == min(line["valid_loss"] for line in lines)


@pytest.mark.parametrize("stop_after", [0, 3, 7, 9])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(finished, tmp_path, stop_after):
    """Weights, average, optimizer, best weights and metrics: all as if nothing had happened."""
    part = trainer_of(tmp_path / "run")
    steps = 0

    class StopError(Exception):
        pass

    inner = part.take_step

    def counted(rows):
        nonlocal steps
        if steps == stop_after:
            raise StopError
        steps += 1
        bound = inner(rows)
        if steps == max(stop_after - 3, 1):  # older than the last step, and than the end of the epoch of 7
            part.save()
        return bound

    part.take_step = counted
    with pytest.raises(StopError):
        part.fit()
    torch.manual_seed(123)  # whatever the process did in between must not matter
    again = Trainer(Run.open(tmp_path / "run"), progress=False)
    again.resume()
    again.fit()
    for name in ("last", "best"):
        assert same(weights(tmp_path / "run", name), weights(finished, name))
    mine, whole = (load_tensors(f / "checkpoint.safetensors") for f in (tmp_path / "run", finished))
    assert same(mine[0], whole[0])
    strip = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "run" / "metrics.jsonl", finished / "metrics.jsonl")
    ]
    assert strip[0] == strip[1]


NEW = (
    "vae", "--latent-dims", "8", "--epochs", "15", "--batch-size", "50", "--threads", "1", "--no-amortized",
    "--checkpoint-seconds", "0.2", "--quiet", "--out",
)  # fmt: skip


def start_process(*words):
    command = [sys.executable, "-c", "from vi_flows.cli import main; main()", "train", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_epochs(folder, count, process):
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_and_interrupted_processes_resume_to_the_same_bits(tmp_path):
    vae = VAEConfig(latent_dims=(8,), flow=ConvFlow(), amortized=False)
    trainer_of(tmp_path / "whole", VAETrainConfig(vae=vae, epochs=15, batch_size=50, threads=1)).fit()
    killed = start_process(*NEW, tmp_path / "killed", "conv_flow")
    wait_for_epochs(tmp_path / "killed", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = start_process("--resume", tmp_path / "killed", "--quiet")
    wait_for_epochs(tmp_path / "killed", 4, resumed)
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(60) == 130
    assert f"up to date: vi-flows train --resume {tmp_path / 'killed'} goes on" in resumed.stderr.read()
    last = start_process("--resume", tmp_path / "killed", "--quiet")
    assert last.wait(300) == 0, last.stderr.read()
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert same(weights(tmp_path / "killed", "best"), weights(tmp_path / "whole", "best"))


def test_divergence_stops_before_the_update(tmp_path):
    trainer = trainer_of(tmp_path / "run", replace(SMALL, ema_decay=None))
    trainer.take_step(torch.arange(50))
    trainer.save()
    with torch.no_grad():
        trainer.module.model.logits.weight[0, 0] = math.nan
    before = {n: p.clone() for n, p in trainer.module.named_parameters()}
    with pytest.raises(TrainingDivergedError, match=r"step 1 .*checkpoint\.safetensors.*--learning-rate"):
        trainer.fit()
    for name, parameter in trainer.module.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())
    saved, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in saved.items() if name.startswith("model."))


def test_infinite_gradients_stop_too(tmp_path):
    trainer = trainer_of(tmp_path / "run", replace(SMALL, ema_decay=None))
    trainer.parameters[0].register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingDivergedError, match="gradient norm"):
        trainer.fit()


def test_average_is_what_is_validated_and_saved(finished):
    tensors, _ = load_tensors(finished / "checkpoint.safetensors")
    last = weights(finished)
    assert all(torch.equal(last[name], tensors[f"ema.{name}"]) for name in last)
    assert any(not torch.equal(last[name], tensors[f"model.{name}"]) for name in last)


def test_seeds_matter_and_repeat(finished, tmp_path):
    trainer_of(tmp_path / "same").fit()
    trainer_of(tmp_path / "other", replace(SMALL, seed=1)).fit()
    assert same(weights(tmp_path / "same"), weights(finished))
    assert not same(weights(tmp_path / "other"), weights(finished))


def test_protocols(tmp_path):
    trainer = trainer_of(tmp_path / "paper", replace(SMALL, protocol="paper", epochs=1, ema_decay=None))
    assert trainer.rows == 1497
    trainer.fit()
    assert not (tmp_path / "paper" / "best.safetensors").exists()
    record, _ = evaluate_run(
        Run.open(tmp_path / "paper"), VAEEvaluationSettings(limit=10, num_samples=20), progress=False
    )
    assert record.settings["evaluation"]["weights"] == "last"
    assert record.settings["protocol"] == "paper"
    with pytest.raises(RunError, match="no valid images"):
        evaluate_run(Run.open(tmp_path / "paper"), VAEEvaluationSettings(split="valid"), progress=False)
    with pytest.raises(ValueError, match="kind vae is evaluated by VAEEvaluationSettings, got EvaluationSettings"):
        evaluate_run(Run.open(tmp_path / "paper"), EvaluationSettings(), progress=False)


def test_evaluation_writes_a_complete_record_and_repeats_to_the_bit(finished):
    run = Run.open(finished)
    record, path = evaluate_run(run, SAMPLES, progress=False, paper_row="k4")
    assert (record.kind, record.key, record.paper_row) == ("vae", run.config.key, "k4")
    assert set(["dataset", "protocol", "vae", "seed", "epochs", "evaluation"]) <= set(record.settings)
    needed = "revision trained_at_revision data_sha256 torch device threads date seconds cpu_seconds"
    assert {*needed.split(), "training_seconds", "training_cpu_seconds"} <= set(record.provenance)
    figures = record.figures
    assert figures["num_rows"] == 300
    assert figures["interval"][0] < figures["nll"] < figures["interval"][1]
    assert figures["nll"] < -figures["elbo"]
    assert figures["steps"] == figures["epoch_of_weights"] * math.ceil(len(load("digits").train) / 200)
    read = Record.read(path)
    assert read.to_dict() == json.loads(json.dumps(record.to_dict()))
    assert read.scores["nll"].shape == (300,)
    assert read.scores["nll"].mean() == pytest.approx(figures["nll"], rel=1e-5)
    assert read.scores["elbo"].mean() == pytest.approx(figures["elbo"], rel=1e-5)
    with pytest.raises(RecordExistsError, match="--overwrite"):
        evaluate_run(run, SAMPLES, progress=False)
    again, _ = evaluate_run(run, SAMPLES, overwrite=True, progress=False)
    assert again.figures["nll"] == figures["nll"]
    assert (again.scores["nll"] == read.scores["nll"]).all()


def test_runs_are_not_overwritten_nor_changed(finished):
    with pytest.raises(RunError, match="--resume"):
        Run.create(finished, SMALL)
    (finished.parent / "stranger").mkdir()
    (finished.parent / "stranger" / "file").write_text("mine")
    with pytest.raises(RunError, match="not an empty folder"):
        Run.create(finished.parent / "stranger", SMALL)
    with pytest.raises(RunError, match="holds no run"):
        Run.open(finished.parent / "nothing")


def test_damaged_checkpoints_are_refused(finished, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_tensors(path)
    whole = (finished / "checkpoint.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"step": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"a": torch.zeros(3)}, {"step": 2})
    tensors, state = load_tensors(path)
    assert state == {"step": 1}
    assert torch.equal(tensors["a"], torch.ones(3))


def test_schedules():
    constant, cosine, step = (VAETrainConfig(schedule=s, learning_rate=1.0) for s in ("constant", "cosine", "step"))
    assert [constant.learning_rate_at(s, 100) for s in (0, 50, 99)] == [1.0] * 3
    assert cosine.learning_rate_at(0, 100) == 1.0
    assert cosine.learning_rate_at(50, 100) == pytest.approx(0.5)
    assert [step.learning_rate_at(s, 100) for s in (49, 50, 75)] == pytest.approx([1.0, 0.1, 0.01])
    assert replace(constant, lr_warmup_steps=10).learning_rate_at(4, 100) == pytest.approx(0.5)
    warm = VAETrainConfig(kl_warmup_epochs=10)
    assert [warm.kl_weight_at(e) for e in (0, 5, 10, 20)] == pytest.approx([0, 0.5, 1, 1])


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"ema_decay": 1.0}, {"clip_norm": 0.0}, {"threads": 0}],
)
def test_bad_settings_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SMALL, **changes)


def test_iwae_and_warmup_train(tmp_path):
    config = replace(
        SMALL, epochs=5, objective="iwae", num_particles=5, kl_warmup_epochs=1.0, clip_norm=50.0, lr_warmup_steps=5
    )
    trainer_of(tmp_path / "run", config).fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_bound"] > lines[0]["train_bound"]
