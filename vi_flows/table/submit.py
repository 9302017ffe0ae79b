"""Shards of a list of runs as jobs of a cluster, by submitit (the extra ``cluster``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vi_flows.settings import Positive, PositiveFloat, check_settings
from vi_flows.table.job import Workplace
from vi_flows.table.plan import Selection
from vi_flows.table.runner import work_through
from vi_flows.table.vae_job import Machine

__all__ = ["Cluster", "Shard", "submit_shards"]


@dataclass(frozen=True)
class Cluster:
    """Where jobs are sent, and what each of them gets."""

    shards: Positive
    """Jobs to send; job i works through `table run --shard i/SHARDS`."""
    cluster: Literal["auto", "slurm", "local", "debug"] = "auto"
    """auto: Slurm where it is installed, else processes on this machine; debug: one after the other in this process."""
    logs: Path = Path("runs/jobs")
    """Folder of submitit's files, on a disk that the jobs share: what each job has printed."""
    hours: PositiveFloat = 24.0
    """Time limit of a job; one that Slurm stops is sent again and goes on from its checkpoints."""
    memory_gb: Positive = 8
    """Memory of a job."""
    partition: str = ""
    """Slurm's partition; empty for its default."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Shard:
    """The work of one job, which can be pickled: the runs of one shard.

    Attributes:
        selection: with its shard.
        workplace: on a disk that the jobs share, or one of the job's own.
        machine: what computes.
        processes: runs at a time.
    """

    selection: Selection
    workplace: Workplace
    machine: Machine
    processes: int

    def __call__(self) -> int:
        """Work through it; an exit code, see :func:`~vi_flows.table.work_through`."""
        return work_through(self.selection.jobs(), self.workplace, self.machine, self.processes)

    def checkpoint(self) -> Any:
        """What submitit sends again where the cluster takes the machine away: the same, which goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit_shards(
    selection: Selection, workplace: Workplace, machine: Machine, processes: int, cluster: Cluster
) -> Sequence[Any]:
    """Send the shards of a list; returns submitit's jobs.

    Args:
        selection: which runs; its shard must be the whole.
        workplace: where runs and records go, seen from the jobs.
        machine: what computes; a GPU a job where its device is one.
        processes: runs at a time in each job, a core each.
        cluster: where to.

    Raises:
        ImportError: submitit is not installed.
        ValueError: a shard is named already, or nothing is selected.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("submitit is not installed; pip install 'vi_flows[cluster]'") from error
    if selection.shard != "1/1":
        raise ValueError(f"--shard {selection.shard} is for table run; table submit sends every shard")
    shards = [replace(selection, shard=f"{number}/{cluster.shards}") for number in range(1, cluster.shards + 1)]
    shards = [shard for shard in shards if shard.jobs()]  # fewer runs than shards leave some empty
    executor = submitit.AutoExecutor(cluster.logs, cluster=None if cluster.cluster == "auto" else cluster.cluster)
    executor.update_parameters(
        name="vi_flows", timeout_min=round(60 * cluster.hours), mem_gb=cluster.memory_gb, cpus_per_task=processes,
        gpus_per_node=int(machine.device.startswith("cuda")),
        **({"slurm_partition": cluster.partition} if cluster.partition else {}),
    )  # fmt: skip
    absolute = replace(
        workplace,
        runs=workplace.runs.absolute(),
        results=workplace.results.absolute(),
        data_root=None if workplace.data_root is None else workplace.data_root.absolute(),
    )
    with executor.batch():
        return [executor.submit(Shard(shard, absolute, machine, processes)) for shard in shards]
