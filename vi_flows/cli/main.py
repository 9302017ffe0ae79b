"""The ``vi-flows`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from vi_flows.cli.bench import Bench, Info
from vi_flows.cli.data import DataCheck, DataDownload, DataList
from vi_flows.cli.demo import Demo
from vi_flows.cli.runs import Evaluate, Sample, Train
from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.fit2d import Fit2D
from vi_flows.training import RunError, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.checkpoint import CheckpointError

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


COMMANDS = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "fit2d": Fit2D,
    "data": Data,
    "bench": Bench,
    "info": Info,
}
"""What runs, by name: dataclasses with a ``run`` method that returns the exit code."""

# Mistakes of input: one line that says what to mend. Anything else is a failure; --debug shows its traceback.
USER_ERRORS = (RunError, CheckpointError, DataNotFoundError, DataCorruptError, ValueError, FileNotFoundError)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        args: the command line; default: ``sys.argv[1:]``. ``--debug`` anywhere in it shows tracebacks of failures.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    args = [word for word in words if word != "--debug"]
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="vi-flows", description=__doc__, args=args, config=(tyro.conf.OmitSubcommandPrefixes,)
        )
        if isinstance(command, Train):
            command = replace(command, command_line=tuple(args[1:]))
        code = command.run()
    except TrainingInterrupted as stopped:
        print("vi-flows: stopped; the checkpoint is up to date, go on with --resume", file=sys.stderr)
        code = 128 + stopped.number
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; keep the interpreter's last flush quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except TrainingDivergedError as error:
        print(f"vi-flows: training diverged at {error}", file=sys.stderr)
        code = 3
    except USER_ERRORS as error:
        print(f"vi-flows: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        if debug:
            raise
        print(
            f"vi-flows: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r} "
            "(--debug shows where)",
            file=sys.stderr,
        )
        code = 1
    raise SystemExit(code)
