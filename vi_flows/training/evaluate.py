"""Evaluation of a finished run: the importance-sampled NLL or the bits/dim, and its record."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from vi_flows.training.records import make_record, provenance, write_record
from vi_flows.training.run import Run, RunError
from vi_flows.vae import AISSettings

__all__ = ["evaluate_run"]


def evaluate_run(
    run: Run,
    num_samples: int | None = None,
    *,
    split: Literal["test", "valid"] = "test",
    weights: Literal["auto", "best", "last"] = "auto",
    limit: int | None = None,
    seed: int = 0,
    ais: AISSettings | None = None,
    device: str | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Estimate ``−log p(x)`` of the test images (bits/dim for image flows) and write the record.

    Args:
        run: a trained run.
        num_samples: importance samples an image (default 5000); for an image flow, draws of the noise (default 8).
        split: ``test``, or ``valid`` while choosing settings.
        weights: ``auto`` takes the protocol's: chosen by validation (clean) or last (paper).
        limit: only the first so many images; the record says so.
        seed: of the importance samples.
        ais: settings of annealed importance sampling, beside the importance samples of a VAE; ``None`` for none.
        device: where to evaluate; default: where the run was trained.
        record: file to write, or a folder for a file named after the model; default: the run's ``results`` folder.
        overwrite: replace an existing record.
        progress: show a bar.

    Returns:
        The record and where it was written.

    Raises:
        RunError: there are no such weights or rows, or the record exists.
        ValueError: annealed importance sampling is asked of a run that is no VAE.
    """
    folder = run.folder / "results" if record is None else record
    parts = [run.config.dataset, run.config.name, run.config.protocol, f"seed{run.config.seed}"]
    parts += [] if split == "test" else [split]
    parts += [] if limit is None else [f"first{limit}"]
    path = folder if folder.suffix == ".json" else folder / ("-".join(parts) + ".json")
    if path.exists() and not overwrite:  # before the minutes of work, not after
        raise RunError(f"{path} exists; give --overwrite to replace it, or another --record")
    device = run.config.device if device is None else device
    torch.empty(0, device=device)  # a device that is not there is named before anything is loaded
    task = Run(run.folder, replace(run.config, device=device)).build_task()
    trained = run.load_weights(task, weights)
    splits = run.data.split(run.config.protocol)
    pixels = {"test": splits.test, "valid": splits.valid}[split]
    if len(pixels) == 0:
        raise RunError(f"there are no {split} images under the {run.config.protocol} protocol")
    begun = time.monotonic()
    found = task.evaluate(pixels, limit, num_samples, seed, progress, ais)
    figures = found.figures | {"split": split, "evaluation_seconds": round(time.monotonic() - begun, 1)}
    made = make_record(run, trained, figures) | provenance(device)
    write_record(path, made, overwrite)
    return made, path
