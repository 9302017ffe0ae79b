"""The VAEs of the tables, from one typed description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from vi_flows.flows import conditional_conv_flow, conv_flow
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.settings import NonNegative, OneOf, Positive, check_settings
from vi_flows.transforms import Bijection, ConditionalBijection
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import GenerativeModel
from vi_flows.vae.vae import VAE

__all__ = ["ARCHITECTURES", "VAEConfig", "build_vae"]

ARCHITECTURES: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "g1": ((50,), ((200, 200),)),
    "g2": ((50, 100), ((100, 100), (200, 200))),
}
"""Latent sizes from the top down, and the widths of the network below each, of the ConvFlow paper's G1 and G2."""


@dataclass(frozen=True)
class VAEConfig:
    """A VAE and its flow posterior."""

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
    flow: Literal["none", "global", "amortized"] = "none"
    """ConvFlow on each latent: none, parameters shared by all rows, or parameters from the encoder."""
    num_blocks: Positive = 1
    """ConvBlocks K of each flow."""
    kernel_size: Positive = 5
    """Taps of each ConvFlow layer."""
    dilations: tuple[Positive, ...] | None = None
    """Of the layers of a block; default: powers of two up to the latent's size."""
    flow_activation: Literal["leaky_relu", "tanh", "sigmoid", "softplus", "elu"] = "leaky_relu"
    """ConvFlow's h."""
    flow_rank: Positive | None = 32
    """Size of the code between the encoder and amortised flow parameters."""
    amortize_weight: bool = False
    """Let the encoder change the kernels too, not only the gains and biases."""

    OF_THE_FLOW: ClassVar[tuple[str, ...]] = (
        "num_blocks", "kernel_size", "dilations", "flow_activation", "flow_rank", "amortize_weight",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)


def build_vae(config: VAEConfig, data_dim: int) -> VAE:
    """The VAE that ``config`` describes.

    Args:
        config: what to build.
        data_dim: pixels of a row.

    Raises:
        ValueError: the description is inconsistent (see the classes it builds).
    """
    default_latents, default_hidden = ARCHITECTURES[config.architecture]
    latents = default_latents if config.latent_dims is None else config.latent_dims
    hidden = default_hidden if config.hidden_dims is None else config.hidden_dims
    if len(latents) != len(default_latents):
        raise ValueError(f"{config.architecture} has {len(default_latents)} latents, got latent_dims={latents}")
    model = GenerativeModel(data_dim, latents, hidden, config.activation, config.batch_norm)

    def make_flow(dim: int, widths: tuple[int, ...]) -> Bijection | ConditionalBijection | None:
        kernel = dict(
            num_blocks=config.num_blocks,
            kernel_size=config.kernel_size,
            dilations=config.dilations,
            activation=config.flow_activation,
        )
        if config.flow == "none":
            return None
        if config.flow == "global":
            return conv_flow(dim, **kernel)
        context_dim = dim if config.num_extra_layers else widths[0]
        return conditional_conv_flow(
            dim, context_dim, **kernel, rank=config.flow_rank, amortize_weight=config.amortize_weight
        )

    flows = [make_flow(dim, widths) for dim, widths in zip(latents, hidden, strict=True)]
    guide = AmortizedGuide(
        data_dim, latents, hidden, flows, config.activation, config.batch_norm, config.num_extra_layers
    )
    return VAE(model, guide)
