"""Shards as jobs of submitit: its executor for debugging does them here, one for Slurm gets what a job needs."""

from __future__ import annotations

import pickle
import sys
from contextlib import contextmanager

import pytest

from vi_flows.cli import main
from vi_flows.table import Machine, Selection, Workplace
from vi_flows.table.submit import Cluster, Shard, submit_shards

submitit = pytest.importorskip("submitit")


def words(place, *more):
    return [
        "table", "submit", "--rows", "digits-g1-plain-clean", "--epochs", "1", "--num-samples", "5", "--runs",
        str(place / "runs"), "--results", str(place / "results"), "--logs", str(place / "logs"), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_jobs_make_the_records_and_empty_shards_are_not_sent(tmp_path, capsys, cluster):
    with pytest.raises(SystemExit) as stopped:
        main(words(tmp_path, "--seeds", "0", "1", "--shards", "3", "--cluster", cluster, "--wait"))
    assert stopped.value.code == 0
    assert sorted(path.name for path in (tmp_path / "results").glob("*.json")) == [
        "digits-g1-plain-clean-e1-s0.json", "digits-g1-plain-clean-e1-s1.json",
    ]  # fmt: skip
    assert capsys.readouterr().out.count("job ") == 2


def test_a_failed_job_is_a_failure(tmp_path, capsys):
    (tmp_path / "runs" / "digits-g1-plain-clean-e1-s0").mkdir(parents=True)
    (tmp_path / "runs" / "digits-g1-plain-clean-e1-s0" / "something").touch()
    with pytest.raises(SystemExit) as stopped:
        main(words(tmp_path, "--shards", "1", "--cluster", "debug"))
    assert stopped.value.code == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, sent = {}, []

    class Executor:
        def __init__(self, folder, cluster):
            assert cluster == "slurm"

        def update_parameters(self, **parameters):
            asked.update(parameters)

        @contextmanager
        def batch(self):
            yield

        def submit(self, work):
            sent.append(work)
            return work

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    cluster = Cluster(2, "slurm", hours=1.5, memory_gb=3, partition="night")
    selection = Selection(rows=("digits-g1-plain-clean",), seeds=(0, 1, 2))
    submit_shards(selection, Workplace(), Machine(device="cuda"), 4, cluster)
    assert asked == {
        "name": "vi_flows", "timeout_min": 90, "mem_gb": 3, "cpus_per_task": 4, "gpus_per_node": 1,
        "slurm_partition": "night",
    }  # fmt: skip
    assert [[job.seed for job in shard.selection.jobs()] for shard in sent] == [[0, 2], [1]]
    assert sent[0].workplace.runs == tmp_path / "runs" / "table"


def test_a_job_that_is_taken_away_is_sent_again():
    shard = Shard(Selection(rows=("digits-g1-plain-clean",)), Workplace(), Machine(), 2)
    assert pickle.loads(pickle.dumps(shard)) == shard
    assert shard.checkpoint().function == shard


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--shards", "0"), 2, "shards must be at least 1"),
        (("--shards", "2", "--shard", "1/2"), 2, "table submit sends every shard"),
        (("--shards", "2", "--hours", "0"), 2, "hours must be positive"),
        ((), 2, "--shards"),
        (("--shards", "2", "--cluster", "cloud"), 2, "slurm"),
    ],
)
def test_refusals(tmp_path, capsys, more, code, message):
    with pytest.raises(SystemExit) as stopped:
        main(words(tmp_path, *more))
    assert stopped.value.code == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_without_submitit_it_is_said_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit) as stopped:
        main(words(tmp_path, "--shards", "2"))
    assert stopped.value.code == 1
    assert "pip install 'vi_flows[cluster]'" in capsys.readouterr().err
