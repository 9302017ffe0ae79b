"""The ``vi-flows`` command; one file a command."""

from vi_flows.cli.main import main

__all__ = ["main"]
