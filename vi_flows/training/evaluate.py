"""Evaluation of a finished run: the importance-sampled NLL or the bits/dim, and its record."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from vi_flows.records import Clock, Record, provenance
from vi_flows.training.config import check_device, config_to_dict
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
    paper_row: str | None = None,
) -> tuple[Record, Path]:
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
        record: file to write, or a folder for a file named by the run's key; default: the run's ``results`` folder.
        overwrite: replace an existing record.
        progress: show a bar.
        paper_row: the row of ``experiments/published.json`` whose number belongs beside the run's.

    Returns:
        The record and where it was written; the scores of the single images lie beside it.

    Raises:
        RunUnusableError: there are no such weights.
        RunError: there are no such images.
        RecordExistsError: the record is there already.
        ValueError: annealed importance sampling is asked of a run that is no VAE.
    """
    folder = run.folder / "results" if record is None else record
    parts = [run.key]
    parts += [] if split == "test" else [split]
    parts += [] if limit is None else [f"first{limit}"]
    path = folder if folder.suffix == ".json" else folder / ("-".join(parts) + ".json")
    device = run.config.device if device is None else device
    check_device(device)
    Record.refuse_to_replace(path, overwrite)  # before the minutes of work, not after
    here = Run(run.folder, replace(run.config, device=device))
    here.data = run.data
    task = here.build_task()
    trained = run.load_weights(task, weights)
    splits = run.data.split(run.config.protocol)
    pixels = {"test": splits.test, "valid": splits.valid}[split]
    if len(pixels) == 0:
        raise RunError(f"there are no {split} images under the {run.config.protocol} protocol")
    clock = Clock()
    found = task.evaluate(pixels, limit, num_samples, seed, progress, ais)
    settings = {
        **config_to_dict(run.config),
        "data_root": None,
        "start_from": None,
        "evaluation": {
            "num_samples": num_samples, "split": split, "weights": trained["weights"], "limit": limit, "seed": seed,
            "ais": None if ais is None else asdict(ais),
        },
    }  # fmt: skip
    made = Record(
        kind=run.config.kind,
        key=run.key,
        label=run.config.label,
        paper_row=paper_row,
        settings=settings,
        figures={**found.figures, "epoch_of_weights": trained["epoch"], "steps": trained["steps"]},
        scores={name: values.numpy() for name, values in found.scores.items()},
        provenance=provenance(
            device,
            clock,
            data_sha256=run.data.sha256,
            trained_at_revision=run.trained_at,
            started_from=run.started_from,
            training_seconds=round(trained["seconds"], 1),
            training_cpu_seconds=trained.get("cpu_seconds"),
        ),
    )
    made.write(path, overwrite)
    return made, path
