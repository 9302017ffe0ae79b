"""Settings of all tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # threads that wait for a core they share spin

# The default run draws the same examples every time; `--hypothesis-profile=default` searches for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test, and nothing that a test calls in its process, connects to anything but this machine."""
    connect = socket.socket.connect

    def guarded(this: socket.socket, address: Any) -> None:
        if this.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test reaches for the network: {address[0]}")
        connect(this, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(autouse=True)
def argument_validation() -> None:
    """Distributions check their arguments, whatever ran before: ``torch.compile`` turns that off for its process."""
    pyro.enable_validation(True)
