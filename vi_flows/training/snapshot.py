"""The tensors of a checkpoint: weights, average, optimizer and generators, taken and put back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vi_flows.training.checkpoint import (
    CheckpointError,
    first_not_finite,
    flatten_optimizer,
    load_module,
    restore_optimizer,
)

__all__ = ["check_snapshot", "restore", "snapshot"]

YOUNGER = ("cpu_seconds", "data_sha256", "settings", "budget")
"""Bookkeeping that the versions that wrote older checkpoints didn't know."""


def snapshot(
    module: nn.Module, average: Mapping[str, Tensor] | None, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Tensor]:
    """All that a resumed run needs besides its bookkeeping.

    Args:
        module: what is trained.
        average: its moving average, by name of the tensor; ``None`` where the run keeps none.
        optimizer: what updates it.
        device: whose generator counts, beside the CPU's.
    """
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in (average or {}).items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in flatten_optimizer(optimizer).items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore(
    tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
    averaged: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Put back what :func:`snapshot` took, and return the average (empty where there is none).

    Raises:
        CheckpointError: the weights or the optimizer's tensors are another model's, or an average is there and the run
            keeps none (``averaged``), or the other way round.
    """
    average = _strip(tensors, "ema.")
    if bool(average) != averaged:
        raise CheckpointError(
            f"the checkpoint has {'' if average else 'no '}averaged weights, and the run "
            f"{'keeps some' if averaged else 'keeps none'} (was ema_decay in its config.json changed?)"
        )
    try:
        load_module(module, _strip(tensors, "model."))
        restore_optimizer(optimizer, _strip(tensors, "optimizer."))
    except (RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit the model (was its config.json changed?): {error}"
        ) from error
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    return {name: tensor.to(device) for name, tensor in average.items()}


def check_snapshot(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kept: Mapping[str, Any], total_steps: int,
    device: torch.device,
) -> None:  # fmt: skip
    """Refuse a checkpoint that a run can't have written.

    Args:
        path: of the checkpoint.
        tensors: in it.
        state: its bookkeeping.
        kept: the bookkeeping of a new run, by whose names it must be.
        total_steps: of the run.
        device: of the run.

    Raises:
        CheckpointError: something is missing, the step lies outside of the run, or a weight is NaN or infinite.
    """
    missing = [name for name in kept if name not in state and name not in YOUNGER]
    generators = {"rng.cpu", f"rng.{device.type}"} & {"rng.cpu", "rng.cuda"}
    missing += sorted(generators - tensors.keys())
    if missing:
        raise CheckpointError(f"the checkpoint {path} is damaged (it has no {missing[0]})")
    step = state["step"]
    if type(step) is not int or not 0 <= step <= total_steps:
        raise CheckpointError(f"the checkpoint {path} is of step {step!r}; the run has {total_steps}")
    bad = first_not_finite((name, tensor) for name, tensor in tensors.items() if name.startswith("model."))
    if bad is not None:  # nothing can go on from it
        raise CheckpointError(f"the checkpoint {path} holds {bad} that is NaN or infinite")


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
