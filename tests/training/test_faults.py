"""Faults: damaged, missing and implausible checkpoints, divergence, and two processes in one folder."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.kill_log import kill_log
from vi_flows.cli import main
from vi_flows.training import Run, RunError, Trainer, TrainingDivergedError, VAETrainConfig
from vi_flows.training.checkpoint import CheckpointError, Checkpoints, load_tensors, save_tensors
from vi_flows.training.errors import RunUnusableError
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETask
from vi_flows.vae import VAEConfig

SMALL = VAETrainConfig(
    vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=2, batch_size=400, threads=1, checkpoint_seconds=1e9
)


def started(folder, config=SMALL):
    trainer = Trainer(Run.create(folder, config), progress=False)
    trainer.start()
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "run"
    trainer = started(folder)
    trainer.fit(until=2)  # of 6: a checkpoint before the last
    trainer.fit()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def resume(folder):
    trainer = Trainer(Run.open(folder), progress=False)
    trainer.resume()
    return trainer


def rewrite(folder, change):
    path = folder / "checkpoint.safetensors"
    tensors, state = load_tensors(path)
    change(tensors, state)
    save_tensors(path, tensors, state)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", ["checkpoint", "best", "last"])
def test_a_flipped_bit_is_noticed(folder, name, share):
    path = folder / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError if name == "checkpoint" else RunError, match=f"{name}.safetensors is damaged"):
        resume(folder) if name == "checkpoint" else evaluate_run(Run.open(folder), weights=name, progress=False)


def test_every_flipped_bit_of_the_header_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)}, {"step": 1})
    content, expected = path.read_bytes(), load_tensors(path)
    for index in range(len(content) * 8):
        changed = bytearray(content)
        changed[index // 8] ^= 1 << index % 8
        path.write_bytes(changed)
        try:
            tensors, state = load_tensors(path)
        except CheckpointError:
            continue
        assert state == expected[1]  # only bits that mean nothing may pass, such as padding
        assert all(torch.equal(tensors[name], expected[0][name]) for name in expected[0])


def test_a_file_of_before_the_checksum_is_read(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors", metadata={"state": '{"step": 1}'})
    assert load_tensors(tmp_path / "a.safetensors")[1] == {"step": 1}


CHANGES = {
    "step -5": lambda tensors, state: state.update(step=-5),
    "step 1000000000": lambda tensors, state: state.update(step=10**9),
    "step 1.5": lambda tensors, state: state.update(step=1.5),
    "no step": lambda tensors, state: state.pop("step"),
    "no rng.cpu": lambda tensors, state: tensors.pop("rng.cpu"),
    "NaN": lambda tensors, state: next(v for k, v in tensors.items() if k.startswith("model.")).fill_(math.nan),
}


@pytest.mark.parametrize("message", CHANGES)
def test_an_implausible_checkpoint_is_refused(folder, message):
    rewrite(folder, CHANGES[message])
    with pytest.raises(CheckpointError, match=message):
        resume(folder)


def test_a_lost_checkpoint_does_not_start_over(folder):
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*metrics.jsonl.*step 2, is whole"):
        resume(folder)
    for name in ("metrics.jsonl", "best.safetensors"):
        (folder / name).rename(folder / f"{name}.away")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*previous.safetensors"):
        resume(folder)
    (folder / "checkpoint.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a file"):
        resume(folder)
    with pytest.raises(OSError, match="can't be replaced by"):
        Run.open(folder).checkpoints.go_back()


def weights_of(folder):
    found = {name: load_tensors(folder / f"{name}.safetensors")[0] for name in ("checkpoint", "best", "last")}
    return {f"{file}:{name}": tensor for file, tensors in found.items() for name, tensor in tensors.items()}


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_a_damaged_checkpoint_offers_the_one_before_which_ends_in_the_same_weights(folder, trained, how, capsys):
    path = folder / "checkpoint.safetensors"
    assert load_tensors(folder / "previous.safetensors")[1]["step"] == 2
    if how == "lost":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content if how == "flipped" else content[:-1])
    assert command("train", "--resume", folder, "--quiet") == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert f"step 2, is whole: vi-flows train --resume {folder} --previous" in said
    assert command("train", "--resume", folder, "--quiet", "--previous") == 0
    assert "going on from step 2, the checkpoint before the last" in capsys.readouterr().out
    mine, theirs = weights_of(folder), weights_of(trained)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    lines = [(place / "metrics.jsonl").read_text().splitlines() for place in (folder, trained)]
    losses = [[json.loads(line)["valid_loss"] for line in each] for each in lines]
    assert losses[0] == losses[1]


def test_without_a_whole_checkpoint_the_weights_are_offered(folder, capsys):
    for name in ("checkpoint", "previous"):
        (folder / f"{name}.safetensors").write_bytes(b"damaged")
    assert command("train", "--resume", folder, "--quiet") == 1
    assert f"best.safetensors is whole: vi-flows train vae --from {folder} --out NEW" in capsys.readouterr().err
    assert command("train", "--resume", folder, "--quiet", "--previous") == 1
    assert "no previous checkpoint to go back to" in capsys.readouterr().err
    assert (folder / "checkpoint.safetensors").read_bytes() == b"damaged"


def test_damaged_weights_offer_the_others(folder):
    (folder / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="--weights last takes them"):
        evaluate_run(Run.open(folder), progress=False)
    (folder / "last.safetensors").unlink()
    with pytest.raises(RunError, match="train the run again in another folder"):
        evaluate_run(Run.open(folder), progress=False)


def test_the_previous_checkpoint_is_the_one_before(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in range(3):
        kept.write({"a": torch.full((3,), float(step))}, {"step": step})
        found = [load_tensors(path)[1]["step"] for path in (kept.newest, kept.previous) if path.exists()]
        assert found == ([0] if step == 0 else [step, step - 1])
    assert kept.go_back() == 1
    assert load_tensors(kept.newest)[0]["a"].tolist() == [1.0, 1.0, 1.0]
    assert not kept.previous.exists()
    kept.write({"a": torch.zeros(1)}, {"step": 7})
    assert kept.previous_step() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "previous.safetensors"]


def test_without_hard_links_the_previous_checkpoint_is_a_copy(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    kept = Checkpoints(tmp_path)
    for step in range(3):
        kept.write({"a": torch.full((3,), float(step))}, {"step": step})
    assert load_tensors(kept.previous)[0]["a"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("room", "files"), [(10**9, 3), (10, 2)])
def test_where_the_disk_is_nearly_full_the_oldest_goes_first(tmp_path, monkeypatch, room, files):
    kept = Checkpoints(tmp_path)
    for step in range(2):
        kept.write({"a": torch.full((3,), float(step))}, {"step": step})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=room))

    def full(handle):  # the new one is on the disk, and has no name yet
        assert len({path.stat().st_ino for path in tmp_path.iterdir()}) == files
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write({"a": torch.zeros(3)}, {"step": 2})
    assert load_tensors(kept.newest)[1]["step"] == 1
    assert kept.previous_step() == (0 if files == 3 else 1)


@pytest.mark.parametrize("line", ["3", "[]", '{"epoch": 1}'])
def test_foreign_lines_of_metrics_are_refused(folder, line):
    (folder / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        resume(folder)


def test_a_nan_validation_is_never_the_best(tmp_path, monkeypatch):
    trainer = started(tmp_path / "run")
    losses = iter([math.nan, 5.0])
    monkeypatch.setattr(trainer.task, "validate", lambda: next(losses))
    assert trainer.fit()["best"] == {"epoch": 2, "valid_loss": 5.0}
    assert load_tensors(tmp_path / "run" / "best.safetensors")[1]["epoch"] == 2


def test_a_nan_validation_does_not_replace_the_best(tmp_path, monkeypatch):
    trainer = started(tmp_path / "run")
    losses = iter([5.0, math.nan])
    monkeypatch.setattr(trainer.task, "validate", lambda: next(losses))
    assert trainer.fit()["best"] == {"epoch": 1, "valid_loss": 5.0}
    assert load_tensors(tmp_path / "run" / "best.safetensors")[1]["epoch"] == 1


def test_without_a_finite_validation_there_is_no_best(tmp_path, monkeypatch):
    trainer = started(tmp_path / "run")
    monkeypatch.setattr(trainer.task, "validate", lambda: math.nan)
    assert trainer.fit()["best"] is None
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_end_of_a_run_without_a_finite_validation_says_which_weights_there_are(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    started(run).save()
    monkeypatch.setattr(VAETask, "validate", lambda task: math.nan)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--resume", str(run), "--quiet"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert re.search(rf"no validation loss was finite.*\nnext: vi-flows evaluate {run} --weights last\n", said)
    with pytest.raises(RunUnusableError, match=r"no validation loss of the run was finite: --weights last"):
        evaluate_run(Run.open(run), VAEEvaluationSettings(num_samples=1), progress=False)
    record, _ = evaluate_run(
        Run.open(run), VAEEvaluationSettings(num_samples=1, limit=20), weights="last", progress=False
    )
    assert math.isfinite(record.figures["nll"])


def test_weights_that_overflow_are_not_saved(tmp_path, monkeypatch):
    trainer = started(tmp_path / "run")
    step = trainer.optimizer.step

    def overflow():
        step()
        with torch.no_grad():
            trainer.parameters[0].fill_(math.inf)

    monkeypatch.setattr(trainer.optimizer, "step", overflow)
    with pytest.raises(TrainingDivergedError, match="is not finite"):
        trainer.fit(until=1)
    assert resume(tmp_path / "run").state["step"] == 0


HOLD = """
import sys, time
from pathlib import Path
from vi_flows.training import Run
with Run.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(folder):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another process"):
        resume(folder).fit()
    other.kill()
    other.wait()
    other.stdout.close()
    assert resume(folder).fit()["finished"]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2


def test_a_run_that_somebody_only_looks_at_is_waited_for(folder, monkeypatch):
    """Twenty tries, a hundredth of a second apart."""
    waited = []
    monkeypatch.setattr("vi_flows.locks.time.sleep", waited.append)
    monkeypatch.setattr("vi_flows.locks._try_lock", lambda handle, kind: len(waited) == 19)
    with Run.open(folder).locked():
        assert waited == [0.01] * 19
    monkeypatch.setattr("vi_flows.locks._try_lock", lambda handle, kind: False)
    waited.clear()
    with pytest.raises(RunError, match="wait for it, or stop it"), Run.open(folder).locked():
        pass
    assert len(waited) == 20


def test_cpu_seconds_add_up_over_stops_and_stay_unknown_where_they_were_not_counted(tmp_path):
    trainer = started(tmp_path / "run")
    before = trainer.fit(until=2)["cpu_seconds"]
    assert before > 0
    again = resume(tmp_path / "run")
    assert again.fit(until=4)["cpu_seconds"] > before
    rewrite(tmp_path / "run", lambda tensors, state: state.pop("cpu_seconds"))
    old = resume(tmp_path / "run")
    assert old.fit()["cpu_seconds"] is None
    record, _ = evaluate_run(old.run, VAEEvaluationSettings(limit=5, num_samples=5), progress=False)
    assert record.provenance["training_cpu_seconds"] is None


def test_parts_of_files_that_a_killed_process_left_are_no_obstacle_and_are_cleaned(tmp_path, folder):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json.tmp").write_text('{"kind": "v')
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path / "new")
    Run.create(tmp_path / "new", SMALL)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
    (folder / "checkpoint.safetensors.tmp").write_bytes(b"half")
    resume(folder).fit()
    assert not list(folder.glob("*.tmp"))


TERMINATE = """
import signal
from vi_flows.cli import info, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
info.environment = lambda: signal.raise_signal(signal.{name})  # in this thread, so at once
main(["info"])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_outside_of_training_say_so(name, code):
    ended = subprocess.run([sys.executable, "-c", TERMINATE.format(name=name)], capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.startswith("vi-flows: stopped")
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_five_kills_lose_nothing(tmp_path):
    log = kill_log(5, 1, tmp_path, ("checkpoint",))
    assert len(log) == 5
    assert all(row["equal"] and not row["left_at_the_end"] for row in log)
