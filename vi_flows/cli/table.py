"""The command that works through the rows of the VAE tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vi_flows.settings import Positive, check_settings
from vi_flows.table import Machine, Selection, Workplace, status_table, table_rows, work_through
from vi_flows.table.submit import Cluster, submit_shards
from vi_flows.training.config import check_device

__all__ = ["Table", "TableRows", "TableRun", "TableStatus", "TableSubmit"]


@dataclass(frozen=True)
class TableRun:
    """Train and evaluate the rows that have no record yet; runs that were stopped go on, finished ones are left alone.

    Several of these commands may work on one list at once, on one machine or on a shared folder. Ctrl-C and SIGTERM
    stop every process once it has written its checkpoint; the same command goes on from there.
    """

    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    workplace: Annotated[Workplace, tyro.conf.arg(name="")] = field(default_factory=Workplace)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)
    processes: Positive = 1
    """Runs at a time, each in a process of its own with one thread."""

    def run(self) -> int:
        """Print what is begun, done and failed; exit code 1 if something failed."""
        check_settings(self)
        check_device(self.machine.device)  # one that is not there is named now, not by every row
        return work_through(self.selection.jobs(), self.workplace, self.machine, self.processes)


@dataclass(frozen=True)
class TableSubmit:
    """Send the shards of the list to a cluster by submitit (extra `cluster`), each as a job that does `table run`."""

    cluster: Annotated[Cluster, tyro.conf.arg(name="")]
    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    workplace: Annotated[Workplace, tyro.conf.arg(name="")] = field(default_factory=Workplace)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)
    processes: Positive = 1
    """Runs at a time in each job, a core each."""
    wait: bool = False
    """Wait for the jobs to end."""

    def run(self) -> int:
        """Print the jobs' names; exit code 0, or with ``wait`` the worst of theirs."""
        check_settings(self)
        jobs = submit_shards(self.selection, self.workplace, self.machine, self.processes, self.cluster)
        for job in jobs:
            print(f"job {job.job_id}: {job.paths.stdout}", flush=True)
        if self.wait or self.cluster.cluster == "debug":  # which does nothing until it is waited for
            return max(job.result() for job in jobs)
        print("how far they are: vi-flows table status, with the same options")
        return 0


@dataclass(frozen=True)
class TableStatus:
    """Show one line a run: state, epoch, best validation loss, NLL (nats), time left."""

    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    workplace: Annotated[Workplace, tyro.conf.arg(name="")] = field(default_factory=Workplace)

    def run(self) -> int:
        """Print the table; exit code 0."""
        print(status_table(self.selection.jobs(), self.workplace))
        return 0


@dataclass(frozen=True)
class TableRows:
    """List the rows by name."""

    def run(self) -> int:
        """Print the names; exit code 0."""
        print("\n".join(table_rows()))
        return 0


@dataclass(frozen=True)
class Table:
    """Work through the rows of the VAE tables unattended, and show how far they are."""

    command: (
        Annotated[TableRun, tyro.conf.subcommand("run", prefix_name=False)]
        | Annotated[TableSubmit, tyro.conf.subcommand("submit", prefix_name=False)]
        | Annotated[TableStatus, tyro.conf.subcommand("status", prefix_name=False)]
        | Annotated[TableRows, tyro.conf.subcommand("rows", prefix_name=False)]
    )

    def run(self) -> int:
        """The chosen command's exit code."""
        return self.command.run()
