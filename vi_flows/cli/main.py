"""The ``vi-flows`` command.

Exit codes: 0; 1 for a failure (something damaged or missing, a training that diverged); 2 for a mistake in the command
line; 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import torch
import tyro

from vi_flows.cli.bench import Bench
from vi_flows.cli.compare import Compare
from vi_flows.cli.data import DataCheck, DataDownload, DataList
from vi_flows.cli.demo import Demo
from vi_flows.cli.examples import examples_for
from vi_flows.cli.info import Info
from vi_flows.cli.listing import Results, Runs
from vi_flows.cli.runs import Evaluate, Sample, Train, resumption
from vi_flows.cli.table import Table
from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.fit2d import Fit2D
from vi_flows.records import RecordError
from vi_flows.settings import SettingsError
from vi_flows.training import RunUnusableError, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.distributed import (
    OtherProcessError,
    ProcessLostError,
    first_to_say,
    let_others_speak,
    num_processes,
    speaks_here,
)

__all__ = ["main"]

subcommand = tyro.conf.subcommand


@dataclass(frozen=True)
class Data:
    """List, check or download the data sets."""

    command: (
        Annotated[DataList, subcommand("list", prefix_name=False)]
        | Annotated[DataCheck, subcommand("check", prefix_name=False)]
        | Annotated[DataDownload, subcommand("download", prefix_name=False)]
    )

    def run(self) -> int:
        """The chosen command's exit code."""
        return self.command.run()


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "sample": Sample,
    "runs": Runs,
    "results": Results,
    "table": Table,
    "fit2d": Fit2D,
    "data": Data,
    "bench": Bench,
    "info": Info,
}
"""What runs, by name: dataclasses with a ``run`` method that returns the exit code."""

OTHER_FORMS: dict[str, Callable[[Sequence[str]], type | None]] = {"train": resumption}
"""By name of a command: what its words turn it into, with options of its own; ``None`` where it stays as it is."""

DESCRIPTION = """Variational inference with normalizing flows: train, evaluate and draw from models; data, benchmarks.

`vi-flows COMMAND --help` ends with examples. `vi-flows --tyro-print-completion bash` (or zsh, tcsh) prints a script for
the shell that completes commands and options. --debug anywhere in the line shows the traceback of a failure.

Exit codes: 0; 1 for a failure (a file damaged or missing, a training that diverged); 2 for a mistake in the command
line; 130 after Ctrl-C and 143 after SIGTERM."""

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
    errno.EISDIR: "a file was expected there; name another place",
    errno.EACCES: "name a place that you may read and write",
    errno.EPERM: "name a place that you may read and write",
    errno.EROFS: "name a place that you may read and write",
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
}
"""What to do where the system refuses a file, by its number for the reason."""
NO_MEMORY = ("DefaultCPUAllocator", "calculation overflowed", "multiplication overflow")
"""In PyTorch's words for a size that no memory holds."""


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, where nobody else listens."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        args: the command line; default: ``sys.argv[1:]``. ``--debug`` anywhere in it shows tracebacks of failures.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run([word for word in words if word != "--debug"])
    except TrainingInterrupted as stopped:
        _say(f"stopped; the checkpoint is up to date: {stopped.way}")
        code = 128 + stopped.number
    except Terminated:
        _say("stopped by SIGTERM")
        code = 128 + signal.SIGTERM
    except KeyboardInterrupt:
        _say("stopped")
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; keep the interpreter's last flush quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except TrainingDivergedError as error:
        _say(f"training diverged at {error}")
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
            _say(
                f"there is not enough memory{asked}: take smaller sizes of the model, a smaller --batch-size, or fewer "
                "draws (--num-particles, --num-samples, --rows)"
            )
            code = 1
        elif known or code == 2:
            _say(_in_words(error))
        else:
            first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            _say(f"{type(error).__name__}: {first} (--debug shows where)")
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
    if not isinstance(error, OSError) or error.filename is None or error.errno not in WAYS_OUT:
        return str(error)
    return f"{os.fspath(error.filename)}: {error.strerror}; {WAYS_OUT[error.errno]}"


def _say(message: str) -> None:
    """One line to the standard error, once for all processes of a run."""
    if first_to_say(message):
        print(f"vi-flows: {message}", file=sys.stderr, flush=True)


def _run(words: list[str]) -> int:
    """The exit code of the command that the words describe.

    Raises:
        ValueError: several processes were started for a command that is for one.
    """
    with contextlib.ExitStack() as quiet:
        if not speaks_here():  # help and mistakes are told once
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            command = _parse(words)
        except SystemExit as parsed:
            if parsed.code:
                let_others_speak()
            elif {"-h", "--help"} & {*words} and (lines := examples_for(words)):
                print("Examples:\n" + "".join(f"  {line}\n" for line in lines), end="")
            raise
    if num_processes() > 1 and words[:1] != ["train"]:
        raise ValueError("torchrun is for vi-flows train; start this command without it")
    return command.run()


def _parse(words: list[str]) -> Any:
    """The command that the words describe: an object whose ``run`` does it.

    Raises:
        SettingsError: a setting is out of its bounds.
        SystemExit: another mistake, or help, after it was told.
    """
    # Colors where a person reads both streams and wants them (no-color.org).
    colors = sys.stdout.isatty() and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    tyro._experimental_options["ansi_codes"] = colors
    name, behind = "".join(words[:1]), words[1:]
    other = OTHER_FORMS[name](behind) if name in OTHER_FORMS else None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if other is not None:
                return tyro.cli(other, prog=f"vi-flows {name}", args=behind)
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="vi-flows", description=DESCRIPTION, args=words,
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )  # fmt: skip
    except SystemExit as stopped:
        # Settings check themselves; tyro puts what they say into a box, under a name that nobody has typed.
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, SettingsError):
            cause = cause.__context__
        if cause is not None:
            named = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), words))
            raise SettingsError(f"{cause} (see vi-flows {named} --help)") from None
        print(said.getvalue(), end="", file=sys.stderr)
        raise
