"""The amortised guide: a Gaussian encoder followed by a flow, on each latent."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from vi_flows.distributions import FlowNormal
from vi_flows.nn import MLP, GaussianHead
from vi_flows.nn.typed import ModuleDictOf, ModuleListOf
from vi_flows.parameters import register_module
from vi_flows.settings import check_counts
from vi_flows.transforms import Bijection, ConditionalBijection
from vi_flows.transforms.capabilities import outermost
from vi_flows.vae.model import data_plate, latent_names

__all__ = ["AmortizedGuide"]


class AmortizedGuide(nn.Module):
    r"""``q(z_L|x) q(z_{L−1}|z_L) … q(z_1|z_2)`` as a Pyro guide, mirrored to :class:`GenerativeModel`.

    Each factor is a diagonal Gaussian whose mean and log-variance come from a network of what is below it, pushed
    through a bijection: shared by all rows, or conditioned on the network's features (amortised).

    Args:
        data_dim: pixels ``D``.
        latent_dims: sizes from the top down, as for the model.
        hidden_dims: widths of the network *below* each latent, as for the model; here read from the data upwards.
        flows: for each latent, from the top down, a :class:`Bijection`, a :class:`ConditionalBijection` whose context
            is the network's last hidden layer, or ``None``; one ``None`` stands for none at all.
        activation: of the hidden layers.
        batch_norm: before each activation.
        num_extra_layers: the paper's VAE+: so many more deterministic layers, as wide as the latent, before each head.

    Raises:
        ValueError: the lists differ in length.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (50,),
        hidden_dims: Sequence[Sequence[int]] = ((200, 200),),
        flows: Sequence[Bijection | ConditionalBijection | None] | None = None,
        activation: str = "tanh",
        batch_norm: bool = False,
        num_extra_layers: int = 0,
    ) -> None:
        super().__init__()
        flows = [None] * len(latent_dims) if flows is None else list(flows)
        if not len(latent_dims) == len(hidden_dims) == len(flows):
            raise ValueError(f"{len(latent_dims)} latents, {len(hidden_dims)} lists of widths, {len(flows)} flows")
        self.latent_names = latent_names(len(latent_dims))
        self.data_dim, self.latent_dims = data_dim, tuple(latent_dims)
        below = [*latent_dims[1:], data_dim]
        self.networks = ModuleListOf(
            MLP(source, [*reversed(widths), *([dim] * num_extra_layers)], activation, batch_norm)
            for source, widths, dim in zip(below, hidden_dims, latent_dims, strict=True)
        )
        self.heads = ModuleListOf(
            GaussianHead(network.output_dim, dim) for network, dim in zip(self.networks, latent_dims, strict=True)
        )
        # By the latent's index: a latent without a flow has no entry.
        self.flows: ModuleDictOf[Bijection | ConditionalBijection] = ModuleDictOf(
            {str(index): flow for index, flow in enumerate(flows) if flow is not None}
        )

    def posterior(self, index: int, below: Tensor, validate_args: bool | None = None) -> FlowNormal:
        """``q(z_index | below)``, where ``below`` is the next latent, or ``x`` for the last one."""
        loc, log_scale, features = self.local(index, below)
        key = str(index)
        flow = self.flows[key].condition(features) if key in self.flows else None
        return FlowNormal(loc, log_scale, flow, validate_args)

    def local(self, index: int, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the networks say of ``q(z_index | below)``: mean, log-scale, and the features that its flow sees."""
        features = self.networks[index](below)
        loc, log_scale = self.heads[index](features)
        return loc, log_scale, features

    def rows(self, x: Tensor) -> Tensor:
        """Rows of data of any type in the parameters' one; what their values may be, the model knows."""
        return x.to(self.heads[-1].linear.weight.dtype)

    def forward(
        self, x: Tensor | None = None, *, size: int | None = None, dataset_size: int | None = None
    ) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments.

        Args:
            x: observed rows ``(B, D)``.
            size: ignored; there so that the model's arguments fit.
            dataset_size: rows that the minibatch stands for.

        Returns:
            The latents by site name.

        Raises:
            ValueError: ``x`` is missing or not ``(B, D)``.
        """
        if x is None or x.dim() != 2 or x.shape[-1] != self.data_dim:
            found = "nothing" if x is None else f"a tensor of shape {tuple(x.shape)}"
            raise ValueError(f"the guide needs rows of {self.data_dim} pixels, got {found}")
        register_module("amortized_guide", self)
        samples: dict[str, Tensor] = {}
        below = self.rows(x)
        with data_plate(x.shape[0], dataset_size):
            for index in reversed(range(len(self.latent_names))):
                name = self.latent_names[index]
                below = samples[name] = pyro.sample(name, self.posterior(index, below))
        return samples

    def sample_and_log_prob(self, x: Tensor, num_particles: int) -> tuple[list[Tensor], Tensor]:
        """``num_particles`` draws a row without a Pyro trace.

        Args:
            x: rows ``(B, D)``.
            num_particles: draws ``P`` a row.

        Returns:
            The latents from the top down, each ``(P, B, d)``, and ``log q`` of shape ``(P, B)``.

        Raises:
            ValueError: ``num_particles`` is less than 1, or see :meth:`rows`.
        """
        check_counts(1, num_particles=num_particles)
        latents: list[Tensor] = []
        log_q: Tensor | None = None
        below, sample_shape = self.rows(x), torch.Size([num_particles])
        for index in reversed(range(len(self.latent_names))):
            below, term = self.posterior(index, below, validate_args=False).rsample_and_log_prob(sample_shape)
            latents.insert(0, below)
            log_q = term if log_q is None else log_q + term
            sample_shape = torch.Size()
        assert log_q is not None  # there is at least one latent
        return latents, log_q

    def log_prob(self, x: Tensor, latents: Sequence[Tensor]) -> Tensor:
        """``log q(z_L|x) + … + log q(z_1|z_2)`` at any latents, ``(P, B)``.

        Args:
            x: rows ``(B, D)``.
            latents: from the top down, each ``(P, B, d)``.

        Raises:
            NotImplementedError: a flow has no inverse.
        """
        below = self.rows(x)
        total = below.new_zeros(())
        for index in reversed(range(len(self.latent_names))):
            total = total + self.posterior(index, below, validate_args=False).log_prob(latents[index])
            below = latents[index]
        return total

    def check_path_gradient(self) -> None:
        """Refuse flows for which the gradient through the draws alone is impossible or wrong.

        Raises:
            ValueError: a flow has no inverse, or a log-determinant that jumps.
        """
        for flow in outermost(self):
            if not flow.has_inverse:
                raise ValueError(
                    "stl and dreg score the draws a second time, which needs flows with an inverse, and "
                    f"{type(flow).__name__} has none; use elbo or iwae"
                )
            if not flow.continuous_log_det:
                raise ValueError(
                    "stl and dreg need flows with a continuous log-determinant, and that of a ConvFlow with leaky ReLU "
                    "jumps; use a smooth activation such as tanh, or elbo or iwae"
                )

    @property
    def has_inverse(self) -> bool:
        """Whether ``log q`` can be evaluated at any point, which takes the inverse of every flow."""
        return all(flow.has_inverse for flow in outermost(self))
