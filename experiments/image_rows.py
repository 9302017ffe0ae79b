"""Bits/dim of the image flows at equal budgets: one command a row, one that renders the table, one that draws.

    python experiments/image_rows.py run mnist-mconv --budget probe
    python experiments/image_rows.py score mnist-mconv --budget probe    # a run that was stopped, as it is
    python experiments/image_rows.py table
    python experiments/image_rows.py samples mnist --budget probe

A budget fixes the size of the networks, the number of epochs and the optimizer for all rows of a data set; widths are
chosen so that the numbers of parameters are close (but for NICE, whose fully connected networks have no small form).
``probe`` takes minutes a row on one core and only shows that the rows train; ``short`` takes about ten minutes a row;
``small`` takes hours; ``paper`` has the papers' sizes and is meant for a GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.image_config import ImageFlowConfig, image_config
from vi_flows.records import Record
from vi_flows.training import ImageTrainConfig, Run, Trainer
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.classes import in_short
from vi_flows.training.tasks.image import ImageDrawingSettings, ImageEvaluationSettings

RESULTS = Path(__file__).parent / "results"
CIFAR = "cifar10-jpeg.zip"

# Epochs, batch size and learning rate of each budget; those of `paper` are MCONV's and those of Nagar et al.
BUDGETS: dict[str, dict[str, Any]] = {
    "probe": {"epochs": 2, "batch_size": 128, "learning_rate": 1e-3, "clip_norm": 100.0, "lr_warmup_steps": 50},
    "short": {"epochs": 6, "batch_size": 128, "learning_rate": 2e-3, "clip_norm": 100.0, "lr_warmup_steps": 100},
    "small": {"epochs": 40, "batch_size": 128, "learning_rate": 1e-3, "clip_norm": 100.0, "lr_warmup_steps": 200},
    "paper": {"epochs": 500, "batch_size": 128, "learning_rate": 5e-4, "clip_norm": 100.0, "lr_warmup_steps": 1000},
}
# By row and budget, instead of the budget's: CIFAR's subset has 16 000 images instead of 50 000, and an epoch of
# MAF (10) takes 200 CPU seconds where the processor has no bfloat16, one of MAF (5) 100.
EPOCHS = {("cifar-*", "short"): 8, ("mnist-maf10-bounded", "small"): 24, ("mnist-maf5-bounded*", "small"): 24,
          ("digits-*", "small"): 120}  # fmt: skip

MASKED: dict[str, dict[str, Any]] = {
    "probe": {"num_levels": 2, "num_couplings": 2, "width": 16, "num_blocks": 1},
    "short": {"num_levels": 2, "num_couplings": 2, "width": 16, "num_blocks": 1},
    "small": {"num_levels": 2, "num_couplings": 4, "width": 32, "num_blocks": 2},
    "paper": {"num_levels": 2, "num_couplings": 8, "width": 64, "num_blocks": 8},
}
STEPS: dict[str, dict[str, Any]] = {
    "probe": {"num_levels": 2, "num_steps": 6, "width": 48},
    "short": {"num_levels": 2, "num_steps": 6, "width": 32},
    "small": {"num_levels": 2, "num_steps": 16, "width": 128},
    "paper": {"num_levels": 2, "num_steps": 32, "width": 512},
}
# Quad-coupling has three networks where the others have one: about 1/√3 of the width gives as many parameters.
QUAD_WIDTH = {"probe": 28, "short": 18, "small": 74, "paper": 296}
MAF = ("maf5", "maf10")
"""These have their paper's size at every budget."""
MAF_CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "pixel_spline": {"pixel_spline": 96},
    "tanh": {"scale": "tanh"},
    "bounded": {"scale": "tanh", "bounded": True},
}
"""What a row changes of the paper's MAF."""
LABELS = "-labels"
"""The end of a row's name whose flow is told the class."""
NICE = {"probe": (500,) * 2, "short": (500,) * 2, "small": (1000,) * 5, "paper": (1000,) * 5}


def row_config(model: str, budget: str, dataset: str = "mnist", mixed_precision: bool = True) -> ImageFlowConfig:
    """The flow of a row; ``mixed_precision`` is for MAFs, the only ones with large products."""
    model = model.removesuffix(LABELS)
    if model == "nice":
        return image_config("nice", num_couplings=4, hidden_dims=NICE[budget], base="logistic")
    if model == "real_nvp":
        return image_config("real_nvp", num_final=0, **MASKED[budget])
    flow, _, coupling = model.partition("-")
    if flow in MAF:
        config = image_config(f"{flow}-mnist", mixed_precision=mixed_precision, **MAF_CHANGES[coupling])
        narrow = replace(config.flow, hidden_dims=(256,))  # 64 pixels have no use for the paper's 1024 units
        return replace(config, flow=narrow) if dataset == "digits" else config
    if flow == "mconv":
        return image_config("mconv", filter=coupling or "cepstrum", **MASKED[budget])
    steps = dict(STEPS[budget])
    if dataset == CIFAR:
        steps |= {"num_levels": 3, "num_steps": 4}  # table 3 of Nagar et al.: D = 4
    if coupling == "quad":
        steps["width"] = QUAD_WIDTH[budget]
    return image_config(flow, coupling=coupling or "affine", **steps)


def row_budget(row: str, budget: str) -> dict[str, Any]:
    """Epochs and optimizer of a row."""
    found = dict(BUDGETS[budget])
    for (pattern, name), epochs in EPOCHS.items():
        if name == budget and fnmatchcase(row, pattern):
            found["epochs"] = epochs
    return found


MODELS = (
    "nice", "real_nvp", "mconv", "mconv-kernel", "mconv-cosine", "glow", "inv_conv3x3", "inv_conv3x3-quad", "emerging",
    "emerging-quad", "maf5", "maf5-pixel_spline", "maf10", "maf10-pixel_spline", "maf10-tanh",
    "maf10-bounded", "maf5-bounded-labels",
)  # fmt: skip
ROWS = {
    **{f"mnist-{model}": (model, "mnist") for model in MODELS},
    **{f"digits-{model}": (model, "digits") for model in ("maf5-bounded", "maf5-bounded-labels")},
    **{f"cifar-{model}": (model, CIFAR) for model in ("glow", "emerging", "inv_conv3x3", "inv_conv3x3-quad")},
}
_PAPERS = json.loads(RESULTS.with_name("published.json").read_text(encoding="utf-8"))
PUBLISHED: dict[str, float] = _PAPERS["image"]["rows"]
"""Bits/dim in the papers. The subset of the `cifar` rows is no published benchmark."""


@dataclass(frozen=True)
class ScoreRow:
    """Evaluate and record one row as far as it is trained; its record says how many steps that are."""

    row: tyro.conf.Positional[str]
    """Row by name, such as mnist-mconv; an unknown one lists them."""
    budget: Literal["probe", "short", "small", "paper"] = "small"
    """Size and training time."""
    runs: Path = Path("runs")
    """Folder of the training runs."""
    results: Path = RESULTS
    """Folder of the records."""
    data_root: Path | None = None
    """Folder with the data files."""
    num_draws: int = 8
    """Draws of the dequantisation noise a test image."""
    seed: int = 0
    """Of the run."""

    def check_row(self) -> None:
        """End the command where there is no such row."""
        if self.row not in ROWS:
            raise ValueError(f"unknown row {self.row!r}; choose one of {', '.join(ROWS)}")

    @property
    def stem(self) -> str:
        """``mnist-mconv-small-seed0``, of the run's folder and of its record."""
        return f"{self.row}-{self.budget}-seed{self.seed}"

    def run(self) -> None:
        """Score the run in the folder.

        Raises:
            RunError: there is none, or it has no weights yet.
        """
        self.check_row()
        self.score(Run.open(self.runs / self.stem, self.data_root))

    def score(self, run: Run) -> None:
        """Score the test images by the weights that validation chose, and write the record."""
        # mnist-maf10-bounded is mnist-maf10 in the paper; what is told the class is no row of its table.
        paper_row = "" if self.row.endswith(LABELS) else "-".join(self.row.split("-")[:2])
        record, path = evaluate_run(
            run,
            ImageEvaluationSettings(num_samples=self.num_draws),
            record=self.results / f"image-{self.stem}.json",
            overwrite=True,
            paper_row=paper_row if paper_row in PUBLISHED else None,
        )
        print(f"{self.row}: {record.figures['bits_per_dim']:.4f} bits/dim; {path}")


@dataclass(frozen=True)
class RunRow(ScoreRow):
    """Train, evaluate and record one row (a killed one goes on where it stopped)."""

    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """CPU threads."""
    mixed_precision: bool = True
    """Of MAFs: products in bfloat16; four times slower where the processor has no instructions for them."""

    def run(self) -> None:
        """Train and evaluate."""
        self.check_row()
        model, dataset = ROWS[self.row]
        config = ImageTrainConfig(
            dataset=dataset, data_root=self.data_root, protocol="clean",
            image=row_config(model, self.budget, dataset, self.mixed_precision), schedule="cosine",
            seed=self.seed, device=self.device, threads=self.threads, labels=model.endswith(LABELS),
            **row_budget(self.row, self.budget),
        )  # fmt: skip
        if self.budget == "paper":
            config = replace(config, image=replace(config.image, checkpoint=True), protocol="paper")
        trainer = Trainer(Run.open_or_create(self.runs / self.stem, config))
        trainer.resume()
        trainer.fit()
        self.score(trainer.run)


def markdown_table(results: Path, dataset: str) -> str:
    """The table of a data set's records, best first, each row at the largest budget it was run with, all its seeds.

    Args:
        results: folder of the records.
        dataset: ``mnist``, ``cifar`` or ``digits``, the first part of the rows' names.
    """
    lines = [
        "| row | budget | bits/dim | 95 % interval | paper | parameters | epochs, steps |",
        "|---|---|---|---|---|---|---|",
    ]
    records: dict[str, dict[str, tuple[str, Record]]] = {}
    for budget in BUDGETS:  # from the smallest to the largest
        found: dict[str, dict[str, tuple[str, Record]]] = {}
        for path in results.glob(f"image-{dataset}-*-{budget}-seed*.json"):
            row, _, seed = path.stem.removeprefix("image-").rpartition(f"-{budget}-seed")
            found.setdefault(row, {})[seed] = budget, Record.read(path)
        records |= found
    lines_of = [
        (f"{row}, seed {seed}" if len(seeds) > 1 else row, budget, record)
        for row, seeds in records.items()
        for seed, (budget, record) in seeds.items()
    ]
    for row, budget, record in sorted(lines_of, key=lambda line: line[2].figures["bits_per_dim"]):
        figures, epochs = record.figures, record.settings["epochs"]
        low, high = figures["interval"]
        lines.append(
            f"| {row}{in_short(figures)} | {budget} | {figures['bits_per_dim']:.4f} | {low:.4f} – {high:.4f} "
            f"| {PUBLISHED.get(record.paper_row, '–')} | {figures['parameters']:,} | {epochs}, {figures['steps']} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Table:
    """Print the tables of all records as Markdown."""

    results: Path = RESULTS
    """Folder of the records."""

    def run(self) -> None:
        """Render what is there; rows that were not run are left out."""
        print(*(markdown_table(self.results, name) for name in ("mnist", "cifar", "digits")), sep="\n\n")


@dataclass(frozen=True)
class Samples:
    """Draw samples from every trained row of a data set, a line each, under a line of training images."""

    dataset: tyro.conf.Positional[Literal["mnist", "cifar", "digits"]]
    """Rows of this data set."""
    budget: Literal["probe", "short", "small", "paper"] = "small"
    """Of the runs."""
    runs: Path = Path("runs")
    """Folder of the training runs."""
    figures: Path = RESULTS.parents[1] / "figures"
    """Folder of the picture, ``image-samples-DATASET-BUDGET.png``."""
    data_root: Path | None = None
    """Folder with the data files."""
    columns: int = 14
    """Samples a row."""
    temperature: float = 1.0
    """Scale of the base distribution; 1 is the model."""
    seed: int = 0
    """Of the draws and of the runs."""

    def run(self) -> None:
        """Write the picture; rows that were not trained are left out."""
        lines: dict[str, Tensor] = {}
        for row in ROWS:
            folder = self.runs / f"{row}-{self.budget}-seed{self.seed}"
            if row.startswith(f"{self.dataset}-") and (folder / "config.json").exists():
                run = Run.open(folder, self.data_root)
                task = run.build_task()
                run.load_weights(task)
                torch.manual_seed(self.seed)
                grids = task.pictures(ImageDrawingSettings(1, self.columns, self.temperature))
                lines.setdefault("training images", grids["data"])
                lines[row.partition("-")[2]] = grids["samples"]
        if not lines:
            raise ValueError(f"no {self.dataset} run of budget {self.budget} in {self.runs}; see `run`")
        print(draw_lines(lines, self.figures / f"image-samples-{self.dataset}-{self.budget}.png"))


def draw_lines(lines: dict[str, Tensor], path: Path) -> Path:
    """One line of images a name, named at the left."""
    import matplotlib.pyplot as plt

    columns, _, height, width = next(iter(lines.values())).shape
    size = (columns * 0.55 + 1.2, len(lines) * 0.55 * height / width)
    figure, axes = plt.subplots(len(lines), 1, figsize=size, squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], lines.items(), strict=True):
        strip = images.clamp(0, 1).permute(2, 0, 3, 1).reshape(height, columns * width, -1)
        axis.imshow(strip.numpy(), cmap="gray_r" if strip.shape[-1] == 1 else None, vmin=0, vmax=1, aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=1.2 / size[0], right=0.99, top=0.99, bottom=0.01, hspace=0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


Command = (
    Annotated[RunRow, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[ScoreRow, tyro.conf.subcommand("score", prefix_name=False)]
    | Annotated[Samples, tyro.conf.subcommand("samples", prefix_name=False)]
    | Annotated[Table, tyro.conf.subcommand("table", prefix_name=False)]
)

if __name__ == "__main__":
    exit_with("image_rows", lambda words: tyro.cli(Command, args=words).run())
