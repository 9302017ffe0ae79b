"""Result records: one JSON file a number, with everything that it depends on; none is overwritten silently."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from vi_flows.training.checkpoint import write_atomic
from vi_flows.training.config import config_to_dict
from vi_flows.training.run import Run, RunError, git_revision

__all__ = ["describe_device", "make_record", "provenance", "write_record"]


def describe_device(device: str) -> str:
    """What did the work, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def provenance(device: str = "cpu") -> dict[str, Any]:
    """What every record says of its making: device, git revision of the code and version of PyTorch."""
    return {"device": describe_device(device), "revision": git_revision(), "torch": torch.__version__}


def make_record(run: Run, trained: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The record of one evaluation.

    Args:
        run: what was evaluated.
        trained: bookkeeping of the weights, from :meth:`Run.load_weights`.
        result: the measured figures (``nll``, ``interval``, ``num_samples`` … in nats a row).
    """
    config = run.config
    return {
        "model": config.name,
        "label": config.label,
        "dataset": config.dataset,
        "protocol": config.protocol,
        **result,
        "epochs": config.epochs,
        "epoch_of_weights": trained["epoch"],
        "steps": trained["steps"],
        "weights": trained["weights"],
        "seed": config.seed,
        "seconds": round(trained["seconds"], 1),
        "data_sha256": run.data.sha256,
        "trained_at_revision": run.trained_at,
        "started_from": run.started_from,
        **provenance(config.device),
        "settings": config_to_dict(config) | {"data_root": None, "start_from": None},
    }


def write_record(path: Path, record: dict[str, Any], overwrite: bool = False) -> None:
    """Write a record.

    Raises:
        RunError: another record is there and ``overwrite`` was not asked for.
    """
    if path.exists() and not overwrite:
        raise RunError(f"{path} exists; give --overwrite to replace it, or another --record")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(record, indent=2) + "\n")
