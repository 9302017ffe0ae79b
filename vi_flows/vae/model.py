"""The generative models: a Markov chain of Gaussian latents and Bernoulli pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from vi_flows.distributions import BernoulliLogits, FlowNormal, StandardNormal
from vi_flows.nn import MLP, GaussianHead
from vi_flows.nn.typed import ModuleListOf
from vi_flows.parameters import register_module
from vi_flows.recording import may_be_looked_at
from vi_flows.settings import check_counts
from vi_flows.transforms import Bijection

__all__ = ["GenerativeModel", "LatentChain", "check_prior_flow", "data_plate", "latent_names"]


def latent_names(num_layers: int) -> list[str]:
    """Site names from the top latent down: ``z`` alone, or ``z1`` (drawn from N(0, I)), ``z2``, … towards the data."""
    return ["z"] if num_layers == 1 else [f"z{index + 1}" for index in range(num_layers)]


def data_plate(size: int, dataset_size: int | None) -> IndepMessenger:
    """The plate over rows: of the minibatch's own size, or scaled to stand for ``dataset_size`` rows.

    Without ``dataset_size`` there is nothing to subsample, and the plate is Pyro's own without the site of its indices,
    which would cost every step two traced samples.

    Raises:
        ValueError: there are no rows, or the data set is smaller than the minibatch.
    """
    check_counts(1, **{"the number of rows": size})
    if dataset_size is None:
        return IndepMessenger("data", size)
    if dataset_size < size:
        raise ValueError(f"dataset_size={dataset_size} is less than the minibatch of {size}")
    return pyro.plate("data", dataset_size, subsample=torch.arange(size))


def check_prior_flow(flow: Bijection | None) -> None:
    """Refuse a prior whose density can't be followed by gradients.

    Args:
        flow: from a standard normal to the prior; ``None`` for none.

    Raises:
        ValueError: it has no inverse, or a log-determinant that jumps.
    """
    if flow is not None and not (flow.has_inverse and flow.continuous_log_det):
        raise ValueError(
            "a prior's flow needs an inverse and a continuous log-determinant: a ConvFlow one with a smooth "
            "activation such as tanh, or take maf or real_nvp"
        )


class LatentChain(nn.Module, ABC):
    r"""``p(x, z_1, …, z_L) = p(z_1) p(z_2|z_1) … p(x|z_L)`` as a Pyro model (eq. 16 and 17 of the ConvFlow paper).

    ``z_1 ~ N(0, I)``, or that pushed through a bijection which is learned along; every further latent is a diagonal
    Gaussian whose mean and log-variance come from a network of the one above. What rows of data are given the features
    of ``z_L``'s network, a subclass says by :meth:`likelihood`.

    Args:
        data_dim: pixels ``D``.
        latent_dims: sizes from the top down, ``(50,)`` for G1 and ``(50, 100)`` for G2.
        hidden_dims: widths of the network *below* each latent: ``((200, 200),)`` for G1,
            ``((100, 100), (200, 200))`` for G2.
        activation: of the hidden layers.
        batch_norm: before each activation.
        prior_flow: bijection from N(0, I) to the top latent's prior; ``None`` for N(0, I) itself. Each density of a
            latent is a pass of its inverse (Chen et al. 2017, *Variational Lossy Autoencoder*, section 3.2).
        dropout: share of the hidden units that training leaves out.

    Raises:
        ValueError: not one list of widths for each latent, or the prior's density can't be followed by gradients: its
            bijection has no inverse, or a log-determinant that jumps.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (50,),
        hidden_dims: Sequence[Sequence[int]] = ((200, 200),),
        activation: str = "tanh",
        batch_norm: bool = False,
        prior_flow: Bijection | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_prior_flow(prior_flow)
        if not latent_dims or len(latent_dims) != len(hidden_dims):
            raise ValueError(f"{len(latent_dims)} latents need as many lists of widths, got {len(hidden_dims)}")
        self.data_dim = data_dim
        self.latent_dims = tuple(latent_dims)
        self.latent_names = latent_names(len(latent_dims))
        self.prior_flow = prior_flow
        self.networks = ModuleListOf(
            MLP(dim, widths, activation, batch_norm, dropout)
            for dim, widths in zip(latent_dims, hidden_dims, strict=True)
        )
        self.heads = ModuleListOf(
            GaussianHead(network.output_dim, dim)
            for network, dim in zip(self.networks[:-1], latent_dims[1:], strict=True)
        )

    @abstractmethod
    def likelihood(self, z: Tensor, validate_args: bool | None = None) -> TorchDistribution:
        """``p(x | z_L)`` over rows, of batch shape ``(…, B)`` for ``z`` of shape ``(…, B, d)``."""

    @abstractmethod
    def set_output_bias(self, mean: Tensor) -> None:
        """Start at the data's mean image, where the likelihood has biases for it.

        Args:
            mean: ``(D,)``, each in [0, 1].
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """What to show of ``p(x | z_L)``, ``(…, B, D)`` in [0, 1]: the pixels' means, or a draw."""

    @property
    def origin(self) -> Tensor:
        """A tensor of the parameters' type, on their device."""
        return next(self.parameters())

    @property
    def numbers_a_point(self) -> int:
        """About how many numbers the likelihood of one row at one latent takes, its gradient included."""
        widths = [module.out_features for module in self.modules() if isinstance(module, nn.Linear)]
        # Some eight tensors of a row's pixels (logits, probabilities, their gradients), three of each hidden layer.
        return 5 * self.data_dim + 3 * sum(widths) + 12 * self.latent_size

    def prior(
        self, index: int, above: Tensor | None, size: int = 1, validate_args: bool | None = None
    ) -> TorchDistribution:
        """``p(z_index | z_{index−1})``, or for the top latent N(0, I), through its flow, over ``size`` rows."""
        if index == 0 and self.prior_flow is not None:
            zeros = self.origin.new_zeros(size, self.latent_dims[0])
            return FlowNormal(zeros, zeros, self.prior_flow, validate_args)
        if index == 0:
            return StandardNormal(self.latent_dims[0], (size,), like=self.origin, validate_args=validate_args)
        loc, log_scale = self.heads[index - 1](self.networks[index - 1](above))
        return FlowNormal(loc, log_scale, validate_args=validate_args)

    @property
    def latent_size(self) -> int:
        """Numbers in all latents of a row together."""
        return sum(self.latent_dims)

    def sample_latents(self, size: int) -> list[Tensor]:
        """One draw from the prior for each of ``size`` rows: the latents from the top down, each ``(size, d)``.

        Raises:
            ValueError: ``size`` is negative or no whole number.
        """
        check_counts(0, size=size)
        latents: list[Tensor] = []
        for index in range(len(self.latent_names)):
            latents.append(self.prior(index, latents[-1] if latents else None, size, validate_args=False).rsample())
        return latents

    def log_prior(self, latents: Sequence[Tensor]) -> Tensor:
        """``log p(z_1, …, z_L)`` of latents from the top down, each ``(…, B, d)``; shape ``(…, B)``."""
        total = self.prior(0, None, validate_args=False).log_prob(latents[0])
        for index, (above, z) in enumerate(pairwise(latents), start=1):
            total = total + self.prior(index, above, validate_args=False).log_prob(z)
        return total

    def rows(self, x: Tensor, look: bool = True) -> Tensor:
        """Rows of data as the networks take them: of the parameters' type, and none that no data can be.

        What runs without the argument checks of Pyro's distributions passes its rows through this.

        Args:
            x: rows ``(…, D)`` of any type.
            look: whether their values are looked at.

        Raises:
            ValueError: the last size is not ``D``, or see :meth:`check_values`.
        """
        if x.shape[-1:] != (self.data_dim,):
            raise ValueError(f"expected rows of {self.data_dim} pixels, got a tensor of shape {tuple(x.shape)}")
        x = x.to(self.origin.dtype)
        if look and x.numel():
            self.check_values(x)
        return x

    def check_values(self, x: Tensor) -> None:
        """Refuse rows outside of the likelihood's support; here it may be anything.

        Args:
            x: rows of the parameters' type, at least one.

        Raises:
            ValueError: a value is none that data can have.
        """

    def log_joint(self, x: Tensor, z: Tensor, look: bool = True) -> Tensor:
        """``log p(x, z)`` in nats, ``(…, B)``, differentiable in ``z``.

        Args:
            x: rows ``(B, D)``.
            z: all latents of a row side by side, from the top down, ``(…, B, latent_size)``.
            look: whether the rows' values are looked at; not where a sampler asks again and again for the same rows.

        Raises:
            ValueError: see :meth:`rows`.
        """
        x = self.rows(x, look and may_be_looked_at(x))
        latents = z.split(self.latent_dims, -1)
        return self.log_prior(latents) + self.likelihood(latents[-1], validate_args=False).log_prob(x)

    def log_joint_surrogate(self, x: Tensor, z: Tensor) -> Tensor:
        """Of another value than :meth:`log_joint`, maybe, but of the same gradient in ``z``, for less work."""
        return self.log_joint(x, z, look=False)

    def forward(self, x: Tensor | None = None, *, size: int | None = None, dataset_size: int | None = None) -> Tensor:
        """The Pyro model, rows in a plate called ``data``; sites ``z`` (or ``z1``, ``z2``, …) and ``x``.

        Args:
            x: observed rows ``(B, D)`` of any type, at least one; ``None`` to generate.
            size: rows to generate when ``x`` is ``None`` (default 1).
            dataset_size: rows that the minibatch stands for: its terms are scaled by ``dataset_size / B``.

        Returns:
            What :meth:`returned` makes of the likelihood and the rows.

        Raises:
            ValueError: ``x`` is not ``(B, D)``, or there are no rows.
        """
        if x is not None and (x.dim() != 2 or x.shape[-1] != self.data_dim):
            raise ValueError(f"expected rows of {self.data_dim} pixels, got a tensor of shape {tuple(x.shape)}")
        rows = (1 if size is None else size) if x is None else x.shape[0]
        register_module("generative_model", self)
        with data_plate(rows, dataset_size):
            z: Tensor | None = None
            for index, name in enumerate(self.latent_names):
                z = pyro.sample(name, self.prior(index, z, rows))
            assert z is not None  # there is at least one latent
            likelihood = self.likelihood(z)
            return self.returned(likelihood, pyro.sample("x", likelihood, obs=x))

    def returned(self, likelihood: TorchDistribution, x: Tensor) -> Tensor:
        """What the Pyro model returns: the rows ``x``, observed or drawn."""
        return x


class GenerativeModel(LatentChain):
    r"""The :class:`LatentChain` of binary data: ``x`` is Bernoulli with logits from a network of ``z_L``.

    G1 of the ConvFlow paper is L = 1, G2 is L = 2.

    Args:
        data_dim: pixels ``D``.
        latent_dims: see :class:`LatentChain`.
        hidden_dims: see :class:`LatentChain`.
        activation: of the hidden layers.
        batch_norm: before each activation.
        prior_flow: see :class:`LatentChain`.
        dropout: see :class:`LatentChain`.

    Raises:
        ValueError: see :class:`LatentChain`.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (50,),
        hidden_dims: Sequence[Sequence[int]] = ((200, 200),),
        activation: str = "tanh",
        batch_norm: bool = False,
        prior_flow: Bijection | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(data_dim, latent_dims, hidden_dims, activation, batch_norm, prior_flow, dropout)
        self.logits = nn.Linear(self.networks[-1].output_dim, data_dim)

    def set_output_bias(self, mean: Tensor) -> None:
        """Start at the data's mean image: output bias = logit(mean), kept within the logits of one in a thousand.

        Args:
            mean: ``(D,)``, each in [0, 1].
        """
        with torch.no_grad():
            self.logits.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

    @property
    def origin(self) -> Tensor:
        """See :class:`LatentChain`."""
        return self.logits.bias

    def likelihood(self, z: Tensor, validate_args: bool | None = None) -> BernoulliLogits:
        """``p(x | z_L)``."""
        return BernoulliLogits(self.logits(self.networks[-1](z)), validate_args)

    def decode(self, z: Tensor) -> Tensor:
        """The pixels' means."""
        return self.likelihood(z, validate_args=False).mean  # a check would read the device in recorded steps

    def check_values(self, x: Tensor) -> None:
        """See :class:`LatentChain`; pixels, or their means, lie in the unit interval."""
        low, high = (end.item() for end in x.aminmax())  # in one pass; a NaN is both ends
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"rows must be numbers in [0, 1], got some from {low:g} to {high:g}: divide grey values by their range"
            )

    def log_joint_surrogate(self, x: Tensor, z: Tensor) -> Tensor:
        """Of another value than :meth:`log_joint`, but of the same gradient in ``z``, for less work."""
        latents = z.split(self.latent_dims, -1)
        return self.log_prior(latents) + self.likelihood(latents[-1], validate_args=False).surrogate_log_prob(x)

    def returned(self, likelihood: TorchDistribution, x: Tensor) -> Tensor:
        """The pixels' logits, ``(…, B, D)``."""
        return likelihood.logits
