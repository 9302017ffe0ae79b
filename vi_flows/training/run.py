"""A run's folder: its configuration, checkpoints, metrics and results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vi_flows.data import RunData
from vi_flows.locks import is_locked
from vi_flows.records import from_json, git_revision, row_key, to_json, write_atomic
from vi_flows.settings import check_types
from vi_flows.training.checkpoint import CheckpointError, Checkpoints, load_state, load_tensors
from vi_flows.training.config import TrainConfig, check_device, config_from_dict, config_to_dict, first_difference
from vi_flows.training.errors import RunError, RunUnusableError, holding, in_shell
from vi_flows.training.kinds import KINDS
from vi_flows.training.start import check_same_data, describe_start
from vi_flows.training.tasks.base import Task
from vi_flows.training.weights import Weights

__all__ = ["Run", "RunError", "RunUnusableError"]


class Run:
    """One training run in a folder.

    ``config.json`` (settings), ``checkpoint.safetensors`` (to go on) and ``previous.safetensors`` (the one before it),
    ``best.safetensors`` and ``last.safetensors`` (weights to evaluate), ``metrics.jsonl`` (a line an epoch) and
    ``results/`` (records). Weights may be packed (:mod:`~vi_flows.training.packed`).

    Args:
        folder: where it lives.
        config: its settings.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder = Path(folder)
        self.config = config
        self.checkpoints = Checkpoints(self.folder)
        self.weights = Weights(self.folder, "last" if config.protocol == "paper" else "best")
        self._locked = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's folder for writing; the system frees it with the process, however that ends.

        Raises:
            RunUnusableError: another process holds it.
        """
        if self._locked:
            yield
            return
        with holding(self.folder, f"another process is training the run in {self.folder}"):
            self._locked = True
            try:
                for left in self.folder.glob("*.tmp"):  # a process was killed while it wrote; nobody else writes now
                    left.unlink()
                yield
            finally:
                self._locked = False

    @property
    def held(self) -> bool:
        """Whether a living process holds the run's folder."""
        return is_locked(self.folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say how to go on where the disk is full or the folder can't be written.

        Raises:
            OSError: in one sentence.
        """
        try:
            yield
        except OSError as error:
            kept = "its last checkpoint is whole" if self.checkpoints.newest.exists() else "it has no checkpoint yet"
            raise OSError(
                f"the training in {self.folder} stopped: {error}; {kept}: make room, then go on with "
                f"vi-flows train --resume {in_shell(self.folder)}"
            ) from error

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> Run:
        """Start a new run.

        Raises:
            RunError: the folder holds one already, or something else.
            RunUnusableError: the run that it starts from is missing, or has no weights.
            ValueError: the run that it starts from is of another model or data.
        """
        check_types(TrainConfig, "; VAETrainConfig() makes one", config=config)
        folder = Path(folder)
        run = cls(folder, config)
        source = run._described_source()
        if (folder / "config.json").exists():
            raise RunError(
                f"{folder} holds a run already; go on with it by --resume {in_shell(folder)}, or choose another --out"
            )
        # Killed while it wrote its settings, a process leaves a part of them, which is no run yet.
        if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {"config.json.tmp"}):
            raise RunError(f"{folder} exists and is not an empty folder; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "kind": config.kind,
            "revision": git_revision(),
            "started_from": source,
            "settings": config_to_dict(config),
        }
        write_atomic(folder / "config.json", to_json(settings, 2) + "\n")
        return run

    def _described_source(self) -> dict[str, Any] | None:
        """See :func:`~vi_flows.training.start.describe_start`; ``None`` for fresh weights."""
        if self.config.start_from is None:
            return None
        return describe_start(Run.open(self.config.start_from, self.config.data_root), self)

    @classmethod
    def open(cls, folder: Path, data_root: Path | None = None) -> Run:
        """Open an existing run.

        Args:
            folder: where it lives.
            data_root: where the data are now, if not where they were.

        Raises:
            RunUnusableError: there is no run, or its configuration can't be read.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise RunUnusableError(
                f"{folder} holds no run (no file config.json in it); vi-flows runs lists those there are"
            )
        try:
            content = from_json(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("kind") not in KINDS or "settings" not in content:
                raise ValueError(f"it says nothing of one of the kinds {', '.join(KINDS)}")
            config = config_from_dict(KINDS[content["kind"]].config, content["settings"])
        except (ValueError, RecursionError) as error:
            raise RunUnusableError(
                f"{path} can't be read: {error}; put that right, or train anew in another folder"
            ) from error
        return cls(folder, config if data_root is None else replace(config, data_root=data_root))

    @classmethod
    def open_or_create(cls, folder: Path, config: TrainConfig) -> Run:
        """The run in a folder as it was stopped, or a new one.

        Args:
            folder: where it lives.
            config: its settings. Those of the machine (:attr:`TrainConfig.of_the_machine`) may differ from what it was
                begun with; it goes on with these.

        Raises:
            RunError: the run in the folder is of another kind, has other settings or started from other weights; or
                it is not finished and was begun on another kind of device, whose draws would go on differently.
        """
        if not (folder / "config.json").exists():
            return cls.create(folder, config)
        run = cls.open(folder, config.data_root)
        if run.config.kind != config.kind:
            raise RunError(f"{folder} holds a run of kind {run.config.kind!r}, not {config.kind!r}: move it away")
        found = first_difference(run.config, config, config.of_the_machine)
        if found is not None:
            name, begun, asked = found
            raise RunError(f"{folder} was begun with {name}={begun!r}, not {asked!r}: move it away")
        source = cls(folder, config)._described_source()
        weights = [None if start is None else start["sha256"] for start in (run.started_from, source)]
        if weights[0] != weights[1]:
            raise RunError(f"{folder} was begun from other weights than those of {config.start_from}: move it away")
        device = run.config.device.partition(":")[0]
        if device != config.device.partition(":")[0] and not run.saved_state["finished"]:
            raise RunError(f"{folder} was begun on {device}: go on with --device {device}, or delete the folder")
        return cls(folder, replace(config, start_from=run.config.start_from, data_root=run.config.data_root))

    @property
    def saved_state(self) -> dict[str, Any]:
        """The bookkeeping of the last checkpoint; before the first one, step 0 and not finished.

        Raises:
            CheckpointError: it is damaged; how to go on nevertheless.
        """
        path = self.checkpoints.newest
        with self.offering_a_way():
            return load_tensors(path)[1] if path.exists() else {"step": 0, "finished": False}

    @property
    def is_unfinished(self) -> bool:
        """Whether its last checkpoint is one that training goes on from; a run without one is as good as finished."""
        with suppress(CheckpointError):
            return self.checkpoints.newest.exists() and not load_state(self.checkpoints.newest).get("finished")
        return False

    @cached_property
    def data(self) -> RunData:
        """The run's data set."""
        return self.config.load_data()

    def on(self, device: str | None) -> Run:
        """The same run with its model and data on another device, to evaluate or draw; what is on disk stays.

        Args:
            device: a torch device; ``None`` for where the run was trained.

        Raises:
            ValueError: there is no such device here.
        """
        place = self.config.device if device is None else device
        check_device(place)
        there = Run(self.folder, replace(self.config, device=place))
        there.data = self.data
        return there

    def build_task(self) -> Task:
        """The run's model, with fresh weights drawn under its seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return KINDS[self.config.kind].task(self.config, self.data)

    @property
    def trained_at(self) -> str | None:
        """The revision that started the run."""
        return self._written().get("revision")

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The run that this one started from, see :func:`~vi_flows.training.start.describe_start`, or ``None``."""
        return self._written().get("started_from")

    @property
    def key(self) -> str:
        """What distinguishes the run from every other one: its settings, and the weights that it started from."""
        source = self.started_from
        if source is None:
            return self.config.key
        return row_key(f"{self.config.slug}-from", {"run": self.config.key, "weights": source["sha256"]})

    def _written(self) -> dict[str, Any]:
        return from_json((self.folder / "config.json").read_text(encoding="utf-8"))

    def check_data(self, state: dict[str, Any]) -> None:
        """Refuse data that are not those of the training.

        Args:
            state: the bookkeeping of a checkpoint or of trained weights; older ones don't say which data they saw.

        Raises:
            RunUnusableError: the data have changed.
        """
        trained = state.get("data_sha256", self.data.sha256)
        if trained != self.data.sha256:
            raise RunUnusableError(
                f"the data {self.config.dataset} are not those that the run in {self.folder} was trained on: their "
                f"sha256 is {self.data.sha256[:16]}…, and was {str(trained)[:16]}…; put the old back, or train anew"
            )

    @property
    def distinguishing(self) -> dict[str, Any]:
        """The settings that make a training what it is: all but those of the machine, ready for JSON."""
        settings = config_to_dict(self.config)
        return {name: value for name, value in settings.items() if name not in self.config.of_the_machine}

    def check_settings(self, state: dict[str, Any]) -> None:
        """Refuse to go on from, or to judge, what was trained with other settings than the folder's.

        Args:
            state: the bookkeeping of a checkpoint or of trained weights; older ones don't say their settings.

        Raises:
            RunUnusableError: the settings have changed.
        """
        if "settings" not in state:
            return
        trained = config_from_dict(type(self.config), {**config_to_dict(self.config), **state["settings"]})
        found = first_difference(trained, self.config, self.config.of_the_machine)
        if found is not None:
            name, was, now = found
            raise RunUnusableError(
                f"{self.folder / 'config.json'} says {name}={now!r}, and the run was trained with {was!r}: put that "
                "back, or train anew in another folder"
            )

    def load_start(self, task: Task) -> None:
        """Put the weights that this run starts from into the task's module; nothing where they are fresh.

        Raises:
            RunUnusableError: they are gone, or others than when this run was created.
            ValueError: they are of other data than this run's.
        """
        if self.config.start_from is None:
            return
        source = Run.open(self.config.start_from, self.config.data_root)
        if self.started_from is None or source.weights.sha256() != self.started_from["sha256"]:
            raise RunUnusableError(
                f"{source.weights.path()} is not what it was when the run in {self.folder} was made; "
                "put it back, or train anew in another folder"
            )
        mode = task.module.training
        check_same_data(source, source.load_weights(task), self)
        task.module.train(mode)

    @contextmanager
    def offering_a_way(self) -> Iterator[None]:
        """Add to what is wrong with the checkpoint how to go on nevertheless.

        Raises:
            CheckpointError: the same, with the next step.
        """
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._way_past_checkpoint()}") from error

    def _way_past_checkpoint(self) -> str:
        """By the checkpoint before, if it is whole; else by the weights, if they are."""
        with suppress(CheckpointError):
            return (
                f"the one before it, of step {self.checkpoints.previous_step()}, is whole: "
                f"vi-flows train --resume {in_shell(self.folder)} --previous goes on from there"
            )
        with suppress(CheckpointError):
            self.weights.read()
            return (
                f"no whole one before it is there, but its {self.weights.path().name} is whole: "
                f"vi-flows train {self.config.kind} --from {in_shell(self.folder)} --out NEW "
                "with the same model and data starts from those weights"
            )
        return "start it again in another folder"

    def load_weights(self, task: Task, which: str = "auto") -> dict[str, Any]:
        """Put trained weights into the task's module, in evaluation mode.

        Args:
            task: from :meth:`build_task`.
            which: ``best`` (by validation), ``last``, or ``auto``: the protocol's choice.

        Returns:
            The bookkeeping that was saved with them: epoch, steps, seconds, whether training had finished.

        Raises:
            RunError: there is no such choice.
            RunUnusableError: there are none, they are damaged or of another model, or the run's settings have changed.
        """
        return self.weights.load_into(task.module, which, self.check_settings)
