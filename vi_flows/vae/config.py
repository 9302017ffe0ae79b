"""The VAEs of the tables, from one typed description."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Union

import tyro

from vi_flows.flows import FLOWS, VectorFlow, flow_from_words, flow_in_words
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.settings import (
    LATER,
    Bounds,
    NonNegative,
    OneOf,
    Positive,
    SettingsError,
    check_counts,
    check_settings,
    check_types,
)
from vi_flows.transforms import Bijection
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import GenerativeModel
from vi_flows.vae.vae import VAE

__all__ = ["ARCHITECTURES", "VAEConfig", "VAEParts", "build_vae", "vae_parts"]

ARCHITECTURES: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "g1": ((50,), ((200, 200),)),
    "g2": ((50, 100), ((100, 100), (200, 200))),
}
"""Latent sizes from the top down, and the widths of the network below each, of the ConvFlow paper's G1 and G2."""

if TYPE_CHECKING:
    FlowChoice = VectorFlow | None
    PriorChoice = VectorFlow | None
else:
    # One of the registry: its name and its settings end the command line (`… planar --num-layers 16`).
    FlowChoice = Union[  # noqa: UP007
        tuple(
            Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)]
            for name, kind in [*FLOWS.items(), ("none", None)]
        )
    ]
    # The end of the line is taken: this one is a word, with its settings in brackets.
    PriorChoice = Annotated[
        Union[(*FLOWS.values(), None)],
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOW",
            instance_from_str=lambda words: flow_from_words(words[0]),
            is_instance=lambda value: value is None or isinstance(value, VectorFlow),
            str_from_instance=lambda flow: [flow_in_words(flow)],
        ),
    ]


@dataclass(frozen=True)
class VAEConfig:
    """A VAE, its flow posterior, and its learned prior where it has one.

    Raises:
        ValueError: a setting is of another type, out of its bounds, or without use: ``amortized`` where there is no
            flow, or a flow's setting for contexts where it has none. Whether the prior's density can be followed by
            gradients, :func:`build_vae` sees.
    """

    architecture: Literal["g1", "g2"] = "g1"
    """One (g1) or two (g2) stochastic layers."""
    latent_dims: tuple[Positive, ...] | None = None
    """Latent sizes from the top down; default: the architecture's."""
    hidden_dims: tuple[tuple[Positive, ...], ...] | None = None
    """Widths of the networks below each latent; default: the architecture's."""
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "tanh"
    """Of the hidden layers."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""
    num_extra_layers: NonNegative = 0
    """More deterministic encoder layers before each head (the paper's VAE+)."""
    flow: FlowChoice = None
    """Flow after the Gaussian on each latent, with its settings at the end of the line."""
    amortized: bool = True
    """The flow's parameters come from the encoder; otherwise all rows share them."""
    encoder_dims: tuple[tuple[Positive, ...], ...] | None = field(default=None, metadata=LATER)
    """Widths of the encoder below each latent, as hidden_dims from the latent downwards; default: the decoder's."""
    prior: PriorChoice = field(default=None, metadata=LATER)
    """Flow that makes the top latent's prior of N(0, I), learned with the model: a name, such as `maf`, or a name with
    settings, such as `real_nvp(6, hidden_dims=(256,))`. Its density is one pass for maf, real_nvp, nsf and nice, and
    as many as the latent has entries for iaf and spline."""
    dropout: Annotated[float, Bounds(least=0, below=1)] = field(default=0.0, metadata=LATER)
    """Share of the decoder's hidden units that a training step leaves out."""

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("latent_dims", "hidden_dims", "encoder_dims"):
            if getattr(self, name) == ():
                raise SettingsError(f"{name} must name at least one size; leave it out for the architecture's")
        for name in ("hidden_dims", "encoder_dims"):
            if () in (getattr(self, name) or ()):
                raise SettingsError(f"{name} must name at least one width below each latent, got {getattr(self, name)}")
        if self.prior is not None:
            self.prior.check_without_context()
        if self.amortized:
            return
        if self.flow is None:
            raise SettingsError("amortized says where a flow's parameters come from, and there is no flow")
        self.flow.check_without_context()

    @property
    def name(self) -> str:
        """For file names, what is not at its default: ``g1-z40-bn-conv_flow-amortized-k8-tanh``."""
        parts: list[str] = [self.architecture]
        if self.latent_dims is not None:
            parts.append("z" + "x".join(map(str, self.latent_dims)))
        if self.hidden_dims is not None:
            parts.append("h" + _joined(self.hidden_dims, "x", "_"))
        if self.encoder_dims is not None:
            parts.append("e" + _joined(self.encoder_dims, "x", "_"))
        parts += [] if self.activation == "tanh" else [self.activation]
        parts += ["bn"] if self.batch_norm else []
        if self.num_extra_layers:
            parts.append(f"plus{self.num_extra_layers}")
        if self.flow is not None:
            parts += [self.flow.name, "amortized" if self.amortized else "global", self.flow.key]
        if self.prior is not None:
            parts += ["prior", self.prior.name, self.prior.key]
        parts += [f"dropout{self.dropout:g}"] if self.dropout else []
        return "-".join(parts)

    @property
    def label(self) -> str:
        """For tables: ``VAE + ConvFlow (K = 8), amortized, encoder 500-500, prior MAF (4)``."""
        name = f"VAE+ ({self.num_extra_layers} layers)" if self.num_extra_layers else "VAE"
        parts = [name if self.flow is None else f"{name} + {self.flow.label()}"]
        parts += [] if self.flow is None else ["amortized" if self.amortized else "global"]
        parts += [] if self.encoder_dims is None else ["encoder " + _joined(self.encoder_dims, "-", " / ")]
        parts += [] if self.prior is None else [f"prior {self.prior.label()}"]
        parts += [f"dropout {self.dropout:g}"] if self.dropout else []
        return ", ".join(parts)


def _joined(lists: tuple[tuple[int, ...], ...], inner: str, outer: str) -> str:
    return outer.join(inner.join(map(str, widths)) for widths in lists)


@dataclass(frozen=True)
class VAEParts:
    """Sizes of a VAE with the architecture's defaults filled in.

    Attributes:
        config: what was asked for.
        data_dim: pixels of a row.
        latent_dims: from the top down.
        hidden_dims: widths of the decoder's networks below each latent.
        encoder_dims: … and of the encoder's.
    """

    config: VAEConfig
    data_dim: int
    latent_dims: tuple[int, ...]
    hidden_dims: tuple[tuple[int, ...], ...]
    encoder_dims: tuple[tuple[int, ...], ...]

    def prior(self) -> Bijection | None:
        """The flow of the top latent's prior."""
        return None if self.config.prior is None else self.config.prior.build(self.latent_dims[0])

    def guide(self) -> AmortizedGuide:
        """The amortised guide, with its flows; the flows' context is its networks' last hidden layer."""
        config = self.config
        sizes = list(zip(self.latent_dims, self.encoder_dims, strict=True))
        contexts = [dim if config.num_extra_layers else widths[0] for dim, widths in sizes]
        flows = [
            None if config.flow is None else config.flow.build(dim, context if config.amortized else None)
            for dim, context in zip(self.latent_dims, contexts, strict=True)
        ]
        return AmortizedGuide(
            self.data_dim, self.latent_dims, self.encoder_dims, flows,
            config.activation, config.batch_norm, config.num_extra_layers,
        )  # fmt: skip


def vae_parts(config: VAEConfig, data_dim: int) -> VAEParts:
    """The sizes that ``config`` stands for.

    Args:
        config: what to build.
        data_dim: pixels of a row.

    Raises:
        ValueError: another number of latents (or of lists of widths) than the architecture's, or ``data_dim`` is no
            size.
    """
    check_counts(1, data_dim=data_dim)
    check_types(VAEConfig, config=config)
    default_latents, default_hidden = ARCHITECTURES[config.architecture]
    latents = default_latents if config.latent_dims is None else config.latent_dims
    hidden = default_hidden if config.hidden_dims is None else config.hidden_dims
    if len(latents) != len(default_latents):
        raise ValueError(f"{config.architecture} has {len(default_latents)} latents, got latent_dims={latents}")
    encoder = hidden if config.encoder_dims is None else config.encoder_dims
    for name, widths in (("hidden_dims", hidden), ("encoder_dims", encoder)):
        if len(widths) != len(latents):
            raise ValueError(f"{config.architecture} has {len(latents)} latents, got {name}={widths}")
    return VAEParts(config, operator.index(data_dim), latents, hidden, encoder)


def build_vae(config: VAEConfig, data_dim: int) -> VAE:
    """The VAE that ``config`` describes.

    Args:
        config: what to build.
        data_dim: pixels of a row.

    Raises:
        ValueError: the description is inconsistent (see the classes it builds).
    """
    parts = vae_parts(config, data_dim)
    model = GenerativeModel(
        parts.data_dim, parts.latent_dims, parts.hidden_dims, config.activation, config.batch_norm, parts.prior(),
        config.dropout,
    )  # fmt: skip
    return VAE(model, parts.guide())
