"""Training once whole and once in two parts, which must end in the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vi_flows.training import Run, Trainer
from vi_flows.training.checkpoint import load_tensors


def check_same_in_parts(folder: Path, config: Any, steps: int) -> None:
    """Stop in the middle of an epoch, after ``steps``, save, resume from the files alone, and train to the end."""
    whole = Trainer(Run.create(folder / "whole", config), progress=False)
    whole.start()
    whole.fit()
    first = Trainer(Run.create(folder / "parts", config), progress=False)
    first.start()
    first.module.train()
    for batch in first.batches():
        first.take_step(batch)
        if first.state["step"] == steps:
            break
    first.save()
    assert first.state["step"] == steps < whole.state["step"]
    second = Trainer(Run.open(folder / "parts"), progress=False)
    second.resume()
    second.fit()
    one, other = (load_tensors(folder / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
