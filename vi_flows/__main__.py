"""The ``vi-flows`` command, also as ``python -m vi_flows`` and ``torchrun --nproc-per-node N -m vi_flows train …``."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Import the command, which takes seconds, and run it.

    Until it listens itself, a Ctrl-C ends the process without a traceback, by the signal's own default.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else ignored, as in the background of a shell, or somebody's own
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vi_flows.cli import main as command

    signal.signal(signal.SIGINT, before)
    command()


if __name__ == "__main__":
    main()
