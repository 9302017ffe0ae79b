"""The rows of the VAE tables as typed settings: what the ConvFlow paper printed, and ours beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from vi_flows.flows import IAF, MAF, ConvFlow, Planar, Sylvester
from vi_flows.training.config import DataProtocol
from vi_flows.training.tasks.vae import VAETrainConfig
from vi_flows.vae import VAEConfig

__all__ = ["DATASETS", "RECIPES", "Row", "matching_rows", "table_rows"]

Architecture = Literal["g1", "g2"]

DATASETS = ("binarized_mnist", "omniglot28", "chardata", "digits")
"""Static MNIST and OMNIGLOT are the tables, the latter also as the papers' own file where that is at hand (chardata);
the digits that come with the package are there to try the runner out."""

RECIPES: dict[str, VAETrainConfig] = {
    "standard": VAETrainConfig(
        vae=VAEConfig(batch_norm=True), batch_size=500, learning_rate=6e-3, schedule="cosine", epochs=1000,
        kl_warmup_epochs=40, validate_every=5, valid_particles=5,
    ),
    "dreg": VAETrainConfig(
        vae=VAEConfig(batch_norm=True), batch_size=500, learning_rate=6e-3, schedule="cosine", epochs=1000,
        kl_warmup_epochs=40, objective="dreg", num_particles=5, validate_every=5, valid_particles=50,
    ),
    "iwae": VAETrainConfig(
        vae=VAEConfig(batch_norm=True), batch_size=500, learning_rate=6e-3, schedule="cosine", epochs=1000,
        kl_warmup_epochs=40, objective="iwae", num_particles=5, validate_every=5, valid_particles=50,
    ),
    "finish": VAETrainConfig(
        vae=VAEConfig(batch_norm=True), batch_size=500, learning_rate=1.5e-3, schedule="cosine", epochs=80,
        objective="iwae", num_particles=50, validate_every=2, valid_particles=50,
    ),
}  # fmt: skip
"""How rows are trained, by name: the data set, protocol, architecture and flow of a row are put into one of these.

``standard`` trains by the ELBO from fresh weights, ``dreg`` by the doubly reparametrised gradient of IWAE with 5
particles, ``iwae`` by IWAE itself with as many; ``finish`` goes on from such a row's weights by IWAE with 50 particles.
"""


@dataclass(frozen=True)
class Row:
    """One row of a table; seeds, epochs and devices are the runner's.

    Attributes:
        model: its name within architecture, data set and protocol, such as ``amortized-k8-tanh``.
        recipe: name of its recipe.
        config: its settings, with seed 0, on the CPU.
        paper_row: the row of ``experiments/published.json`` whose number stands beside it; ``None`` where the paper has
            none.
        source: the row whose weights it starts from, of the same seed.
        change: what an ablation changes in the recipe; empty for the rows of the tables. Ablations see the validation
            images alone.
        is_of_epochs: whether the change is the number of epochs, so that no other can be asked for.
    """

    model: str
    recipe: str
    config: VAETrainConfig
    paper_row: str | None = None
    source: Row | None = None
    change: str = ""
    is_of_epochs: bool = False

    @property
    def name(self) -> str:
        """``binarized_mnist-g1-amortized-k8-tanh-clean``; of an ablation, ``ablation-binarized_mnist-g1-plain-ema``."""
        place = f"{self.config.dataset}-{self.config.vae.architecture}-{self.model}"
        return f"ablation-{place}-{self.change}" if self.change else f"{place}-{self.config.protocol}"

    def with_epochs(self, epochs: int) -> VAETrainConfig:
        """Its settings for another number of epochs, at which the schedule of draws has the same shares.

        Args:
            epochs: of the whole run.

        Raises:
            SettingsError: they are too few for the schedule.
        """
        ends = tuple(round(end * epochs / self.config.epochs) for end in self.config.particles_epochs)
        return replace(self.config, epochs=epochs, particles_epochs=ends)

    @property
    def split(self) -> Literal["test", "valid"]:
        """The images that it is evaluated on."""
        return "valid" if self.change else "test"


LEARNED_PRIOR = MAF(num_layers=4, hidden_dims=(256,))
"""Of the rows beyond the paper: scoring a latent is a pass a layer, whatever its size."""

WIDE_ENCODERS: dict[str, tuple[tuple[int, ...], ...]] = {"g1": ((500, 500),), "g2": ((300, 300), (500, 500))}
"""Of the rows beyond the paper, by architecture; the decoder keeps the paper's 200 (and 100) units."""


def _models(architecture: Architecture) -> Iterator[tuple[str, str | None, VAEConfig]]:
    """Name, row of the paper, and model of every row that is trained by the ELBO."""
    for model, paper_row, vae in _guides():
        yield model, paper_row, replace(vae, architecture=architecture)
    best = VAEConfig(architecture, flow=ConvFlow(num_blocks=8, activation="tanh"))
    encoder = WIDE_ENCODERS[architecture]
    yield f"{BEST}-prior", None, replace(best, prior=LEARNED_PRIOR)
    yield f"{BEST}-encoder", None, replace(best, encoder_dims=encoder)
    yield f"{BEST}-prior-encoder", None, replace(best, prior=LEARNED_PRIOR, encoder_dims=encoder)


def _guides() -> Iterator[tuple[str, str | None, VAEConfig]]:
    """Name, row of the paper, and guide of the models whose sizes and prior are the paper's."""
    yield "plain", "plain", VAEConfig()
    for layers in (1, 4, 8):
        yield f"plus{layers}", f"plus{layers}", VAEConfig(num_extra_layers=layers)
    for blocks in (1, 2, 4, 8):
        yield f"global-k{blocks}", f"k{blocks}", VAEConfig(flow=ConvFlow(num_blocks=blocks), amortized=False)
    for blocks in (1, 2, 4, 8):
        flow = ConvFlow(num_blocks=blocks, activation="tanh")
        yield f"amortized-k{blocks}-tanh", f"k{blocks}", VAEConfig(flow=flow)
    # Rezende and Mohamed's flow of 80 layers is the paper's VAE+NF.
    yield "planar16", None, VAEConfig(flow=Planar(num_layers=16))
    yield "planar80", "nf", VAEConfig(flow=Planar(num_layers=80))
    # The gate of IAF's paper: with scales up to e² the bound runs away at the recipe's learning rate.
    yield "iaf", None, VAEConfig(flow=IAF(scale="sigmoid"))
    yield "sylvester", None, VAEConfig(flow=Sylvester())


BEST = "amortized-k8-tanh"
"""The best model of the paper's sizes and prior."""

BEYOND = (f"{BEST}-prior", f"{BEST}-encoder", f"{BEST}-prior-encoder")
"""It with a learned prior, with a larger encoder, and with both."""

FINISHED: dict[str, str | None] = {
    "plain": "iwae50", "global-k8": "k8-iwae50", BEST: "k8-iwae50", **dict.fromkeys(BEYOND),
}  # fmt: skip
"""Models that are trained on by IWAE with 50 particles, and the rows of the paper for them."""

DIRECT = (BEST, *BEYOND)
"""Models that are also trained by IWAE from the start."""


def _has_number(paper_row: str | None, dataset: str, architecture: str) -> bool:
    """Whether the paper prints a number: none on the digits, and that of planar flows on MNIST's G2 alone."""
    return dataset != "digits" and (paper_row != "nf" or (dataset, architecture) == ("binarized_mnist", "g2"))


def _config(recipe: str, dataset: str, protocol: DataProtocol, vae: VAEConfig) -> VAETrainConfig:
    template = RECIPES[recipe]
    return replace(template, dataset=dataset, protocol=protocol, vae=replace(vae, batch_norm=template.vae.batch_norm))


def table_rows() -> dict[str, Row]:
    """Every row by its name: all models on G1 and G2, each data set and both protocols; then the ablations."""
    rows: list[Row] = []
    for dataset in DATASETS:
        for protocol in get_args(DataProtocol):
            for architecture in get_args(Architecture):
                for model, paper_row, built in _models(architecture):
                    printed = paper_row if _has_number(paper_row, dataset, architecture) else None
                    row = Row(model, "standard", _config("standard", dataset, protocol, built), printed)
                    rows.append(row)
                    if model in DIRECT:
                        recipe = "dreg" if architecture == "g1" else "iwae"  # two latents bias DReG
                        direct = Row(f"{model}-{recipe}5", recipe, _config(recipe, dataset, protocol, built))
                        config = _config("finish", dataset, protocol, built)
                        rows += [direct, Row(f"{direct.model}-iwae50", "finish", config, source=direct)]
                    if model in FINISHED:
                        config = _config("finish", dataset, protocol, built)
                        printed = FINISHED[model] if _has_number(FINISHED[model], dataset, architecture) else None
                        rows.append(Row(f"{model}-iwae50", "finish", config, printed, source=row))
    plain, flow = (f"binarized_mnist-g1-{model}-clean" for model in ("plain", "amortized-k4-tanh"))
    named = {row.name: row for row in rows}
    ablations = [row for name in (plain, flow) for row in ablations_of(named[name])]
    return named | {row.name: row for row in ablations}


CHANGES: dict[str, dict[str, Any]] = {
    "paper": dict(batch_size=100, learning_rate=5e-4, schedule="constant", kl_warmup_epochs=0),
    "rate-2e-3": dict(learning_rate=2e-3),
    "rate-4e-3": dict(learning_rate=4e-3),
    "rate-9e-3": dict(learning_rate=9e-3),
    "batch-100": dict(batch_size=100),
    "batch-250": dict(batch_size=250),
    "epochs-500": dict(epochs=500),
    "epochs-2000": dict(epochs=2000),
    "no-warmup": dict(kl_warmup_epochs=0),
    "warmup-200": dict(kl_warmup_epochs=200),
    "ema": dict(ema_decay=0.999),
    "decay-0.01": dict(weight_decay=0.01),
    "decay-0.1": dict(weight_decay=0.1),
    "redrawn-0.2": dict(redrawn=0.2),
    "stl": dict(objective="stl"),
    "iwae-1-5-50": dict(
        objective="iwae", particles_schedule=(1, 5, 50), particles_epochs=(880, 970), valid_particles=50
    ),
}
"""What the ablations change in ``standard``, one thing at a time but for ``paper``, the ConvFlow paper's own recipe."""

FINISH_CHANGES: dict[str, dict[str, Any]] = {
    "finish": {},
    "finish-dreg": dict(objective="dreg"),
    "finish-5": dict(num_particles=5),
    "finish-rate-3e-4": dict(learning_rate=3e-4),
    "finish-rate-3e-3": dict(learning_rate=3e-3),
    "finish-30": dict(epochs=30),
}
"""What they change in ``finish``."""


def ablations_of(row: Row) -> Iterator[Row]:
    """One row a change of the recipe, beside ``standard``, ``row``'s own; none has a number of the paper.

    Those of the finish go on from ``standard``, so that no run is trained twice.

    Args:
        row: of the recipe ``standard``.
    """
    standard = replace(row, paper_row=None, change="standard")
    yield standard
    for change, settings in CHANGES.items():
        config = replace(row.config, **settings)
        yield replace(standard, config=config, change=change, is_of_epochs="epochs" in settings)
    no_norm = replace(row.config, vae=replace(row.config.vae, batch_norm=False), learning_rate=1e-3)
    yield replace(standard, config=no_norm, change="no-batch-norm")
    dropout = replace(row.config, vae=replace(row.config.vae, dropout=0.1))
    yield replace(standard, config=dropout, change="dropout-0.1")
    finish = _config("finish", row.config.dataset, row.config.protocol, row.config.vae)
    for change, settings in FINISH_CHANGES.items():
        config = replace(finish, **settings)
        yield Row(row.model, "finish", config, source=standard, change=change, is_of_epochs="epochs" in settings)


def matching_rows(patterns: tuple[str, ...]) -> list[Row]:
    """The rows whose names match one of the patterns, in the tables' order.

    Args:
        patterns: names with the wildcards of a shell, such as ``binarized_mnist-g1-*-clean``.

    Raises:
        ValueError: a pattern matches no row.
    """
    rows = table_rows()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in rows):
            some = ", ".join(list(rows)[:3])
            raise ValueError(f"no row matches {pattern!r}; there are {len(rows)}, such as {some}")
    return [row for name, row in rows.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
