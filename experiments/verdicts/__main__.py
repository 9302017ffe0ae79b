"""Fit guides, good and bad, to posteriors with known truth; what the verdict says of each, and whether it is so.

VI_FLOWS_DATA=… python -m experiments.verdicts                      # what has no row yet
VI_FLOWS_DATA=… python -m experiments.verdicts banana-2 --again     # some posteriors anew
VI_FLOWS_DATA=… python -m experiments.verdicts --judge-again        # new verdicts on the guides that are kept
python -m experiments.verdicts --only-table                         # the table of the records that are there

One thread. Rows that are there stay, and a run that was stopped goes on where it was; fitted guides are kept below
``runs/verdicts``.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import tyro

from experiments.verdicts.known import Known, collection, held_out
from experiments.verdicts.table import table
from experiments.verdicts.ways import WAYS, ways_of
from vi_flows.cli.outcome import exit_with
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoFlow
from vi_flows.records import Record, provenance, row_key

Row = dict[str, Any]

RESULTS = Path(__file__).parents[1] / "results" / "verdicts"
GUIDES = Path(__file__).parents[2] / "runs" / "verdicts"
NUM_DRAWS = 40_000
"""Of a guide, compared with the truth."""
SLOW = 30.0
"""CPU seconds: where a fit by default settings takes longer, there are no bad ones."""


@dataclass(frozen=True)
class Verdicts:
    """Rows of guides, and the table of them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Posteriors; default: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of starts, fits and draws."""
    ways: tuple[str, ...] = tuple(WAYS)
    """How the guides are made."""
    again: bool = False
    """Fit what has a row already."""
    judge_again: bool = False
    """New verdicts for the rows whose guides are kept."""
    only_table: bool = False
    """Print the table of the records that are there."""

    def run(self) -> None:
        """Seed after seed over all posteriors; a record is written after every row."""
        known = collection()
        for given, there in ((self.names, known), (self.ways, WAYS)):
            unknown = [name for name in given if name not in there]
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(there)}")
        torch.set_num_threads(1)
        torch.optim.Adam([torch.zeros((), requires_grad=True)])  # its seconds of imports are nobody's
        logging.getLogger("pyro").setLevel(logging.WARNING)
        warnings.simplefilter("ignore")
        if not self.only_table:
            for seed in self.seeds:
                for name in self.names or tuple(known):
                    self._posterior(known[name](), seed)
        print(table(RESULTS))

    def _posterior(self, known: Known, seed: int) -> None:
        for way in ways_of(known, _seconds(known.name) < SLOW):
            if way not in self.ways:
                continue
            old = next((r for r in _rows(known.name) if (r["way"], r["seed"]) == (way, seed)), None)
            if old is not None and not self.again and not self.judge_again:
                continue
            kept = GUIDES / f"{known.name}-{way.replace(' ', '-')}-{seed}.pt"
            if old is not None and not self.again and not kept.exists():
                continue
            try:
                row = _made(known, way, seed, kept) if old is None or self.again else {}
                row = {**(old or {}), **row, **_judged(known, way, seed, kept)}
            except FileNotFoundError:  # the data are not there: no result of a fit
                raise
            except Exception as error:  # whatever a fit raises is its result
                row = {"way": way, "seed": seed, "failed": f"{type(error).__name__}: {error}"[:200]}
            _write(known, row)


def _rows(name: str) -> list[Row]:
    path = RESULTS / f"{name}.json"
    return Record.read(path).figures["rows"] if path.exists() else []


def _seconds(name: str) -> float:
    return max((r["cpu_seconds"] for r in _rows(name) if r["way"] == "default" and "cpu_seconds" in r), default=0.0)


def _made(known: Known, way: str, seed: int, kept: Path) -> Row:
    """Fit or spoil a guide, keep it, and compare it with the truth."""
    how = WAYS[way]
    source = kept.with_name(f"{known.name}-{(how.after or way).replace(' ', '-')}-{seed}.pt")
    if how.after is not None and not source.exists():  # its row is there, and the guide was kept elsewhere
        _made(known, how.after, seed, source)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    began = time.process_time()
    steps = 0
    guide = how.make(known, how.after is None)
    if how.train is not None:
        steps = how.train(known, guide, seed).num_steps
    else:
        assert how.after is not None
        assert how.spoil is not None
        guide.load_state_dict(torch.load(source))
        how.spoil(guide)
    seconds = time.process_time() - began
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(guide.state_dict(), kept)
    pyro.set_rng_seed(seed + 1)
    with torch.no_grad():
        errors = known.errors(guide.sample_posterior(NUM_DRAWS))
    fitted = provenance()["revision"]
    return {"way": way, "seed": seed, "cpu_seconds": round(seconds, 2), "steps": steps, **errors, "fitted_by": fitted}


def _judged(known: Known, way: str, seed: int, kept: Path) -> Row:
    """The verdict on a guide that is kept, and what it rests on."""
    pyro.set_rng_seed(seed)
    guide: AutoFlow = WAYS[way].make(known, False)
    guide.load_state_dict(torch.load(kept))
    began = time.process_time()
    report = diagnose(known.model, guide, *known.args, seed=seed)
    return {
        "verdict": report.verdict, "reason": report.reason, "elbo": round(report.elbo, 3),
        "log_evidence": round(report.log_evidence, 3), "k_hat": round(report.k_hat, 3),
        "ess_share": round(report.ess / report.num_samples, 4), **_moves(report),
        "elsewhere": report.elsewhere, "diagnose_seconds": round(time.process_time() - began, 2), **provenance(),
    }  # fmt: skip


def _moves(report: Any) -> Row:
    """How far weighting moves means and spreads at most."""
    shifts = torch.cat([s.flatten() for s in report.shift.values()])
    ratios = torch.cat([r.flatten() for r in report.sd_ratio.values()])
    return {
        "shift": round(float(shifts.abs().max()), 4),
        "stretch": [round(float(ratios.min()), 4), round(float(ratios.max()), 4)],
    }


def _write(known: Known, row: Row) -> None:
    others = [r for r in _rows(known.name) if (r["way"], r["seed"]) != (row["way"], row["seed"])]
    rows = sorted([*others, row], key=lambda r: (list(WAYS).index(r["way"]), r["seed"]))
    settings = {"posterior": known.name}
    Record(
        kind="verdicts",
        key=row_key(known.name, settings),
        label=known.name,
        settings=settings,
        figures={"scalars": len(known.truth), "truth": known.source, "held_out": held_out(known.name), "rows": rows},
        provenance=provenance(),
        note="Each row was made by itself and says how.",
    ).write(RESULTS / f"{known.name}.json", overwrite=True)
    shown = ("way", "seed", "failed", "mean_error", "least_sd_ratio", "largest_sd_ratio", "verdict", "cpu_seconds")
    print(known.name, {key: row[key] for key in shown if key in row}, flush=True)


if __name__ == "__main__":
    exit_with("verdicts", lambda words: tyro.cli(Verdicts, args=words).run())
