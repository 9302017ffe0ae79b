r"""MADE: an autoencoder whose masks make it autoregressive. Germain et al. 2015.

Inputs carry degrees ``1 … D`` (their places in the order), hidden units degrees between 1 and ``D − 1``. A hidden
unit sees units of the layer below whose degree is not greater than its own (paper, eq. 13); an output sees hidden
units, and by direct connections inputs, of smaller degree than its own (eq. 14).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from vi_flows.autoregressive.base import Autoregressive, check_dropout, log_mixture
from vi_flows.autoregressive.outputs import Output
from vi_flows.nn.masked import ContextBias, MaskedLinear, spread_degrees
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.nn.typed import ModuleListOf
from vi_flows.progress import progress_bar

__all__ = ["MADE"]


class MADE(Autoregressive):
    """Masked autoencoder over the flattened entries.

    With one mask the order is the natural one and the hidden degrees are evenly spread, unless it is to be drawn. With
    more, the orders and degrees are drawn from the seeds 0, 1, …, and training is order- and connectivity-agnostic:
    :meth:`training_params` goes round the masks, a step each, and the density is their equal mixture (paper, sections
    4.1 and 4.2); :meth:`params` is of the current mask, at first seed 0's. Generation computes a hidden unit when all
    that it sees is there, once.

    Args:
        event_shape: of one ``x``; its entries are flattened.
        output: family of the conditionals.
        hidden_dims: widths; an empty list needs ``direct``.
        activation: name, see :class:`~vi_flows.nn.MLP`.
        direct: whether inputs are connected to outputs directly too.
        context_dim: see :class:`Autoregressive`; the context reaches every layer, so that the first entry sees it.
        num_masks: masks to train with.
        dropout: share of each hidden layer's units that a training step leaves out.
        natural_order: of one mask; else its order and degrees are those of seed 0.

    Raises:
        ValueError: the activation is unknown, a width or ``num_masks`` is less than 1, there is no layer at all, or
            ``dropout`` is not in [0, 1).
    """

    order: Tensor
    orders: Tensor
    turn: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        output: Output,
        hidden_dims: Sequence[int] = (500,),
        activation: str = "relu",
        direct: bool = False,
        context_dim: int = 0,
        num_masks: int = 1,
        dropout: float = 0.0,
        natural_order: bool = True,
    ) -> None:
        super().__init__(event_shape, output, context_dim)
        check_dropout(dropout)
        if num_masks < 1:
            raise ValueError(f"num_masks must be at least 1, got {num_masks}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if any(width < 1 for width in hidden_dims):
            raise ValueError(f"hidden_dims must be at least 1, got {tuple(hidden_dims)}")
        if not hidden_dims and not direct:
            raise ValueError("a MADE without hidden layers needs direct=True")
        size = self.event_shape.numel()
        self.hidden_dims = tuple(hidden_dims)
        widths = [size, *hidden_dims]
        self.hidden = ModuleListOf(MaskedLinear(a, b) for a, b in itertools.pairwise(widths))
        self.hidden_context = ModuleListOf(ContextBias(context_dim, b) for b in hidden_dims)
        num_outputs = size * output.num_params
        self.last = ModuleListOf([MaskedLinear(widths[-1], num_outputs)] if hidden_dims else [])
        self.direct = ModuleListOf([MaskedLinear(size, num_outputs, bias=not hidden_dims)] if direct else [])
        self.last_context = ContextBias(context_dim, num_outputs)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("order", torch.arange(size))
        natural = self.order, [spread_degrees(width, size) for width in hidden_dims]
        drawn = num_masks > 1 or not natural_order
        members = [self._draw(seed) for seed in range(num_masks)] if drawn else [natural]
        # All masks' orders and degrees lie on the device: a training step makes its masks there.
        self.register_buffer("orders", torch.stack([order for order, _ in members]), persistent=False)
        for layer, degrees in enumerate(zip(*(degrees for _, degrees in members), strict=True)):
            self.register_buffer(f"degrees_{layer}", torch.stack(degrees), persistent=False)
        self.register_buffer("turn", torch.zeros(1, dtype=torch.long))
        self._set_masks(*self._member(self.turn))

    @property
    def num_masks(self) -> int:
        """Masks to train with."""
        return len(self.orders)

    @property
    def num_members(self) -> int:
        """See :attr:`Autoregressive.num_members`; one for each mask."""
        return self.num_masks

    def _member(self, index: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Order and hidden degrees of the mask ``index``, a tensor of one element so that nothing is read back."""
        degrees = [self.get_buffer(f"degrees_{layer}") for layer in range(len(self.hidden_dims))]
        return self.orders.index_select(0, index)[0], [degree.index_select(0, index)[0] for degree in degrees]

    def _layers(self) -> list[MaskedLinear]:
        """In the order of :meth:`_masks`."""
        return [*self.hidden, *self.last, *self.direct]

    def _masks(self, order: Tensor, hidden_degrees: Sequence[Tensor]) -> list[Tensor]:
        """Masks of all layers; entry ``order[i]`` of an event is the ``i``-th."""
        device = self.order.device
        inputs = torch.empty_like(order)
        inputs[order] = torch.arange(1, len(order) + 1, device=order.device)
        degrees = [inputs.to(device), *(degree.to(device) for degree in hidden_degrees)]
        outputs = degrees[0].repeat_interleave(self.output.num_params)
        masks = [above[:, None] >= below for below, above in itertools.pairwise(degrees)]
        masks += [outputs[:, None] > degrees[-1] for _ in self.last]
        return masks + [outputs[:, None] > degrees[0] for _ in self.direct]

    def _set_masks(self, order: Tensor, hidden_degrees: Sequence[Tensor]) -> None:
        masks = self._masks(order, hidden_degrees)
        self.order.copy_(order)
        for layer, mask in zip(self._layers(), masks, strict=True):
            layer.set_mask(mask)

    def _draw(self, seed: int) -> tuple[Tensor, list[Tensor]]:
        """An order and hidden degrees; each layer's are at least the smallest of the layer below."""
        generator = torch.Generator().manual_seed(seed)
        size = self.event_shape.numel()
        order = torch.randperm(size, generator=generator)
        degrees, low = [], 1
        for width in self.hidden_dims:
            degrees.append(torch.randint(low, max(1, size - 1) + 1, (width,), generator=generator))
            low = int(degrees[-1].min())
        return order, degrees

    def reorder(self, order: Tensor) -> None:
        """Take another order of the entries, with evenly spread hidden degrees.

        Args:
            order: flat indices of the entries, each once, ``(D,)``.

        Raises:
            ValueError: it is no such order.
        """
        size = self.event_shape.numel()
        if order.shape != (size,) or not torch.equal(order.sort().values.cpu(), torch.arange(size)):
            raise ValueError(f"order must have each of 0 … {size - 1} once, got a tensor of shape {tuple(order.shape)}")
        self._set_masks(order, [spread_degrees(width, size) for width in self.hidden_dims])

    def resample_masks(self, seed: int) -> None:
        """Draw the order and the hidden degrees anew; the same seed gives the same masks on every device."""
        self._set_masks(*self._draw(seed))

    def _params_under(self, masks: Sequence[Tensor], x: Tensor, context: Tensor) -> Tensor:
        inputs = self.output.encode(x).flatten(1)
        layers = list(zip(self._layers(), masks, strict=True))
        h = inputs
        for (layer, mask), bias in zip(layers, self.hidden_context, strict=False):
            h = self.dropout(self.activation(bias(layer.under(mask, h), context)))
        # The hidden layers are done; what is left are the outputs' terms: from the top, and directly.
        sources = [h for _ in self.last] + [inputs for _ in self.direct]
        terms = [layer.under(mask, h) for (layer, mask), h in zip(layers[len(self.hidden) :], sources, strict=True)]
        params = self.last_context(torch.stack(terms).sum(0), context)
        return params.reshape(len(x), *self.event_shape, self.output.num_params)

    @torch.no_grad()
    def set_output_bias(self, mean: Tensor) -> None:
        """See :meth:`Autoregressive.set_output_bias`; logits stay within those of one in ten thousand.

        Adam at 1e-3 would take about fifteen epochs of MNIST to bring the biases of its border there.

        Raises:
            ValueError: the outputs are not binary, or ``mean`` has another length.
        """
        bias = [*self.last, *self.direct][0].bias
        if self.output.support is not constraints.boolean or mean.shape != bias.shape:
            raise ValueError(
                f"only biases of {bias.numel()} binary entries can start at means, got {tuple(mean.shape)}"
            )
        bias.copy_(torch.logit(mean.clamp(1e-4, 1 - 1e-4)))

    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.params`; under the current masks."""
        return self._params_under([layer.mask for layer in self._layers()], x, context)

    def training_params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.training_params`; under the next of the masks, if there are several."""
        if self.num_masks == 1:
            return self.params(x, context)
        params = self._params_under(self._masks(*self._member(self.turn)), x, context)
        self.turn.add_(1).remainder_(self.num_masks)
        return params

    def _member_at(self, member: int) -> tuple[Tensor, list[Tensor]]:
        return self._member(torch.tensor([member], device=self.turn.device))

    def member_log_density(self, member: int, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.member_log_density`; under one of several masks, or the current ones."""
        if self.num_masks == 1:
            return super().member_log_density(member, x, context)
        return self._log_density_under(self._masks(*self._member_at(member)), x, context)

    def draw_member(self, member: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.draw_member`; under one of several masks, or the current ones."""
        if self.num_masks == 1:
            return super().draw_member(member, context, progress)
        order, degrees = self._member_at(member)
        x = context.new_zeros(len(context), *self.event_shape)
        return self._extend_under(self._masks(order, degrees), order, x, 0, context, progress)

    def extend(self, x: Tensor, num_known: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.extend`; a hidden unit is computed once, when all that it sees is there."""
        masks = [layer.mask for layer in self._layers()]
        return self._extend_under(masks, self.order, x, num_known, context, progress)

    def _extend_under(
        self, masks: Sequence[Tensor], order: Tensor, x: Tensor, num_known: int, context: Tensor, progress: bool
    ) -> Tensor:
        """All steps together cost one pass; dropout is left out."""
        hidden, outer = masks[: len(self.hidden)], masks[len(self.hidden) :]
        flat = x.flatten(1).clone()
        zero = flat.new_zeros(len(flat), 1)
        layers = [torch.zeros_like(flat), *(zero.repeat(1, width) for width in self.hidden_dims)]
        shifts = [bias(zero.expand(-1, bias.num_features), context) for bias in self.hidden_context]
        last_shift = self.last_context(zero.expand(-1, self.last_context.num_features), context)
        units = _by_readiness(order, hidden)

        def compute(step: int) -> None:
            for layer, mask, shift, ready, below, h in zip(
                self.hidden, hidden, shifts, units, layers, layers[1:], strict=False
            ):
                rows = ready[step]
                h[:, rows] = self.activation(layer.rows_under(mask, rows, below) + shift[:, rows])

        compute(0)
        sources = [(layer, layers[-1]) for layer in self.last] + [(layer, layers[0]) for layer in self.direct]
        per_entry = self.output.num_params
        for step, index in enumerate(progress_bar(order.tolist(), unit="entry", shown=progress)):
            if step >= num_known:
                rows = torch.arange(index * per_entry, (index + 1) * per_entry, device=flat.device)
                terms = [layer.rows_under(mask, rows, h) for mask, (layer, h) in zip(outer, sources, strict=True)]
                flat[:, index] = self.output.sample(torch.stack(terms).sum(0) + last_shift[:, rows])
            layers[0][:, index] = self.output.encode(flat[:, index])
            compute(step + 1)
        return flat.reshape(-1, *self.event_shape)

    def generation_order(self) -> Tensor:
        """The current order."""
        return self.order

    def ensemble_log_prob(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        r"""``log (1/S) Σ_s p_s(x)`` over the masks that ``seeds`` give; the current masks stay.

        It is the log-density of an equal mixture, so it is exact and normalised (paper, section 4.2).

        Args:
            x: ``(…, *event_shape)``.
            seeds: as for :meth:`resample_masks`.

        Raises:
            ValueError: there are no seeds, the model has a context, or ``x`` has another event shape.
        """
        if not seeds:
            raise ValueError("an ensemble needs at least one seed")
        self.distribution()._validate_sample(x)
        ndim = len(self.event_shape)
        batch = x.shape[: x.ndim - ndim]
        rows = x.to(next(self.parameters()).dtype).reshape(batch.numel(), *self.event_shape)
        context = rows.new_zeros(len(rows), 0)
        masks = (self._masks(*self._draw(seed)) for seed in seeds)
        return log_mixture([self._log_density_under(one, rows, context) for one in masks]).reshape(batch)

    def _log_density_under(self, masks: Sequence[Tensor], x: Tensor, context: Tensor) -> Tensor:
        return self.output.log_prob(self._params_under(masks, x, context), x).flatten(1).sum(1)


def _by_readiness(order: Tensor, masks: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each hidden layer, its units by the number of first entries after which all that they see is known.

    Args:
        order: of the entries.
        masks: of the hidden layers, from the bottom.
    """
    ready = torch.empty_like(order, dtype=torch.int32)
    ready[order] = torch.arange(1, len(order) + 1, dtype=torch.int32, device=order.device)
    found = []
    for mask in masks:
        ready = torch.where(mask, ready, 0).amax(1)
        counts = torch.bincount(ready, minlength=len(order) + 1).tolist()
        found.append(list(ready.argsort(stable=True).split(counts)))
    return found
