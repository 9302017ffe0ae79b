"""The ``vi-flows`` command.

Exit codes: 0; 1 for a failure (something damaged or missing, a training that diverged); 2 for a mistake in the command
line; 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from vi_flows.cli.bench import Bench
from vi_flows.cli.compare import Compare
from vi_flows.cli.data import DataCheck, DataDownload, DataList
from vi_flows.cli.demo import Demo
from vi_flows.cli.examples import examples_for
from vi_flows.cli.info import Info
from vi_flows.cli.listing import Results, Runs
from vi_flows.cli.outcome import exit_with
from vi_flows.cli.runs import Evaluate, Sample, Train, resumption
from vi_flows.cli.table import Table
from vi_flows.fit2d import Fit2D
from vi_flows.settings import SettingsError
from vi_flows.training.distributed import let_others_speak, num_processes, speaks_here

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


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        args: the command line; default: ``sys.argv[1:]``. ``--debug`` anywhere in it shows tracebacks of failures.
    """
    exit_with("vi-flows", _run, args)


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
