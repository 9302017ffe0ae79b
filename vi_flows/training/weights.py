"""The trained weights of a run: which file they are in, their checksum, and the way into a module."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from vi_flows.training.checkpoint import CheckpointError, OtherModelError, first_not_finite, load_module, load_tensors
from vi_flows.training.errors import RunError, RunUnusableError, in_shell
from vi_flows.training.packed import PackedError, content, is_there

__all__ = ["Weights"]

Choice = Literal["best", "last"]


class Weights:
    """``best.safetensors`` (by validation) and ``last.safetensors``, as they are or packed.

    Args:
        folder: the run's.
        chosen: what the protocol takes, and what ``auto`` means.
    """

    def __init__(self, folder: Path, chosen: Choice) -> None:
        self.folder, self.chosen = folder, chosen

    def path(self, which: str = "auto") -> Path:
        """The file, whether or not it is there; packed, its ``.xz`` lies beside this path.

        Args:
            which: ``best``, ``last``, or ``auto`` for the protocol's choice.

        Raises:
            RunError: there is no such choice.
        """
        name = {"auto": self.chosen, "best": "best", "last": "last"}.get(which)
        if name is None:
            raise RunError(f"unknown weights {which!r}; choose auto, best or last")
        return self.folder / f"{name}.safetensors"

    def sha256(self, which: str = "auto") -> str:
        """SHA-256 of the file's bytes, the same where it is packed.

        Raises:
            RunUnusableError: there is none, or it can't be unpacked.
        """
        path = self.path(which)
        try:
            return hashlib.sha256(content(path)).hexdigest()
        except (OSError, PackedError) as error:
            raise RunUnusableError(f"no usable weights in {self.folder}: {error}") from error

    def read(self, which: str = "auto") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the bookkeeping that was saved with them.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        return load_tensors(self.path(which))

    def load_into(self, module: nn.Module, which: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Put them into a module of the run's model, in evaluation mode.

        Args:
            module: of the same model.
            which: see :meth:`path`.
            check: refuses bookkeeping that is not the run's.

        Returns:
            The bookkeeping that was saved with them: epoch, steps, seconds, whether training had finished.

        Raises:
            RunError: there is no such choice.
            RunUnusableError: there are none, or they are damaged or of another model.
        """
        path = self.path(which)
        try:
            tensors, state = load_tensors(path)
            check(state)
            bad = first_not_finite(tensors.items())
            if bad is not None:
                raise CheckpointError(f"{bad} in {path.name} is NaN or infinite")
            load_module(module, tensors)
        except OtherModelError as error:
            way = "put its config.json back as it was"
            raise RunUnusableError(f"no usable {path.stem} weights in {self.folder}: {error}; {way}") from error
        except CheckpointError as error:
            way = self._way_to(path)
            raise RunUnusableError(f"no usable {path.stem} weights in {self.folder}: {error}; {way}") from error
        module.eval()
        return {"weights": path.stem, **state}

    def _way_to(self, path: Path) -> str:
        """What to do where a file can't be used, in words."""
        if path.stem == "best" and not is_there(path) and is_there(self.path("last")):  # the run is at its end
            return "no validation loss of the run was finite: --weights last takes those of its last step"
        if not is_there(path):
            return f"vi-flows train --resume {in_shell(self.folder)} makes them"
        other = "last" if path.stem == "best" else "best"
        with contextlib.suppress(CheckpointError):
            self.read(other)
            return f"its {other} weights are whole: --weights {other} takes them"
        return "train the run again in another folder"
