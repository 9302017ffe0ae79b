"""The runner in a process of its own: stopped by signals, its processes killed; the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vi_flows.cli import main
from vi_flows.table.claim import is_held, last_note
from vi_flows.training import Run
from vi_flows.training.checkpoint import load_tensors


def begin(place, epochs="4000", **how):
    """The command in a process of its own, once a run of it is in training."""
    words = [
        "table", "run", "--rows", "digits-g1-plain-clean", "--seeds", "0", "1", "--processes", "2", "--epochs", epochs,
        "--num-samples", "5", "--runs", str(place.runs), "--results", str(place.results),
    ]  # fmt: skip
    code = "from vi_flows.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )
    metrics = [place.runs / f"digits-g1-plain-clean-e{epochs}-s{seed}" / "metrics.jsonl" for seed in (0, 1)]
    while not all(path.exists() for path in metrics):
        assert process.poll() is None
        time.sleep(0.05)
    return process, metrics


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_it_stops_cleanly_and_goes_on(place, number, capfd):
    process, metrics = begin(place)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the same command goes on" in complaint
    for seed, path in enumerate(metrics):
        run = Run.open(path.parent)
        assert last_note(place.runs, path.parent.name)["state"] == "stopped"
        assert not is_held(place.runs, path.parent.name)
        step = load_tensors(path.parent / "checkpoint.safetensors")[1]["step"]
        assert step >= len(path.read_text().splitlines()) * 3  # of three minibatches an epoch: no finished one is lost
        assert run.config.seed == seed
    with pytest.raises(SystemExit) as ended:
        main(["table", "status", "--rows", "digits-g1-plain-clean", "--seeds", "0", "1", "--epochs", "4000",
              "--runs", str(place.runs), "--results", str(place.results)])  # fmt: skip
    assert ended.value.code == 0
    assert "2 stopped" in capfd.readouterr().out


def test_a_signal_to_the_whole_group_is_a_stop_and_no_failure(place):
    """As `timeout` sends it: the runner waits until every run has its checkpoint."""
    process, metrics = begin(place, start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    printed, complaint = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "failed" not in printed
    assert "the same command goes on" in complaint
    for path in metrics:
        assert last_note(place.runs, path.parent.name)["state"] == "stopped"
        assert not is_held(place.runs, path.parent.name)


@pytest.mark.slow
def test_the_processes_stop_when_their_runner_is_killed(place):
    process, metrics = begin(place)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while any(is_held(place.runs, path.parent.name) for path in metrics) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [last_note(place.runs, path.parent.name)["state"] for path in metrics] == ["stopped", "stopped"]


@pytest.mark.slow
def test_a_run_whose_process_is_killed_is_reported(place):
    process, metrics = begin(place)
    os.kill(last_note(place.runs, metrics[0].parent.name)["pid"], signal.SIGKILL)
    while is_held(place.runs, metrics[0].parent.name):
        time.sleep(0.05)
    assert process.poll() is None  # the other run goes on
    process.terminate()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"{metrics[0].parent.name}: failed: its process was ended by SIGKILL" in printed
    assert not is_held(place.runs, metrics[1].parent.name)


def test_a_signal_while_the_first_process_starts_is_not_lost(place):
    """Starting it waits for the server's imports, which take seconds."""
    words = [
        "table", "run", "--rows", "digits-g1-plain-clean", "--seeds", "0", "--processes", "1", "--epochs", "4000",
        "--num-samples", "5", "--runs", str(place.runs), "--results", str(place.results),
    ]  # fmt: skip
    code = (
        "import os, signal\n"
        "from multiprocessing.context import ForkServerProcess\n"
        "from vi_flows.cli import main\n"
        "start = ForkServerProcess.start\n"
        "def starting(self):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    start(self)\n"
        "ForkServerProcess.start = starting\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, complaint
    assert "the same command goes on" in complaint
