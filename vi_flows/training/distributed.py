"""The processes that ``torchrun`` starts, as one group that trains one run."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions have the group of the moment as their default; Adam's first step imports it. Imported while a group is
# there, it would keep that group's threads alive beyond the interpreter, which then ends in SIGABRT now and then.
import torch.distributed.nn
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from vi_flows.parallel import ALONE, Divided, Ranks

__all__ = [
    "OtherProcessError", "ProcessGroup", "ProcessLostError", "first_to_say", "joined", "let_others_speak",
    "num_processes", "speaks_here",
]  # fmt: skip

T = TypeVar("T")


_said: list[dist.Store] = []  # the store that the processes share, while there are several


def first_to_say(message: str) -> bool:
    """Whether no other process has said the same: what all find out, one tells."""
    if not _said:
        return speaks_here()
    return _said[-1].add(f"said/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1


def let_others_speak() -> None:
    """Before this process fails alone: torchrun ends all with the first that fails, even the one that says why."""
    if not _said and not speaks_here():
        time.sleep(20)


class OtherProcessError(RuntimeError):
    """Another process of this run has failed and says why."""


class ProcessLostError(RuntimeError):
    """Another process of this run is gone."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"another process of this run has ended, so that this one can't go on ({reason}); the last checkpoint is "
            "as it was: go on with train --resume, with as many processes as you like"
        )


def num_processes() -> int:
    """How many processes ``torchrun`` has started; 1 without it.

    Raises:
        ValueError: the environment variable ``WORLD_SIZE`` is not a positive number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"WORLD_SIZE must be the number of processes, as torchrun sets it, got {text!r}")
    return int(text)


def speaks_here() -> bool:
    """Whether this process speaks for all on its machine, before they have found each other."""
    return num_processes() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


class ProcessGroup(Ranks):
    """This process and the others, by ``torch.distributed``: gloo between CPUs, NCCL between GPUs.

    Sums of tensors are the same bits in every process, so that weights that were equal stay equal;
    :meth:`check_equal` looks.

    Args:
        rank: this process's number.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @contextmanager
    def _others_alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what the backends raise where a connection is closed
            raise ProcessLostError(str(error).splitlines()[0][:120]) from error

    def add_(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.add_`; tensors of one type and device travel together."""
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        with torch.no_grad():
            for group in groups.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                with self._others_alive():
                    dist.all_reduce(flat)
                for tensor, total in zip(group, flat.split([t.numel() for t in group]), strict=True):
                    tensor.copy_(total.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """See :meth:`Ranks.gather`."""
        found: list[T | None] = [None] * self.size
        with self._others_alive():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # every process has put its own

    def numbers(self, *own: float) -> list[list[float]]:
        """See :meth:`Ranks.numbers`."""
        table = torch.zeros(self.size, len(own), dtype=torch.float64)
        table[self.rank] = torch.tensor(own, dtype=torch.float64)
        self.add_([table])
        return table.tolist()

    def from_first(self, make: Callable[[], T]) -> T:
        """See :meth:`Ranks.from_first`."""
        made: list[T | None] = [None]
        with self.together():
            if self.first:
                made[0] = make()
        with self._others_alive():
            dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]  # the first process's

    @contextmanager
    def together(self) -> Iterator[None]:
        """See :meth:`Ranks.together`.

        Raises:
            OtherProcessError: this process got through, and another one failed.
        """
        failed: Exception | None = None
        try:
            yield
        except ProcessLostError:
            raise
        except Exception as error:
            failed = error
        states = self.gather(failed is None)
        if failed is not None:
            raise failed
        if not all(states):
            raise OtherProcessError(f"process {states.index(False)} of {self.size} has failed")

    def share(self, num_rows: int, row_dim: int) -> Divided:
        """See :meth:`Ranks.share`."""
        return Divided(self, num_rows, row_dim)

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`Ranks.check_equal`."""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if len(set(self.gather(digest.hexdigest()))) > 1:
            raise RuntimeError(
                "the processes' weights have come apart: machines of different kinds don't round alike. Nothing was "
                "saved since the last checkpoint; go on with train --resume on machines of one kind"
            )


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """The processes that ``torchrun`` started, for as long as the block lasts, and the device of this one.

    Without ``torchrun``, or with one process: one process alone, on the device that was asked for.

    Args:
        device: ``cpu``, or ``cuda`` for a GPU a process.

    Raises:
        ValueError: a single GPU was named for several processes.
    """
    size = num_processes()
    if size == 1:
        yield ALONE, device
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    kind, _, index = device.partition(":")
    if index and int(os.environ.get("LOCAL_WORLD_SIZE", size)) > 1:
        raise ValueError(f"several processes can't share --device {device}: name --device {kind}, a {kind} each")
    own = device
    if kind == "cuda":
        own = f"cuda:{local}"
        if int(os.environ.get("LOCAL_WORLD_SIZE", size)) > torch.cuda.device_count():
            raise ValueError(
                f"there are {torch.cuda.device_count()} GPUs here for {os.environ.get('LOCAL_WORLD_SIZE', size)} "
                "processes: start as many as there are GPUs, or train on --device cpu"
            )
        torch.cuda.set_device(local)
    store, _, _ = next(rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    _said.append(store)
    try:
        yield ProcessGroup(rank, size), own
    except BaseException:
        if kind != "cuda":  # NCCL would wait for the others here
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        # Whichever process ends first, torchrun stops the others, which are about to end too and may still have to
        # say why.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
