"""Several processes train what one would train: `torchrun` with two, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from tests.data.speech_files import write_recordings
from tests.training.distributed_work import FLOAT32, FLOAT64, train_all
from vi_flows.parallel import ALONE, Divided, Ranks
from vi_flows.training.checkpoint import load_tensors

ROOT = Path(__file__).parents[2]


def torchrun(*words, processes=2, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def both(tmp_path, names):
    """The cases trained by two processes, and by one."""
    recordings = write_recordings(tmp_path / "speech")
    process = torchrun(Path(__file__).parent / "distributed_work.py", tmp_path / "two", recordings, *names)
    train_all(tmp_path / "one", recordings, ALONE, names)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return tmp_path / "one", tmp_path / "two"


def compare(one, two, tolerance):
    """Weights, averages, moments, running statistics and metrics; the generators are the same to the bit."""
    for name in ("checkpoint", "last", "best"):
        tensors, state = load_tensors(one / f"{name}.safetensors")
        others, other = load_tensors(two / f"{name}.safetensors")
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            if key == "rng.cpu":
                assert torch.equal(tensor, others[key])
            else:
                assert torch.allclose(tensor, others[key], rtol=tolerance, atol=tolerance), (one.name, name, key)
        assert state.get("best", {}).get("epoch") == other.get("best", {}).get("epoch")
    lines, others = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)
    )
    assert len(lines) == len(others) == 2
    for line, other in zip(lines, others, strict=True):
        for key in line.keys() - {"seconds"}:
            assert other[key] == pytest.approx(line[key], rel=tolerance), key


def test_two_processes_are_one_in_float64(tmp_path):
    """Adam's first steps divide gradients near zero by their own size, and their rounding errors with them."""
    one, two = both(tmp_path, ["vae", "glow"])
    for name in ("vae", "glow"):
        compare(one / name, two / name, 1e-8)
    # A NaN in one process: both leave the step out. The next one adds up their gradients, 1 and 2.
    assert json.loads((two / "nan.json").read_text()) == [[1, -0.5]] * 2


@pytest.mark.slow
def test_two_processes_are_one_in_every_kind(tmp_path):
    names = [*FLOAT64, *FLOAT32, "wave"]
    one, two = both(tmp_path, names)
    for name in names:
        compare(one / name, two / name, 1e-8 if name in FLOAT64 else 2e-3)


NEW = (
    "train", "vae", "--epochs", "40", "--latent-dims", "4", "--batch-size", "300", "--threads", "1", "--batch-norm",
    "--checkpoint-seconds", "1000", "--quiet", "--out",
)  # fmt: skip


def command(*words, processes=1):
    """`vi-flows` to its end: exit code and what it said."""
    if processes > 1:
        process = torchrun("-m", "vi_flows", *words, processes=processes)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err
    done = subprocess.run(
        [sys.executable, "-m", "vi_flows", *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def workers(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("who", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT), (1, signal.SIGKILL)])
def test_stopped_processes_go_on_in_another_number(tmp_path, who, number):
    assert command(*NEW, tmp_path / "whole")[0] == 0
    process = torchrun("-m", "vi_flows", *NEW, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(workers(process)[who], number)
    out, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert not out
    word = "another process of this run has ended" if number == signal.SIGKILL else "go on with --resume"
    assert err.count(word) == 1, err
    assert not list((tmp_path / "run").glob("*.tmp"))
    code, out, err = command("train", "--resume", tmp_path / "run", "--quiet", processes=3)
    assert code == 0, err
    assert out.count("steps in") == 1
    lines, others = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    )
    assert [line["step"] for line in others] == [line["step"] for line in lines]
    for line, other in zip(lines, others, strict=True):
        assert other["valid_loss"] == pytest.approx(line["valid_loss"], rel=1e-4)


@pytest.mark.slow
def test_refusals_are_told_once(tmp_path):
    assert command(*NEW, tmp_path / "run", "--epochs", 1)[0] == 0
    for words, expected in (
        ((*NEW, tmp_path / "run"), "holds a run already"),
        ((*NEW, tmp_path / "new", "--cuda-graph"), "CUDA graph"),
        ((*NEW, tmp_path / "new", "--epochs", "x"), "Error parsing --epochs"),
        ((*NEW, tmp_path / "new", "--device", "cuda:0"), "can't share --device cuda:0"),
        ((*NEW, tmp_path / "new", "--dataset", "none"), "none"),
        (("evaluate", tmp_path / "run"), "torchrun is for vi-flows train"),
    ):
        code, out, err = command(*words, processes=2)
        assert code == 1  # torchrun's own
        assert (out + err).count(expected) == 1, err
        assert not (tmp_path / "new").exists()


class Fake(Ranks):
    """One of several processes, without the others."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("rows", [2, 3, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_of_draws_are_the_whole_draw(rows, size):
    """Every way to draw that the models use; the generator goes on as after the whole draw."""

    def draws(n):
        like = torch.zeros(n, 2, 3, 3)
        return [
            torch.rand(n, 5), torch.randn(torch.Size((n, 20))), torch.randn(size=(n, 3), dtype=torch.float64),
            torch.rand_like(like), torch.rand_like(like.to(memory_format=torch.channels_last)),
            torch.nn.functional.dropout(torch.full((n, 40), 2.0), 0.3),
            torch.normal(torch.zeros(n, 17), torch.ones(n, 17)),
            dist.Normal(torch.zeros(n, 18), torch.full((n, 18), 3.0)).rsample(),
            dist.Logistic(torch.zeros(n, 18), 1.0).rsample(), torch.empty(n, 9).exponential_(2.0),
        ]  # fmt: skip

    torch.manual_seed(0)
    whole = draws(rows)
    after = torch.rand(1)
    parts = []
    for rank in range(size):
        torch.manual_seed(0)
        share = Divided(Fake(rank, size), rows, 0)
        with share:
            parts.append(draws(len(range(rows)[share.rows])))
        assert torch.equal(torch.rand(1), after)
    for expected, *found in zip(whole, *parts, strict=True):
        if rows < size:  # every process takes all
            assert all(torch.equal(expected, each) for each in found)
        else:
            assert torch.equal(expected, torch.cat(found))


def test_rows_are_found_from_the_end_too():
    torch.manual_seed(0)
    whole = torch.randn(3, 4, 5)
    torch.manual_seed(0)
    with Divided(Fake(1, 2), 4, -2):
        assert torch.equal(torch.randn(3, 2, 5), whole[:, 2:])


def test_what_cannot_be_divided_is_refused():
    p = torch.full((2, 3), 0.5)
    with Divided(Fake(0, 2), 4, 0):
        for draw in (lambda: torch.bernoulli(p), lambda: torch.randperm(4), lambda: torch.multinomial(p, 1)):
            with pytest.raises(ValueError, match="divided among processes"):
                draw()
        with pytest.raises(ValueError, match=r"\(3, 2\).*one process"):
            torch.randn(3, 2)
    with Divided(Fake(0, 2), 4, -2), pytest.raises(ValueError, match="dropout can't be divided"):
        torch.nn.functional.dropout(torch.ones(3, 2, 5), 0.5)  # the rows might be those of particles and images
