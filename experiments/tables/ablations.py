"""Changes of the recipe: what each makes of the NLL of the validation images, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.tables.paired import paired_scores
from experiments.tables.stages import stages
from experiments.tables.vae_rows import RESULTS
from vi_flows.evaluation import PairedComparison, paired_bootstrap
from vi_flows.evaluation.nll import bootstrap_interval
from vi_flows.records import Record

__all__ = ["ABLATIONS", "Ablation", "ablation_table", "ablations_in"]

ABLATIONS = RESULTS / "vae" / "ablation"
NAME = re.compile(
    r"ablation-binarized_mnist-g1-(?P<model>plain|amortized-k4-tanh)-(?P<change>.+)-e(?P<epochs>[0-9]+)[0-9+]*-s[0-9]+"
)
BASE = "standard"


@dataclass(frozen=True)
class Ablation:
    """One change of the recipe; NLLs in nats of the same validation images as all others.

    Attributes:
        model: what was trained.
        change: of the recipe.
        record: of the run.
        nll: mean over the images that all records were scored on.
        interval: 95 % over those images.
        num_images: how many they are.
        below: nats below ``standard`` of the same model, epochs and seed, over all images that both were scored on;
            ``None`` where there is no such record or one of the two has no scores of single images.
    """

    model: str
    change: str
    record: Record
    nll: float
    interval: tuple[float, float]
    num_images: int
    below: PairedComparison | None

    @property
    def label(self) -> str:
        """``ema, 250 epochs``."""
        return f"{self.change}, {' + '.join(str(epochs) for epochs, _ in stages(self.record))} epochs"

    @property
    def seconds(self) -> float:
        """Of training, a finish's own: of the processor where that computes and they are counted, else of the clock."""
        provenance = self.record.provenance
        counted = "training_cpu_seconds" if self.device.startswith("cpu") else "training_seconds"
        return provenance.get(counted, provenance["training_seconds"])

    @property
    def device(self) -> str:
        """What trained."""
        return self.record.provenance["device"]


def ablations_in(folder: Path = ABLATIONS) -> list[Ablation]:
    """The records of a folder on common images, the plain VAE's first, then by NLL, best first.

    Args:
        folder: of the records.

    Raises:
        ValueError: a file is not named as an ablation's; the numbers of importance samples differ; a record of more
            images than another has no scores of single images, or is not of the first ones; or one and its
            ``standard`` were made with different data.
    """
    records: dict[Path, tuple[Record, dict[str, str]]] = {}
    for path in sorted(folder.glob("*.json")):
        named = NAME.fullmatch(path.stem)
        if named is None:
            raise ValueError(
                f"{path} has no name of an ablation, such as ablation-binarized_mnist-g1-plain-ema-e800-s0"
            )
        records[path] = Record.read(path), named.groupdict()
    samples = {record.figures["num_samples"]: path for path, (record, _) in records.items()}
    if len(samples) > 1:
        raise ValueError(f"{' and '.join(map(str, samples.values()))} have different numbers of importance samples")
    size = min((record.figures["num_rows"] for record, _ in records.values()), default=0)
    bases = {_first_run(name, record): record for record, name in records.values() if name["change"] == BASE}
    found = []
    for path, (record, name) in records.items():
        nll, interval = _of_first(path, record, size)
        base = bases.get(_first_run(name, record))
        below = _below(base, record) if base is not None and name["change"] != BASE else None
        found.append(Ablation(name["model"], name["change"], record, nll, interval, size, below))
    return sorted(found, key=lambda each: (each.model != "plain", each.nll))


def _first_run(name: dict[str, str], record: Record) -> tuple[str, str, int]:
    """Model, epochs and seed of the run from fresh weights: what a recipe and its finish share."""
    return name["model"], name["epochs"], record.settings["seed"]


def _of_first(path: Path, record: Record, size: int) -> tuple[float, tuple[float, float]]:
    if "image" in record.scores:
        raise ValueError(f"{path} is of images spread over all, not of the first {size}")
    if record.figures["num_rows"] == size:
        low, high = record.figures["interval"]
        return record.figures["nll"], (low, high)
    if not record.scores:
        raise ValueError(f"{path} has no scores of single images, to be compared on the first {size}")
    scores = torch.from_numpy(record.scores["nll"][:size].astype(np.float64))
    return scores.mean().item(), bootstrap_interval(scores)


def _below(base: Record, record: Record) -> PairedComparison | None:
    if not (base.scores and record.scores):
        return None
    ours, theirs = paired_scores(base, record, "nll")
    return paired_bootstrap(torch.from_numpy(ours), torch.from_numpy(theirs))


def ablation_table(rows: Sequence[Ablation]) -> str:
    """The table, in the order of the rows."""
    size = rows[0].num_images
    lines = [
        f"**Changes of the recipe** (binarized_mnist, G1; NLL of the first {size} validation images by "
        f"{rows[0].record.figures['num_samples']} samples, in nats)",
        "",
        "| model | recipe | NLL | below *standard* (images) | epochs | steps | training seconds, device |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(row.record), strict=True))
        below = "–"
        if row.below is not None:
            (low, high), images = row.below.interval, row.below.num_rows
            below = f"{row.below.difference:.2f}, {low:.2f} – {high:.2f} ({images})".replace("-", "−")
        lines.append(
            f"| {row.model} | {row.change}, seed {row.record.settings['seed']} | {row.nll:.2f} | {below} "
            f"| {epochs} | {steps} | {row.seconds:.0f}, {row.device} |"
        )
    return "\n".join(lines)
