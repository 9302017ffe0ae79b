"""The main job in two minutes on real data: a VAE and a flow-augmented VAE on the embedded digits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from vi_flows.cli.runs import draw_samples
from vi_flows.flows import ConvFlow
from vi_flows.settings import Positive, Seed, check_settings
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run
from vi_flows.training.tasks.base import BinaryDrawingSettings
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETrainConfig
from vi_flows.vae import VAEConfig

__all__ = ["Demo"]

PLAIN = VAETrainConfig(
    dataset="digits",
    vae=VAEConfig(latent_dims=(4,), hidden_dims=((128, 128),)),
    epochs=200,
    batch_size=100,
    learning_rate=2e-3,
    kl_warmup_epochs=30,
    validate_every=2,
    valid_particles=10,
    threads=1,  # products this small are slower on two
)
MODELS: dict[str, VAEConfig] = {
    "VAE": PLAIN.vae,
    "VAE + ConvFlow K=4, global": replace(PLAIN.vae, flow=ConvFlow(4), amortized=False),
    "VAE + ConvFlow K=4, amortised": replace(PLAIN.vae, flow=ConvFlow(4)),
}


@dataclass(frozen=True)
class Demo:
    """Train a VAE and flow-augmented VAEs on the embedded digits, and print their ELBO and NLL."""

    out: Path = Path("runs/demo")
    """Folder of the runs, pictures and records; a new one."""
    epochs: Positive = PLAIN.epochs
    """Passes over the 1297 training images."""
    num_samples: Positive = 5000
    """Importance samples a test image."""
    seed: Seed = 0
    """Of everything."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> int:
        """Train, evaluate, draw; exit code 0."""
        check_settings(self)
        begun = time.monotonic()
        print(f"{'':30}  {'-ELBO':>7}  {'NLL':>7}  {'95 % interval':>16}  {'k-hat':>5}  {'train s':>7}")
        for index, (name, vae) in enumerate(MODELS.items()):
            config = replace(PLAIN, vae=vae, epochs=self.epochs, seed=self.seed)
            run = Run.create(self.out / f"{index}-{vae.name}", config)
            trainer = Trainer(run, progress=not self.quiet)
            trainer.start()
            state = trainer.fit()
            record, _ = evaluate_run(run, VAEEvaluationSettings(num_samples=self.num_samples), progress=not self.quiet)
            figures = record.figures
            low, high = figures["interval"]
            print(
                f"{name:30}  {-figures['elbo']:7.3f}  {figures['nll']:7.3f}  [{low:6.3f}, {high:6.3f}]"
                f"  {figures['median_k_hat']:5.2f}  {state['seconds']:7.1f}",
                flush=True,
            )
            draw_samples(run, run.folder, BinaryDrawingSettings(rows=8, columns=16))
        print(
            f"nats an image; {figures['num_rows']} test images of 8x8 pixels, binarised once; "
            f"{self.num_samples} samples.\nThe intervals are over images, which all models share: "
            "differences between models are surer than they look."
        )
        print(f"pictures and records: {self.out}/*/   total {time.monotonic() - begun:.0f} s")
        return 0
