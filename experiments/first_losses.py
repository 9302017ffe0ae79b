"""The first 100 losses of a VAE row and of an image row, beside those of the revision before the rooms were moved.

    VI_FLOWS_DATA=… python -m experiments.first_losses

``BEFORE`` (22 November) was run with the same settings and seed; its losses are in the record. The VAE's are to be
equal to the bit. The image flow's differ by one change of its definition (8b9847f): a floor under the sigmoid scale,
networks that see ``8 tanh(x/8)``, and other bounds of the split prior's deviations. With those three taken back (the
third run) they were equal to the bit, too, at the revision that the record names. Since then neighboring layers are
merged and networks keep their channels innermost in memory, which rounds differently: the losses are equal to five
digits. The last bits depend on the machine and on PyTorch's version.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.image_config import image_config
from vi_flows.flows import ConvFlow
from vi_flows.nn import image as image_networks
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.training import ImageTrainConfig, Run, Trainer, VAETrainConfig
from vi_flows.training.config import TrainConfig, config_to_dict
from vi_flows.transforms import coupling_maps
from vi_flows.vae import VAEConfig

BEFORE = "c138785"
HERE = Path(__file__).parent
COMMON = {"epochs": 10, "threads": 1, "seed": 3, "checkpoint_seconds": 1e9}
ROWS: dict[str, TrainConfig] = {
    "vae": VAETrainConfig(
        dataset="binarized_mnist", batch_size=250, learning_rate=4e-3, lr_warmup_steps=20, kl_warmup_epochs=2.0,
        ema_decay=0.99, clip_norm=100.0, vae=VAEConfig(batch_norm=True, flow=ConvFlow(4)), **COMMON,
    ),
    "image": ImageTrainConfig(
        dataset="mnist", batch_size=32, learning_rate=1e-3, **COMMON,
        image=image_config("glow", num_levels=2, num_steps=4, width=32, coupling="affine", scale="sigmoid"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to run."""

    steps: int = 100
    """Losses of each row."""
    record: Path = HERE / "results" / "first-losses.json"
    """Holds the losses of before, and gets those of now."""


@contextmanager
def as_before() -> Iterator[None]:
    """The image flows' definition before 8b9847f."""

    def standardize(_: object, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        mean, log_sd = maps[0], 8.0 * torch.tanh(maps[1] / 8.0)
        return (x * log_sd.exp() + mean, log_sd) if inverse else ((x - mean) * (-log_sd).exp(), -log_sd)

    with (
        mock.patch.dict(coupling_maps.SCALES, {"sigmoid": lambda g: F.logsigmoid(g + 2.0)}),
        mock.patch.object(image_networks, "squash", lambda x: x),
        mock.patch.object(coupling_maps.GaussianMap, "elementwise", standardize),
    ):
        yield


def first_losses(config: TrainConfig, steps: int) -> list[float]:
    """The losses of the first steps."""
    losses: list[float] = []

    def noted(step: Callable) -> Callable:
        def inner(*args: object) -> object:
            result = step(*args)
            losses.append(result.loss.item())
            return result

        return inner

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Run.create(Path(folder) / "run", config), progress=False)
        trainer.task.step = noted(trainer.task.step)
        trainer.start()
        trainer.fit(until=steps)
    return losses


def main(options: Options) -> None:
    """Train, compare, write the record."""
    clock = Clock()
    before: dict[str, list[float]] = Record.read(options.record).figures["before"]
    now = {name: first_losses(config, options.steps) for name, config in ROWS.items()}
    with as_before():
        now["image, as before 8b9847f"] = first_losses(ROWS["image"], options.steps)
    figures = {"before": before, "now": now, "equal_to_the_bit": {}, "largest_difference": {}}
    for name, losses in now.items():
        old = before[name.partition(",")[0]][: options.steps]
        figures["equal_to_the_bit"][name] = losses == old
        figures["largest_difference"][name] = max(map(abs, map(math.fsum, zip(losses, (-x for x in old), strict=True))))
        print(
            f"{name}: equal to the bit: {losses == old}, largest difference {figures['largest_difference'][name]:.3g}"
        )
    settings = {"before": BEFORE, "steps": options.steps, **{name: config_to_dict(c) for name, c in ROWS.items()}}
    label = "first losses, now and before the rooms were moved"
    key = row_key("first-losses", settings)
    note = "Nats a row and bits/dim; before: revision c138785, trained with these settings on the same machine."
    Record("first-losses", key, label, settings, figures, provenance(clock=clock), note=note).write(
        options.record, True
    )


if __name__ == "__main__":
    exit_with("first_losses", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
