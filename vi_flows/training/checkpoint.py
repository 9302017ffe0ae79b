"""Checkpoints: tensors and their bookkeeping in one safetensors file, replaced atomically; the one before is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from vi_flows.records import from_json, to_json
from vi_flows.training.packed import content, is_there

__all__ = [
    "CheckpointError", "CheckpointWriteError", "Checkpoints", "OtherModelError", "first_not_finite",
    "flatten_optimizer", "load_module", "load_state", "load_tensors", "restore_optimizer", "save_tensors",
]  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another model."""


class OtherModelError(CheckpointError):
    """Whole, but of another model."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the one before it is whole."""


def save_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON-ready state into one file, in one step.

    Args:
        path: the safetensors file.
        tensors: by name, any device.
        state: numbers and strings that belong to them.

    Raises:
        CheckpointWriteError: the disk is full, or the folder can't be written; what was there before stays.
    """
    with _written(path, tensors, state) as temporary:
        temporary.replace(path)


@contextmanager
def _written(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Iterator[Path]:
    """The content that ``path`` is to have, whole and on the disk, under another name."""
    temporary = path.with_name(path.name + ".tmp")
    # Copies: safetensors refuses tensors that share memory, and the training goes on in the originals.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = to_json(state)
    try:
        save_file(copies, temporary, metadata={"state": text, "sha256": _checksum(copies, text)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        yield temporary
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk, its part would be in the way
        raise CheckpointWriteError(f"{path} can't be written: {error}") from error


class Checkpoints:
    """A run's newest checkpoint and the one before it, which is there if the newest is damaged.

    Both are files of one folder: ``checkpoint.safetensors`` and ``previous.safetensors``.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.newest, self.previous = folder / "checkpoint.safetensors", folder / "previous.safetensors"

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the newest one, as :func:`save_tensors` does; what was the newest is the previous one then.

        At every moment the newest is a whole one. Where the disk has no room for three, the oldest goes first.

        Raises:
            CheckpointWriteError: see :func:`save_tensors`; the newest stays.
        """
        full = self.newest.is_file() and shutil.disk_usage(self.newest.parent).free < 2 * self.newest.stat().st_size
        if full:
            self._keep()
        with _written(self.newest, tensors, state) as temporary:
            if not full:
                self._keep()
            temporary.replace(self.newest)

    def _keep(self) -> None:
        """Call the newest the previous one too."""
        if not self.newest.is_file():
            return
        temporary = self.previous.with_name(self.previous.name + ".tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.newest, temporary)  # a second name costs no room and no time
        except OSError:  # a file system without them
            shutil.copyfile(self.newest, temporary)
        temporary.replace(self.previous)

    def go_back(self) -> int:
        """Make the previous one the newest, which is given up; the step that it is of.

        Raises:
            CheckpointError: there is no previous one, or it is damaged too; the newest stays.
            CheckpointWriteError: the folder can't be written.
        """
        try:
            step = self.previous_step()
        except CheckpointError as error:
            raise CheckpointError(f"there is no previous checkpoint to go back to: {error}") from error
        try:
            self.previous.replace(self.newest)
        except OSError as error:
            raise CheckpointWriteError(f"{self.newest} can't be replaced by {self.previous}: {error}") from error
        return step

    def previous_step(self) -> int:
        """The step that the previous one is of.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        step = load_tensors(self.previous)[1].get("step")
        if type(step) is not int:
            raise CheckpointError(f"the checkpoint {self.previous} is of step {step!r}")
        return step


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote, also where it is packed (:mod:`~vi_flows.training.packed`).

    Files of before the checksum (the state is their only metadata) are read without it.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, or does not match its checksum.
    """
    if not is_there(path):
        raise CheckpointError(f"there is no checkpoint {path}")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a file: a checkpoint was expected")
    try:
        metadata, tensors = _opened(path) if path.exists() else _parsed(content(path))
        state = from_json(metadata["state"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error})") from error
    # Any second entry means a checksum was written, even where damage hit the entry's own name.
    if metadata.keys() != {"state"} and metadata.get("sha256") != _checksum(tensors, metadata["state"]):
        raise CheckpointError(f"the checkpoint {path} is damaged (its content does not match its checksum)")
    if not isinstance(state, dict):
        raise CheckpointError(f"the checkpoint {path} is damaged (its bookkeeping is {state!r})")
    return tensors, state


def _opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _parsed(whole: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The same of a file's bytes: a header in JSON after eight bytes with its length, then the tensors."""
    tensors = load(whole)
    header = from_json(whole[8 : 8 + int.from_bytes(whole[:8], "little")].decode())
    return header.get("__metadata__", {}), tensors


def load_state(path: Path) -> dict[str, Any]:
    """The bookkeeping of a checkpoint without its tensors: quick, and without a look at the checksum.

    Raises:
        CheckpointError: the file is missing, or its header can't be read.
    """
    try:
        with safe_open(path, "pt") as file:
            state = from_json((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is missing or damaged ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"the checkpoint {path} is damaged (its bookkeeping is {state!r})")
    return state


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    """SHA-256 over the state and every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or ``None``."""
    return next((name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()), None)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights into a module.

    Raises:
        OtherModelError: they are those of another one; the first tensor that differs.
    """
    own = module.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors or name not in own:
            raise OtherModelError(f"{name} is only in the {'model' if name in own else 'file'}")
        if own[name].shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(own[name].shape)
            raise OtherModelError(f"{name} is of shape {shapes[0]} in the file and {shapes[1]} in the model")
    module.load_state_dict(tensors)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors, named ``index.key``."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`flatten_optimizer` gave, moments in the memory layout of their parameters.

    Files hold tensors row by row, and a fused step refuses moments laid out in another way than their parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape and tensor.ndim:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
