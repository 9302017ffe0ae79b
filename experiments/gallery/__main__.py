"""Fit the gallery, or some of it, and write ``experiments/results/gallery-NAME.json``.

VI_FLOWS_DATA=… python -m experiments.gallery                       # everything
VI_FLOWS_DATA=… python -m experiments.gallery nile rats             # some posteriors
python -m experiments.gallery nile --guides AutoConvFlow --keep     # one guide's rows anew
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated

import torch
import tyro

from experiments.gallery import bnn, eight_schools, kidscore, logistic, nile, rats
from experiments.gallery.common import GUIDES, Budget, Posterior, describe, run_guide
from experiments.gallery.reference import Reference
from vi_flows.cli.outcome import exit_with
from vi_flows.records import Record, provenance, row_key

POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "eight_schools_noncentred": partial(eight_schools.posterior, eight_schools.noncentred),
    "eight_schools_centred": partial(eight_schools.posterior, eight_schools.centred),
    "kidscore": kidscore.posterior,
    "logistic": logistic.posterior,
    "nile": nile.posterior,
    "rats": rats.posterior,
    "bnn": bnn.posterior,
}


@dataclass(frozen=True)
class Gallery:
    """Compare guides with the truth."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Posteriors by name; default: all."""
    guides: tuple[str, ...] = tuple(GUIDES)
    """Guides by name."""
    keep: bool = False
    """Take the truth and the other guides' rows from the record that is there."""
    budget: Budget = field(default_factory=Budget)
    """The same for all guides."""

    def run(self) -> None:
        """Fit, print, write a record after every guide."""
        torch.set_num_threads(1)
        # Pyro says for each estimator that it guessed the nesting of plates.
        logging.getLogger("pyro").setLevel(logging.WARNING)
        for given, known in ((self.names, POSTERIORS), (self.guides, GUIDES)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        for name in self.names or tuple(POSTERIORS):
            self.run_posterior(POSTERIORS[name]())

    def run_posterior(self, posterior: Posterior) -> None:
        """One posterior's record."""
        if self.keep and posterior.path.exists():
            record = Record.read(posterior.path).figures
            reference = Reference(**{k: v for k, v in record["reference"].items() if k in Reference.__annotations__})
        else:
            reference = posterior.reference()
            record = {"reference": {**reference.to_dict(), **provenance()}, "rows": []}
        print(
            f"{posterior.name}: {reference.source}, {reference.num_draws} draws, R-hat ≤ {reference.max_r_hat:.3f}, "
            f"ESS ≥ {reference.min_ess:.0f}",
            flush=True,
        )
        for guide in self.guides:
            row = run_guide(posterior, guide, reference, self.budget)
            print(describe(row), flush=True)
            rows = [row, *(other for other in record["rows"] if other["guide"] != guide)]
            record["rows"] = sorted(rows, key=lambda r: list(GUIDES).index(r["guide"]))
            settings = {"posterior": posterior.name, **asdict(self.budget)}
            Record(
                kind="gallery",
                key=row_key(f"gallery-{posterior.name}", settings),
                label=posterior.title,
                settings=settings,
                figures=record,
                provenance=provenance(),
            ).write(posterior.path, overwrite=True)


if __name__ == "__main__":
    exit_with("gallery", lambda words: tyro.cli(Gallery, args=words).run())
