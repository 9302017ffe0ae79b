"""Many runs: how they are grouped, processes side by side, and the script of the VAE tables."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from tests.image.test_experiments import script
from vi_flows.records import Record
from vi_flows.training import ImageTrainConfig, Run, Trainer, VAETrainConfig
from vi_flows.training.side_by_side import is_finished, run_jobs, stacks_of, train_stack
from vi_flows.vae import VAEConfig

ROOT = Path(__file__).parents[2]
CONFIG = VAETrainConfig(vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=1, batch_size=500, threads=1)


def test_stacks_hold_runs_that_differ_in_their_seeds_and_are_level(tmp_path):
    make = iter(range(100))

    def run(**changes):
        return Run.create(tmp_path / str(next(make)), replace(CONFIG, **changes))

    a, b, c, d = (run(seed=seed) for seed in range(4))
    other = run(learning_rate=1e-2)
    images = [Run.create(tmp_path / f"image{seed}", ImageTrainConfig(seed=seed)) for seed in range(2)]
    started, done = run(seed=7), run(seed=8)
    for trainer, until in ((Trainer(started, progress=False), 1), (Trainer(done, progress=False), None)):
        trainer.start()
        trainer.fit(until)
    assert is_finished(done)
    assert not is_finished(started)
    everything = [a, other, b, images[0], started, c, done, images[1], d]
    assert stacks_of(everything, 3) == [[a, b, c], [d], [other], [images[0]], [started], [images[1]]]
    assert [len(stack) for stack in stacks_of(everything, 1)] == [1] * 8
    with pytest.raises(ValueError, match="at least 1"):
        stacks_of(everything, 0)


def test_train_stack(tmp_path):
    folders = [tmp_path / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        Run.create(folder, replace(CONFIG, seed=seed))
    assert [state["finished"] for state in train_stack(folders, progress=False)] == [True, True]
    (alone,) = train_stack(folders[:1], progress=False)  # finished already: nothing is left to do
    assert alone["finished"]


def reciprocal(number):
    return os.getpid(), 1 / number


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_go_on_when_one_fails(processes):
    results = {}
    with pytest.raises(ExceptionGroup, match="1 of 3") as caught:
        run_jobs(reciprocal, [(1,), (0,), (4,)], processes, lambda job, value: results.update({job: value}))
    assert caught.group_contains(ZeroDivisionError)
    assert {job: value[1] for job, value in results.items()} == {(1,): 1.0, (4,): 0.25}
    assert all((value[0] == os.getpid()) == (processes == 1) for value in results.values())
    with pytest.raises(ValueError, match="process"):
        run_jobs(reciprocal, [], 0)


def options(folder, *more):
    return [
        "--rows", "g1-plain", "--dataset", "digits", "--epochs", "1", "--batch-size", "500", "--num-samples", "10",
        "--runs", str(folder / "runs"), "--results", str(folder / "results"), "--quiet", *more,
    ]  # fmt: skip


def records_of(folder):
    return {path.stem: Record.read(path) for path in (folder / "results").glob("*.json")}


def test_the_table_script_stacks_seeds(tmp_path, capsys):
    module = script("vae_table")
    for attempt in range(2):
        tyro.cli(module.VAETable, args=options(tmp_path, "--seeds", "0", "1", "2", "--stack", "2")).run()
        assert capsys.readouterr().out.count("is there already") == 3 * attempt
    records = records_of(tmp_path)
    assert set(records) == {f"digits-g1-plain-clean-e1-s{seed}" for seed in range(3)}
    assert len({record.figures["nll"] for record in records.values()}) == 3
    tyro.cli(module.VAETable, args=options(tmp_path / "alone", "--seed", "1")).run()
    ((name, alone),) = records_of(tmp_path / "alone").items()
    assert records[name].figures["nll"] == pytest.approx(alone.figures["nll"], rel=1e-4)


@pytest.mark.slow
def test_the_table_script_trains_side_by_side(tmp_path):
    """Three seeds, two of them stacked, and two learning rates, in two processes."""
    more = ["--seeds", "0", "1", "2", "--learning-rates", "4e-3", "1e-3", "--stack", "2", "--jobs", "2"]
    command = [sys.executable, "experiments/vae_table.py", *options(tmp_path, *more)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert set(records) == {f"digits-g1-plain{rate}-clean-e1-s{seed}" for rate in ("", "-lr0.001") for seed in range(3)}
    assert len({record.figures["nll"] for record in records.values()}) == 6
    assert {record.settings["threads"] for record in records.values()} == {1}
