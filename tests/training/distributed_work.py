"""What the tests of several processes train: in float64 where the model allows it. `torchrun` runs this file."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from vi_flows.autoregressive.config import Residual, pixel_config
from vi_flows.data import load
from vi_flows.data.base import ImageData
from vi_flows.distributions.image_config import image_config
from vi_flows.flows import ConvFlow
from vi_flows.objectives.step import OptimizerStep
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, Run, Trainer, VAETrainConfig, WaveTrainConfig
from vi_flows.training.distributed import joined
from vi_flows.training.tasks.pixel_vae import PixelVAETrainConfig
from vi_flows.training.tasks.wave import WaveConfig
from vi_flows.vae import VAEConfig

# 1297 images: the last minibatch of an epoch has one, fewer than there are processes.
# With batch normalisation it has two, one for each process.
COMMON = {"batch_size": 324, "epochs": 2, "threads": 1, "learning_rate": 1e-2, "seed": 3, "ema_decay": 0.9}
NORMED = COMMON | {"batch_size": 259}
FLOW = VAEConfig(latent_dims=(4,), hidden_dims=((16,),), flow=ConvFlow(2, 3, activation="tanh"), batch_norm=True)
REAL_NVP = {"num_levels": 1, "num_couplings": 1, "num_final": 1, "num_blocks": 1, "width": 6, "norm": "batch"}
FLOAT64 = {
    "vae": VAETrainConfig(vae=FLOW, objective="iwae", num_particles=3, kl_warmup_epochs=1, clip_norm=5.0, **NORMED),
    "dreg": VAETrainConfig(vae=FLOW, objective="dreg", num_particles=2, **NORMED),
    "g2": VAETrainConfig(vae=VAEConfig("g2", latent_dims=(3, 4), hidden_dims=((8,), (16,))), **COMMON),
    "glow": ImageTrainConfig(image=image_config("glow", num_levels=1, num_steps=1, width=6), **COMMON),
    "learned noise": ImageTrainConfig(
        image=image_config("glow", num_levels=1, num_steps=1, width=6, dequantization="variational"), **COMMON
    ),
    "real_nvp": ImageTrainConfig(image=image_config("real_nvp", **REAL_NVP, checkpoint=True), **NORMED),
}
FLOAT32 = {
    "made": PixelTrainConfig(pixel=pixel_config("made", hidden_dims=(32,), num_masks=2, dropout=0.2), **COMMON),
    "pixel_vae": PixelVAETrainConfig(
        vae=VAEConfig(latent_dims=(2,), hidden_dims=((8,),)),
        decoder=Residual(width=4, num_blocks=1, first_kernel=3),
        **COMMON,
    ),
    "pixel_cnn": PixelTrainConfig(pixel=pixel_config("pixel_cnn", width=8, num_blocks=1), **COMMON),
}


def wave_config(recordings: Path) -> WaveTrainConfig:
    """Recordings differ in length, and so do the processes' parts."""
    wave = WaveConfig(width=8, skip_width=8, num_layers=3)
    return WaveTrainConfig(dataset=str(recordings), wave=wave, epochs=2, batch_size=5, threads=1, learning_rate=1e-2)


@dataclass(frozen=True)
class DoubleData(ImageData):
    """Means in float64, and so the draws that are compared with them."""

    def means(self, split):
        return super().means(split).double()


def train(folder, config, ranks, double):
    """A run in a new folder, from its start to its end."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64 if double else before)
        run = Run(folder, config)
        if double:
            run.data = DoubleData(**vars(load("digits")))
        ranks.from_first(lambda: Run.create(folder, config).folder)
        trainer = Trainer(run, progress=False, ranks=ranks)
        trainer.start()
        trainer.fit()
    finally:
        torch.set_default_dtype(before)


def train_all(folder, recordings, ranks, names):
    """Every case, each in a folder of its own."""
    for name, config in {**FLOAT64, **FLOAT32, "wave": wave_config(recordings)}.items():
        if name in names:
            train(folder / name, config, ranks, name in FLOAT64)


def one_nan(ranks):
    """What each process's policy hears, and the weight afterwards, where the last process alone has a NaN."""
    heard, weight = [], torch.nn.Parameter(torch.ones(()))
    step = OptimizerStep(torch.optim.SGD([weight], 0.5), heard.append, ranks=ranks)
    step(weight * (math.nan if ranks.rank == ranks.size - 1 else 1.0))
    step(weight * (1.0 + ranks.rank))  # the gradients are 1 and 2
    return ranks.gather((len(heard), weight.item()))


def thread_names():
    """Of all threads of this process, the libraries' own among them; none where the system doesn't say."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    with joined("cpu") as (ranks, _):
        found = one_nan(ranks)
        if ranks.first:
            Path(sys.argv[1]).mkdir(parents=True)
            (Path(sys.argv[1]) / "nan.json").write_text(json.dumps(found))
        train_all(Path(sys.argv[1]), Path(sys.argv[2]), ranks, sys.argv[3:])
    left = [name for name in thread_names() if "gloo" in name]
    assert not left, f"threads that would outlive the interpreter: {left}"
