"""The command ``vi-flows bench``: a dataclass whose fields are its options."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

import vi_flows
from vi_flows.bench import images, kernels, recurrent, table, vae
from vi_flows.bench.measure import Measurement
from vi_flows.bench.rows import GOALS, Row, format_table, measure_row
from vi_flows.kernels import active_kernel, instruction_set, kernel_reason
from vi_flows.records import Clock, Record, git_revision, provenance, row_key, to_json

__all__ = ["Bench", "environment"]

Measure = Callable[[], tuple[Measurement, str]]


def environment() -> dict[str, Any]:
    """What runs here: kernel and why, instruction set, threads, versions."""
    return {
        "vi_flows": vi_flows.__version__,
        "revision": git_revision(),
        "kernel": active_kernel(),
        "kernel_reason": kernel_reason(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "machine": platform.machine(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@dataclass(frozen=True)
class Bench:
    """Measure the ratios of speed, for eight goals, beside their floors: CPU time, one thread, interleaved runs."""

    goals: tuple[int, ...] = ()
    """Numbers of the goals to measure, 1 to 8; default: all."""
    rounds: int = 9
    """Pairs of runs of each ratio; the median counts."""
    extra: bool = False
    """Rows without a goal too: amortised flows, other peers, the direct path, the fallback without a compiler."""
    json: bool = False
    """Print JSON instead of a table."""
    history: Path | None = None
    """Folder in which to keep the result, e.g. experiments/results/bench."""
    check: bool = False
    """Exit with code 1 where a floor is missed."""

    def run(self) -> int:
        """Print the table and keep the record; exit code 0, or 1 by ``check``.

        Raises:
            ValueError: there is no such goal, or no round.
        """
        unknown = set(self.goals) - {goal.number for goal in GOALS.values()}
        if unknown:
            raise ValueError(f"there is no goal {min(unknown)}; choose among 1 to 8")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.history is not None:
            Record.refuse_to_replace(self.history / "record.json", overwrite=True)  # a file where the folder goes
            self.history.mkdir(parents=True, exist_ok=True)  # what can't be written, before minutes of measuring
        clock, rows = Clock(), []
        for name, title, measure in self._plan():
            if not self.json and sys.stderr.isatty():
                print(f"{title} …", end="\r", file=sys.stderr, flush=True)
            rows.append(measure_row(name, title, measure))
        record = self._record(rows, clock)
        print(to_json(record.to_dict(), 2) if self.json else format_table(rows))
        if self.history is not None:
            path = self.history / f"{record.provenance['date'].replace(':', '')}.json"
            record.write(path)
            if not self.json:
                print(f"record: {path}")
        return int(self.check and any(row.verdict == "below" for row in rows))

    def _plan(self) -> Iterator[tuple[str, str, Measure]]:
        r = self.rounds
        measures: dict[str, Measure] = {
            "1a": lambda: kernels.plain_over_fused(100, r),
            "1b": lambda: kernels.plain_over_fused(5000, r),
            "2a": lambda: vae.flow_over_plain_step(1, r),
            "2b": lambda: vae.flow_over_plain_step(50, r),
            "3a": lambda: kernels.inverse_over_forward(100, r),
            "3b": lambda: kernels.inverse_over_forward(5000, r),
            "4": lambda: images.sampler_over_glow(r),
            "5": lambda: vae.pyro_over_bare(r),
            "6a": lambda: kernels.peer_over_fused("Pyro IAF x4", 100, r),
            "6b": lambda: kernels.peer_over_fused("Pyro IAF x4", 5000, r),
            "6c": lambda: kernels.peer_over_fused("zuko MAF x4", 100, r),
            "6d": lambda: kernels.peer_over_fused("zuko MAF x4", 5000, r),
            "7": lambda: table.runner_over_one_at_a_time(r),
            "8": lambda: vae.flow_over_plain_nll(r),
        }
        for name, goal in GOALS.items():
            if not self.goals or goal.number in self.goals:
                yield name, goal.title, measures[name]
        if not self.extra:
            return
        yield (
            "amortised-1",
            "VAE step, IW=1: amortised K=8 / without",
            lambda: vae.flow_over_plain_step(1, r, "amortized"),
        )
        yield "direct", "VAE step: vi-flows train / bare PyTorch", lambda: vae.direct_over_bare(r)
        for size in (100, 5000):
            title = f"training pass, N={size}: PyTorch / fallback, no compiler"
            yield f"fallback {size}", title, partial(kernels.plain_over_fused, size, r, "torch")
        for peer in list(kernels.PEERS)[2:]:
            for size in (100, 5000):
                title = f"training pass, N={size}: {peer} / ConvFlow K=8"
                yield f"{peer} {size}", title, partial(kernels.peer_over_fused, peer, size, r)
        yield "normflows Glow", "Glow, training pass: normflows / ours", partial(images.peer_over_glow, r)
        yield (
            "normflows Glow, bfloat16", "Glow, training pass: normflows / ours with --mixed-precision",
            partial(images.peer_over_glow, r, network_dtype=torch.bfloat16),
        )  # fmt: skip
        yield (
            "diagonal BiLSTM",
            "PixelRNN layer, training pass: by autograd / written",
            partial(recurrent.autograd_over_written, r),
        )
        for channels, size in ((12, 16), (24, 8), (48, 4)):
            for gradients, more in ((False, ""), (True, ", with gradients")):
                shape = f"{channels}x{size}x{size}{more}"
                yield (
                    f"3x3 {shape}", f"inverse of a 3x3 convolution, {shape}: by rows / compiled",
                    partial(images.rows_over_compiled, r, channels, size, gradients=gradients),
                )  # fmt: skip
        for name in ("emerging", "inv_conv3x3-quad", "inv_conv3x3-quad-narrow"):
            yield f"sampler {name}", f"image sampler: {name} / Glow", partial(images.sampler_over_glow, r, name)

    def _record(self, rows: list[Row], clock: Clock) -> Record:
        settings = {"goals": list(self.goals), "rounds": self.rounds, "extra": self.extra}
        return Record(
            kind="bench",
            key=row_key("bench", settings),
            label="ratios of CPU times, one thread",
            settings=settings,
            figures={
                "measured": "process CPU time, one thread, medians of interleaved runs",
                "rows": [row.record() for row in rows],
            },
            provenance=provenance(clock=clock, **(environment() | {"threads": 1})),
        )
