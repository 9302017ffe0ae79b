"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# The default run draws the same examples every time; `--hypothesis-profile=default` searches for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
