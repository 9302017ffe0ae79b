"""The building block for local latents: a flow posterior whose parameters a network reads off the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ReshapeTransform

from vi_flows.flows import conditional_conv_flow
from vi_flows.guides.stick_breaking import to_support
from vi_flows.nn.precision import with_32_bits
from vi_flows.parameters import OwnName, check_stored
from vi_flows.settings import check_counts
from vi_flows.transforms import Bijection, Chain, ConditionalBijection

__all__ = ["AmortizedFlowGuide"]


class _RowAffine(Bijection):
    """``x = loc + exp(log_scale) ⊙ (z + N z)`` with one location, scale and strictly lower triangular ``N`` a row.

    Args:
        loc: ``batch shape + (d,)``.
        log_scale: likewise.
        mixing: ``N``, ``batch shape + (d, d)``; ``None`` for none.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, mixing: Tensor | None = None) -> None:
        super().__init__(event_dim=1)
        self.loc, self.log_scale, self.mixing = loc, log_scale, mixing

    @property
    def batch_shape(self) -> torch.Size:
        """That of the location: one map a row."""
        return self.loc.shape[:-1]

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixing is not None:
            x = x + (self.mixing @ x.unsqueeze(-1)).squeeze(-1)
        y = self.loc + self.log_scale.exp() * x
        return y, self.log_scale.sum(-1).expand(y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (y - self.loc) * (-self.log_scale).exp()
        if self.mixing is not None:
            mixing, columns = with_32_bits(self.mixing, x.unsqueeze(-1))
            solved = torch.linalg.solve_triangular(mixing, columns, upper=False, unitriangular=True)
            x = solved.squeeze(-1).to(x.dtype)
        return x, -self.log_scale.sum(-1).expand(x.shape[:-1])

    def _state_tensors(self) -> tuple[Tensor, ...]:
        return (self.loc, self.log_scale) if self.mixing is None else (self.loc, self.log_scale, self.mixing)


class AmortizedFlowGuide(OwnName):
    r"""``q(z | data)`` for one row of data: a network gives location, scale and the context of a flow.

    ``h = network(data)``; ``z = support map(loc(h) + exp(log_scale(h)) ⊙ f(ε; h))``, ``ε ~ N(0, I)``. The call
    returns a distribution, to be sampled in the *user's own plate*, with minibatches of any (changing) size::

        local = AmortizedFlowGuide(event_dim_in, latent_dim=2)

        def guide(x, index=None):
            pyro.module("local", local)
            with pyro.plate("data", N, subsample=index) as i:
                return {"z": pyro.sample("z", local(x[i]))}

    Global latents are left to an :class:`~vi_flows.guides.AutoConvFlow` of ``poutine.block(model, hide=["z"])``. Both
    go into one ``AutoGuideList(model, create_plates=…)``; there the local part enters ``guide.plates["data"]`` in place
    of a plate of its own.

    Args:
        context_dim: length of a row of data (after ``embed``, if given, of its output).
        latent_dim: dimensions of the local latent vector.
        hidden_dims: widths of the network (tanh).
        embed: applied to the data first: any module or function that gives rows of ``context_dim``.
        flow: a conditional bijection with ``condition(h)``, ``h`` of length ``hidden_dims[-1]``; default: an amortised
            ConvFlow of ``num_blocks`` blocks.
        num_blocks: of the default flow.
        activation: of the default flow.
        support: of the local latent; default: real vectors. A support of scalars acts on each entry.
        scalar: the site is a scalar in the plate (``dist.Normal(0, 1)`` and not ``….to_event(1)``); needs
            ``latent_dim`` 1.
        init_scale: initial standard deviation.
        affine: ``diagonal``, or ``full``: ``exp(log_scale(h)) ⊙ (I + N(h))`` in place of ``exp(log_scale(h))``, with
            a strictly lower triangular ``N``, which starts at zero.

    Raises:
        ValueError: an option is out of range, or ``scalar`` with more than one dimension.
    """

    def __init__(
        self,
        context_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (32, 32),
        embed: Callable[[Tensor], Tensor] | None = None,
        flow: ConditionalBijection | None = None,
        num_blocks: int = 2,
        activation: str = "tanh",
        support: constraints.Constraint = constraints.real,
        scalar: bool = False,
        init_scale: float = 0.1,
        affine: str = "diagonal",
    ) -> None:
        super().__init__()
        self.take_name()
        check_counts(1, context_dim=context_dim, latent_dim=latent_dim)
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims must name at least one width, of at least 1, got {tuple(hidden_dims)}")
        if scalar and latent_dim != 1:
            raise ValueError(f"a scalar site has latent_dim 1, got {latent_dim}")
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        if affine not in ("diagonal", "full"):
            raise ValueError(f"affine must be 'diagonal' or 'full', got {affine!r}")
        self.latent_dim, self.scalar, self.support = latent_dim, scalar, support
        self.context_dim = context_dim
        self.embed = embed
        layers: list[nn.Module] = []
        width = context_dim
        for hidden in hidden_dims:
            layers += [nn.Linear(width, hidden), nn.Tanh()]
            width = hidden
        self.network = nn.Sequential(*layers)
        num_mixing = latent_dim * (latent_dim - 1) // 2 if affine == "full" else 0
        self.head = nn.Linear(width, 2 * latent_dim + num_mixing)
        nn.init.zeros_(self.head.weight[latent_dim:])
        with torch.no_grad():
            self.head.bias[latent_dim : 2 * latent_dim] = torch.tensor(init_scale).log()
            self.head.bias[2 * latent_dim :] = 0.0
        if flow is None:
            flow = conditional_conv_flow(latent_dim, width, num_blocks, activation=activation)
        self.flow = flow

    def forward(self, data: Tensor) -> dist.TransformedDistribution:
        """The posterior of each row.

        Args:
            data: ``batch_shape + (context_dim,)`` (or what ``embed`` takes).

        Returns:
            A distribution of batch shape ``batch_shape`` and event shape ``(latent_dim,)``, or ``()`` if scalar.

        Raises:
            ValueError: the rows don't have ``context_dim`` entries.
        """
        check_stored(self._pyro_name, self)
        rows = data if self.embed is None else self.embed(data)
        if rows.dim() < 1 or rows.shape[-1] != self.context_dim:
            raise ValueError(f"expected rows of {self.context_dim} entries, got a tensor of {tuple(rows.shape)}")
        h = self.network(rows)
        loc, log_scale, below = self.head(h).tensor_split((self.latent_dim, 2 * self.latent_dim), -1)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        parts: list = [Chain([self.flow.condition(h), _RowAffine(loc, log_scale, self._mixing(below))])]
        if self.scalar:
            parts.append(ReshapeTransform(torch.Size([1]), torch.Size()))
        if self.support is not constraints.real:
            parts.append(to_support(self.support))
        return dist.TransformedDistribution(base, parts)

    def _mixing(self, below: Tensor) -> Tensor | None:
        if not below.shape[-1]:
            return None
        rows, columns = torch.tril_indices(self.latent_dim, self.latent_dim, offset=-1, device=below.device)
        empty = below.new_zeros(*below.shape[:-1], self.latent_dim, self.latent_dim)
        filled = empty.flatten(-2).index_copy(-1, rows * self.latent_dim + columns, below)
        return filled.unflatten(-1, (-1, self.latent_dim))
