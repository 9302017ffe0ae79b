"""What a command ends in: an exit code, and where something went wrong a line that says what.

Exit codes: 0; 1 for a failure (something damaged or missing, a training that diverged); 2 for a mistake in the command
line; 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import NoReturn

import torch

from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.records import RecordError
from vi_flows.training import RunUnusableError, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.distributed import OtherProcessError, ProcessLostError, first_to_say, let_others_speak

__all__ = ["exit_with"]

# Something is damaged, missing or broken. Other ValueErrors are mistakes of input: one line says what to mend.
FAILURES = (
    RunUnusableError,
    RecordError,
    CheckpointError,
    DataNotFoundError,
    DataCorruptError,
    ProcessLostError,
    OSError,
)


WAYS_OUT = {
    errno.ENOENT: "what it lies in is not there; name another place",
    errno.ENOTDIR: "a part of its path is a file; name another place",
    errno.EEXIST: "a folder was expected there; name another place",
    errno.EISDIR: "a file was expected there; name another place",
    errno.EACCES: "name a place that you may read and write",
    errno.EPERM: "name a place that you may read and write",
    errno.EROFS: "name a place that you may read and write",
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name another place",
}
"""What to do where the system refuses a file, by its number for the reason."""
NO_MEMORY = ("DefaultCPUAllocator", "calculation overflowed", "multiplication overflow")
"""In PyTorch's words for a size that no memory holds."""


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, where nobody else listens."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def exit_with(name: str, run: Callable[[list[str]], int | None], args: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line asks, and exit with its code; what goes wrong is said in a line, not by a traceback.

    Args:
        name: of the command, which the line begins with.
        run: takes the words behind the name and returns the exit code, or nothing for 0.
        args: the words; default: ``sys.argv[1:]``. ``--debug`` anywhere in them shows tracebacks of failures.
    """
    say = partial(_say, name)
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    for stream in ("stdout", "stderr"):  # closed before the start, as by some daemons
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):  # a dash or a name that the terminal can't show is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = run([word for word in words if word != "--debug"])
    except TrainingInterrupted as stopped:
        say(f"stopped; the checkpoint is up to date: {stopped.way}")
        code = 128 + stopped.number
    except Terminated:
        say("stopped by SIGTERM")
        code = 128 + signal.SIGTERM
    except KeyboardInterrupt:
        say("stopped")
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; keep the interpreter's last flush quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except TrainingDivergedError as error:
        say(f"training diverged at {error}")
        code = 1
    except OtherProcessError:  # which says why
        code = 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, FAILURES)
        code = 2 if isinstance(error, ValueError) and not known else 1
        asked = _memory_asked(error)
        if asked is not None:
            say(
                f"there is not enough memory{asked}: take smaller sizes of the model, a smaller --batch-size, or fewer "
                "draws (--num-particles, --num-samples, --rows)"
            )
            code = 1
        elif known or code == 2:
            say(_in_words(error))
        else:
            first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            say(f"{type(error).__name__}: {first} (--debug shows where)")
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code:
        let_others_speak()
    raise SystemExit(code)


def _memory_asked(error: Exception) -> str | None:
    """For an error that means that memory is short: how much was asked for, in words, where it says so."""
    text = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(words in text for words in NO_MEMORY):
        return None
    found = re.search(r"allocate ([\d.]+ [KMGTPE]?i?B|\d+ bytes)", text)
    if found is None:
        return ""
    number, unit = found[1].split()
    return f" for {int(number) / 2**30:,.1f} GiB" if unit == "bytes" else f" for {found[1]}"


def _in_words(error: Exception) -> str:
    """The message; of a file that the system refuses, its name, the reason and the way out."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in WAYS_OUT:
        return f"{os.fspath(error.filename)}: {error.strerror}; {WAYS_OUT[error.errno]}"
    cause = error.__cause__  # of one that names the file itself, as write_atomic's
    return f"{error}; {WAYS_OUT[cause.errno]}" if isinstance(cause, OSError) and cause.errno in WAYS_OUT else str(error)


def _say(name: str, message: str) -> None:
    """One line to the standard error, once for all processes of a run."""
    if first_to_say(message):
        print(f"{name}: {message}", file=sys.stderr, flush=True)
