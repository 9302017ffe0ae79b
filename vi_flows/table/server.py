"""Imported by the server that forks the runs' processes, so that its imports are there for every run.

A SIGTERM to the whole process group of the runner, as ``timeout`` and clusters send it, must reach the runs by their
runner alone: without its server the runner learns neither when they end nor how. So the server leaves the group.
"""

from __future__ import annotations

import os
import sys

from vi_flows.table import work

__all__ = ["work"]

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):  # not where a test imports every module
    os.setpgid(0, 0)
