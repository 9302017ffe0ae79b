"""Train and evaluate rows of the VAE tables (MNIST and OMNIGLOT, G1 and G2), one record a row.

    python experiments/vae_table.py --rows g1-plain g1-global-k1 --epochs 150

Each row is one run under ``runs/vae_table``; a run that was stopped goes on where it was, and a finished one is only
evaluated. Records land in ``experiments/results/vae``; ``python experiments/render_tables.py`` puts them into the
README.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from vi_flows.train import Run, TrainConfig, Trainer
from vi_flows.train.checkpoint import load_tensors
from vi_flows.train.evaluate import evaluate_run
from vi_flows.vae import VAEConfig

RESULTS = Path(__file__).parent / "results" / "vae"


def table_rows() -> dict[str, VAEConfig]:
    """Every model of the tables by name."""
    rows: dict[str, VAEConfig] = {}
    for architecture in ("g1", "g2"):
        plain = VAEConfig(architecture, batch_norm=True)
        rows[f"{architecture}-plain"] = plain
        for blocks in (1, 4, 8):
            rows[f"{architecture}-plus{blocks}"] = replace(plain, num_extra_layers=blocks)
        for flow in ("global", "amortized"):
            for blocks in (1, 2, 4, 8):
                rows[f"{architecture}-{flow}-k{blocks}"] = replace(plain, flow=flow, num_blocks=blocks)
    return rows


@dataclass(frozen=True)
class VAETable:
    """Train and evaluate rows of the VAE tables."""

    rows: tuple[str, ...] = ("g1-plain", "g1-global-k1", "g1-global-k4", "g1-amortized-k1", "g1-amortized-k4")
    """Rows by name: (g1|g2)-(plain | plus{1,4,8} | global-k{1,2,4,8} | amortized-k{1,2,4,8})."""
    dataset: str = "binarized_mnist"
    """binarized_mnist (static), mnist, omniglot28 or chardata."""
    protocol: Literal["clean", "paper"] = "clean"
    """clean: validation chooses the weights; paper: 60 000 images, last weights."""
    flow_activation: Literal["leaky_relu", "tanh", "elu"] = "leaky_relu"
    """ConvFlow's h: the paper's leaky_relu, or a smooth one, whose log-determinant has no jumps."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """Bound to maximise."""
    num_particles: int = 1
    """Draws an image."""
    epochs: int = 150
    """Passes over the training images (the paper: 2000)."""
    batch_size: int = 250
    """Images a step."""
    learning_rate: float = 4e-3
    """Peak of Adam's cosine schedule."""
    kl_warmup_epochs: float = 20.0
    """Epochs of KL warm-up."""
    num_samples: int = 5000
    """Importance samples a test image."""
    seed: int = 0
    """Of everything."""
    threads: int | None = None
    """CPU threads."""
    device: str = "cpu"
    """Torch device."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA."""
    runs: Path = Path("runs/vae_table")
    """Folder of the runs."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        """Do the rows in turn.

        Raises:
            ValueError: a row is unknown.
        """
        known = table_rows()
        unknown = [row for row in self.rows if row not in known]
        if unknown:
            raise ValueError(f"unknown rows {', '.join(unknown)}; choose among {', '.join(known)}")
        for row in self.rows:
            self.one(row, known[row])

    def one(self, row: str, vae: VAEConfig) -> None:
        if vae.flow != "none" and self.flow_activation != "leaky_relu":
            vae, row = replace(vae, flow_activation=self.flow_activation), f"{row}-{self.flow_activation}"
        config = TrainConfig(
            dataset=self.dataset, data_root=self.data_root, protocol=self.protocol, vae=vae, objective=self.objective,
            num_particles=self.num_particles, epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, kl_warmup_epochs=self.kl_warmup_epochs, validate_every=5,
            valid_particles=5, seed=self.seed, threads=self.threads, device=self.device,
        )  # fmt: skip
        bound = f"-iwae{self.num_particles}" if self.objective == "iwae" else ""
        name = f"{self.dataset}-{row}{bound}-{self.protocol}-e{self.epochs}-s{self.seed}"
        record = RESULTS / f"{name}.json"
        if record.exists():
            print(f"{record} is there already")
            return
        folder = self.runs / name
        if (folder / "config.json").exists():
            run = Run.open(folder, self.data_root)
            run.check_same_settings(config)
        else:
            run = Run.create(folder, config)
        checkpoint = folder / "checkpoint.safetensors"
        if not (checkpoint.exists() and load_tensors(checkpoint)[1]["finished"]):
            trainer = Trainer(run, progress=not self.quiet)
            trainer.resume()
            trainer.fit()
        result, path = evaluate_run(run, self.num_samples, record=record, progress=not self.quiet)
        low, high = result["interval"]
        print(f"{row}: NLL {result['nll']:.3f} [{low:.3f}, {high:.3f}], ELBO {result['elbo']:.3f}: {path}", flush=True)


if __name__ == "__main__":
    tyro.cli(VAETable).run()
