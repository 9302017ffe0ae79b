"""Train and evaluate rows of the VAE tables (MNIST and OMNIGLOT, G1 and G2), one record a row.

    python experiments/vae_table.py --rows g1-plain g1-global-k1 --epochs 150
    python experiments/vae_table.py --rows g1-plain --seeds 0 1 2 3 4 5 6 7 --stack 4 --jobs 2

Each row, seed and learning rate is one run under ``runs/vae_table``; a run that was stopped goes on where it was, and a
finished one is only evaluated. Runs that differ in their seeds can be trained as one stacked model (``--stack``), and
several runs or stacks in processes side by side, one thread each (``--jobs``). Records land in
``experiments/results/vae``; ``python experiments/render_tables.py`` puts them into the README.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vi_flows.flows import IAF, ConvFlow, Planar, Sylvester, VectorFlow
from vi_flows.training import Run, VAETrainConfig
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.side_by_side import run_jobs, stacks_of, train_stack
from vi_flows.vae import VAEConfig

RESULTS = Path(__file__).parent / "results" / "vae"
LEARNING_RATE = 4e-3


PEERS: dict[str, VectorFlow] = {
    "planar-16": Planar(16),
    "planar-80": Planar(80),
    "iaf-2": IAF(2),
    "iaf-4": IAF(4),
    "iaf-8": IAF(8),
    "sylvester-4": Sylvester(4),
    "sylvester-8": Sylvester(8, rank=32, num_reflections=32),
    "sylvester-householder-4": Sylvester(4, rank=100, num_reflections=8),
}
"""Other flows whose parameters come from the encoder, as in their papers: planar (Rezende & Mohamed 2015), IAF (Kingma
et al. 2016), Sylvester with an orthogonal or a Householder matrix (van den Berg et al. 2018)."""


def table_rows() -> dict[str, VAEConfig]:
    """Every model of the tables by name."""
    rows: dict[str, VAEConfig] = {}
    for architecture in ("g1", "g2"):
        plain = VAEConfig(architecture, batch_norm=True)
        rows[f"{architecture}-plain"] = plain
        for blocks in (1, 4, 8):
            rows[f"{architecture}-plus{blocks}"] = replace(plain, num_extra_layers=blocks)
        for blocks in (1, 2, 4, 8):
            rows[f"{architecture}-global-k{blocks}"] = replace(plain, flow=ConvFlow(blocks), amortized=False)
            rows[f"{architecture}-amortized-k{blocks}"] = replace(plain, flow=ConvFlow(blocks))
            smooth = ConvFlow(blocks, activation="tanh")  # whose log-determinant has no jumps
            rows[f"{architecture}-global-k{blocks}-tanh"] = replace(plain, flow=smooth, amortized=False)
            rows[f"{architecture}-amortized-k{blocks}-tanh"] = replace(plain, flow=smooth)
        for name, flow in PEERS.items():
            rows[f"{architecture}-{name}"] = replace(plain, flow=flow)
    return rows


@dataclass(frozen=True)
class VAETable:
    """Train and evaluate rows of the VAE tables."""

    rows: tuple[str, ...] = ("g1-plain", "g1-global-k1", "g1-global-k4", "g1-amortized-k1", "g1-amortized-k4")
    """Rows by name: (g1|g2)-(plain | plus{1,4,8} | (global|amortized)-k{1,2,4,8}[-tanh] | planar-{16,80} | iaf-{2,4,8}
    | sylvester-{4,8} | sylvester-householder-4)."""
    dataset: str = "binarized_mnist"
    """binarized_mnist (static), mnist, omniglot28 or chardata."""
    protocol: Literal["clean", "paper"] = "clean"
    """clean: validation chooses the weights; paper: 60 000 images, last weights."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """Bound to maximise."""
    num_particles: int = 1
    """Draws an image."""
    epochs: int = 150
    """Passes over the training images (the paper: 2000)."""
    batch_size: int = 250
    """Images a step."""
    learning_rates: Annotated[tuple[float, ...], tyro.conf.arg(aliases=["--learning-rate"])] = (LEARNING_RATE,)
    """Peaks of Adam's cosine schedule, a run each."""
    kl_warmup_epochs: float = 20.0
    """Epochs of KL warm-up."""
    num_samples: int = 5000
    """Importance samples a test image."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Of everything, a run each."""
    stack: int = 1
    """Most seeds that are trained as one stacked model."""
    jobs: int = 1
    """Processes side by side, one thread each."""
    threads: int | None = None
    """CPU threads of a single process."""
    device: str = "cpu"
    """Torch device."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA."""
    runs: Path = Path("runs/vae_table")
    """Folder of the runs."""
    results: Path = RESULTS
    """Folder of the records."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        """Train what is not trained, then evaluate what has no record.

        Raises:
            ValueError: a row is unknown.
            ExceptionGroup: some runs failed; the others were finished.
        """
        known = table_rows()
        unknown = [row for row in self.rows if row not in known]
        if unknown:
            raise ValueError(f"unknown rows {', '.join(unknown)}; choose among {', '.join(known)}")
        runs: dict[Path, Run] = {}
        for row in self.rows:
            for rate in self.learning_rates:
                for seed in self.seeds:
                    name, config = self.settings(row, known[row], rate, seed)
                    record = self.results / f"{name}.json"
                    if record.exists():
                        print(f"{record} is there already")
                    else:
                        runs[record] = self.open(self.runs / name, config)
        progress = not self.quiet and self.jobs == 1
        stacks = [[run.folder for run in stack] for stack in stacks_of(runs.values(), self.stack)]
        run_jobs(train_stack, [(folders, self.data_root, progress) for folders in stacks], self.jobs, self.trained)
        scores = [(run.folder, self.data_root, self.num_samples, record, progress) for record, run in runs.items()]
        run_jobs(evaluate, scores, self.jobs, lambda job, line: print(line, flush=True))

    def settings(self, row: str, vae: VAEConfig, rate: float, seed: int) -> tuple[str, VAETrainConfig]:
        """The name and the settings of a run."""
        config = VAETrainConfig(
            dataset=self.dataset, data_root=self.data_root, protocol=self.protocol, vae=vae, objective=self.objective,
            num_particles=self.num_particles, epochs=self.epochs, batch_size=self.batch_size, learning_rate=rate,
            kl_warmup_epochs=self.kl_warmup_epochs, validate_every=5, valid_particles=5, seed=seed,
            threads=self.threads if self.jobs == 1 else 1, device=self.device,
        )  # fmt: skip
        bound = f"-iwae{self.num_particles}" if self.objective == "iwae" else ""
        bound += "" if rate == LEARNING_RATE else f"-lr{rate:g}"
        return f"{self.dataset}-{row}{bound}-{self.protocol}-e{self.epochs}-s{seed}", config

    def open(self, folder: Path, config: VAETrainConfig) -> Run:
        """The run in a folder, new or as it was stopped."""
        return Run.open_or_create(folder, config)

    def trained(self, job: tuple, states: list[dict[str, Any]]) -> None:
        """Say which runs are ready."""
        for folder, state in zip(job[0], states, strict=True):
            print(f"{folder}: {state['step']} steps in {state['seconds']:.0f} s", flush=True)


def evaluate(folder: Path, data_root: Path | None, num_samples: int, record: Path, progress: bool) -> str:
    """Write a run's record; the figures for people."""
    written, path = evaluate_run(Run.open(folder, data_root), num_samples, record=record, progress=progress)
    figures = written.figures
    low, high = figures["interval"]
    return f"{folder.name}: NLL {figures['nll']:.3f} [{low:.3f}, {high:.3f}], ELBO {figures['elbo']:.3f}: {path}"


if __name__ == "__main__":
    tyro.cli(VAETable).run()
