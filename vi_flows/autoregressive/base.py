r"""The one face of autoregressive models: a module that gives Pyro distributions.

``log p(x | c) = Σ_i log p(x_{o(i)} | x_{o(1)}, …, x_{o(i−1)}, c)`` for an order ``o`` of the entries of ``x``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from vi_flows.autoregressive.outputs import Output
from vi_flows.expansion import Expandable
from vi_flows.progress import progress_bar
from vi_flows.settings import check_context, check_counts, check_types, joint_batch

__all__ = ["Autoregressive", "AutoregressiveDistribution", "check_dropout", "check_not_negative", "log_mixture"]

SCALAR = torch.Size()


def check_dropout(dropout: float) -> None:
    """Refuse a share that is none.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


def check_not_negative(name: str, value: int) -> None:
    """Refuse a number below 0.

    Raises:
        ValueError: it is; the message names it.
    """
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def log_mixture(scores: Sequence[Tensor]) -> Tensor:
    r"""``log (1/K) Σ_k p_k`` of ``K`` log-densities of one shape."""
    return scores[0] if len(scores) == 1 else torch.stack(list(scores)).logsumexp(0) - math.log(len(scores))


class Autoregressive(nn.Module, ABC):
    """A network that gives the parameters of every entry's conditional in one pass.

    A family writes :meth:`params` and :meth:`generation_order`, and may write a faster :meth:`extend`. One whose
    density is a mixture writes :attr:`num_members`, :meth:`member_log_density` and :meth:`draw_member`.

    Args:
        event_shape: of one ``x``.
        output: family of the conditionals.
        context_dim: size of the context vector (one-hot for a class); 0 for a model without one.

    Raises:
        ValueError: the event is empty, or the size of the context is negative.
    """

    def __init__(self, event_shape: Sequence[int], output: Output, context_dim: int = 0) -> None:
        super().__init__()
        check_types(Sequence, ": the sizes of one x, such as (1, 28, 28)", event_shape=event_shape)
        check_types(Output, ": Bernoulli(), Categorical() or LogisticMixture()", output=output)
        check_counts(1, **{f"event_shape[{n}]": size for n, size in enumerate(event_shape)})
        self.event_shape = torch.Size(event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(f"event_shape must have sizes of at least 1, got {tuple(event_shape)}")
        check_not_negative("context_dim", context_dim)
        self.output, self.context_dim = output, context_dim

    @abstractmethod
    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """Parameters of all conditionals, ``(N, *event_shape, num_params)``.

        Args:
            x: ``(N, *event_shape)``.
            context: ``(N, context_dim)``.
        """

    @abstractmethod
    def generation_order(self) -> Tensor:
        """Flat indices of the entries of an event, each after all those that it depends on."""

    @property
    def num_members(self) -> int:
        """Models whose equal mixture the density is; 1 for a model of one order."""
        return 1

    @property
    def is_mixture(self) -> bool:
        """Whether the density is a mixture of several orders', which has no conditionals of one order."""
        return self.num_members > 1

    def check_one_order(self) -> None:
        """Refuse what a mixture of several members has not: conditionals of one order.

        Raises:
            ValueError: the model is one.
        """
        if self.is_mixture:
            raise ValueError(
                "a mixture of models of several orders has no conditionals of one order, nor completions by them; "
                "train a model of one order for these (num_masks=1, or a member of the ensemble)"
            )

    def member_log_density(self, member: int, x: Tensor, context: Tensor) -> Tensor:
        """Log-density of one member, nats ``(N,)``; here the only one's, by :meth:`params`.

        Args:
            member: its index.
            x: ``(N, *event_shape)``.
            context: ``(N, context_dim)``.
        """
        return self.output.log_prob(self.params(x, context), x).flatten(1).sum(1)

    def draw_member(self, member: int, context: Tensor, progress: bool = False) -> Tensor:
        """Draws ``(N, *event_shape)`` from one member, one for each row of ``context``."""
        return self.generate(context, progress)

    def place_context(self) -> None:
        """Let the context say something else of every entry, where the family's layers treat all entries alike.

        Here nothing: a family whose entries have weights of their own needs no more.
        """

    def set_output_bias(self, mean: Tensor) -> None:
        """Start a model of binary entries at the data's means, where each entry has an output bias of its own.

        Here nothing: most families share the last layer among all entries.

        Args:
            mean: of the entries in flat order, ``(D,)``, each in [0, 1].
        """

    def training_params(self, x: Tensor, context: Tensor) -> Tensor:
        """What a training step scores rows with: :meth:`params`, where a family doesn't train otherwise."""
        return self.params(x, context)

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        r"""The log-density, nats ``(N,)``: ``log (1/K) Σ_k p_k(x | c)`` over the :attr:`num_members` members.

        Args:
            x: ``(N, *event_shape)``.
            context: ``(N, context_dim)``.
        """
        return log_mixture([self.member_log_density(member, x, context) for member in range(self.num_members)])

    def draw(self, context: Tensor, progress: bool = False) -> Tensor:
        """Draws ``(N, *event_shape)`` from that density, one for each row of ``context``; members are drawn too."""
        if self.num_members == 1:
            return self.draw_member(0, context, progress)
        chosen = torch.randint(self.num_members, (len(context),), device=context.device)
        x = context.new_zeros(len(context), *self.event_shape)
        for member in chosen.unique().tolist():
            mine = chosen == member
            x[mine] = self.draw_member(member, context[mine], progress)
        return x

    def condition(self, context: Tensor) -> AutoregressiveDistribution:
        """``p(· | context)``.

        Args:
            context: ``(*batch_shape, context_dim)``.

        Raises:
            ValueError: the last size isn't ``context_dim``.
        """
        return AutoregressiveDistribution(self, context)

    def distribution(self) -> AutoregressiveDistribution:
        """``p``, of a model without context.

        Raises:
            ValueError: the model has a context.
        """
        if self.context_dim:
            raise ValueError(
                f"this model has a context of size {self.context_dim}; call condition(context) and use its methods"
            )
        return AutoregressiveDistribution(self, next(self.parameters()).new_zeros(0))

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`AutoregressiveDistribution.log_prob`; for a model without context."""
        return self.distribution().log_prob(x)

    def sample(self, sample_shape: Sequence[int] = SCALAR) -> Tensor:
        """See :meth:`AutoregressiveDistribution.sample`; for a model without context."""
        return self.distribution().sample(torch.Size(sample_shape))

    def conditional_logits(self, x: Tensor) -> Tensor:
        """See :meth:`AutoregressiveDistribution.conditional_logits`; for a model without context."""
        return self.distribution().conditional_logits(x)

    def generate(self, context: Tensor, progress: bool = False) -> Tensor:
        """Draws ``(N, *event_shape)``, one for each row of ``context``."""
        return self.extend(context.new_zeros(len(context), *self.event_shape), 0, context, progress)

    def beginning(self, x: Tensor, num_known: int) -> Tensor:
        """A copy of events with zeros for what is to be drawn: of a NaN there, a masked weight of zero would make NaN.

        Args:
            x: ``(N, *event_shape)``.
            num_known: entries to keep, in :meth:`generation_order`.
        """
        flat = x.flatten(1).clone()
        flat[:, self.generation_order()[num_known:]] = 0
        return flat.reshape(x.shape)

    def extend(self, x: Tensor, num_known: int, context: Tensor, progress: bool = False) -> Tensor:
        """Draws the entries after the first ``num_known`` given those, with a pass of the network for each entry.

        Args:
            x: ``(N, *event_shape)``; what is to be drawn may be anything.
            num_known: entries to keep, in :meth:`generation_order`.
            context: ``(N, context_dim)``.
            progress: show a bar.

        Returns:
            ``(N, *event_shape)``.
        """
        order = self.generation_order()
        flat = self.beginning(x, num_known).flatten(1)
        for index in progress_bar(order[num_known:].tolist(), unit="entry", shown=progress):
            params = self.params(flat.reshape(-1, *self.event_shape), context)
            flat[:, index] = self.output.sample(params.flatten(1, -2)[:, index])
        return flat.reshape(-1, *self.event_shape)


class AutoregressiveDistribution(Expandable):
    """An autoregressive model, under a context, as a distribution for ``pyro.sample``: likelihood or prior.

    It has no reparametrised samples: a guide must not use it where gradients of samples are needed.

    Args:
        model: the network; register it with ``pyro.module`` to train it.
        context: ``(*batch_shape, context_dim)``.
        validate_args: as for every PyTorch distribution.

    Raises:
        ValueError: the last size of the context isn't the model's, or it has NaN or infinite entries.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, model: Autoregressive, context: Tensor, validate_args: bool | None = None) -> None:
        check_context(context, model.context_dim)
        self.model = model
        self.context = context.to(next(model.parameters()).dtype)
        super().__init__(context.shape[:-1], model.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Of every entry, what the output's family allows."""
        return constraints.independent(self.model.output.support, len(self.event_shape))

    def _expanded(self, batch_shape: torch.Size) -> AutoregressiveDistribution:
        context = self.context.expand(*batch_shape, self.model.context_dim)
        return AutoregressiveDistribution(self.model, context, validate_args=False)

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` in the model's type over the batch shape of ``x`` and context together, and the context's rows."""
        ndim = len(self.event_shape)
        if x.shape[x.ndim - ndim :] != self.event_shape or x.ndim < ndim:
            raise ValueError(f"x must have shape (…, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        batch = joint_batch("x", x.shape[: x.ndim - ndim], self.batch_shape)
        x = x.to(self.context.dtype).expand(*batch, *self.event_shape)
        # Sizes are spelled out: with a context of size 0, reshape can't infer one.
        return x, self.context.expand(*batch, self.model.context_dim).reshape(batch.numel(), self.model.context_dim)

    def _validate_sample(self, value: Tensor) -> None:
        """As PyTorch's, which takes no empty batch, and infinite values."""
        self._flat(value)
        support = self.model.output.support
        there = support.check(value) & value.isfinite()
        if not bool(there.all()):
            raise ValueError(
                f"{int((~there).sum())} of {there.numel()} entries are not within the support, {support}: the first is "
                f"{value[~there][0].item()}"
            )

    def conditional_logits(self, x: Tensor) -> Tensor:
        """Parameters of every entry's conditional, given the entries of ``x`` before it; ``x`` is not validated.

        Args:
            x: ``(…, *event_shape)``.

        Returns:
            Bernoulli logits ``(…, *event_shape)``, categorical logits ``(…, *event_shape, num_bins)``, or means and
            log standard deviations ``(…, *event_shape, 2)``.

        Raises:
            ValueError: ``x`` has another event shape, or the model is a mixture.
        """
        self.model.check_one_order()
        x, context = self._flat(x)
        params = self.model.params(x.reshape(len(context), *self.event_shape), context)
        return self.model.output.logits(params.reshape(*x.shape[: x.ndim - len(self.event_shape)], *params.shape[1:]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact, in nats, shape of the batch.

        Args:
            value: ``(…, *event_shape)``, of any dtype.

        Raises:
            ValueError: the event shape differs; or, with validation on, an entry is outside of the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        x, context = self._flat(value)
        scores = self.model.log_density(x.reshape(len(context), *self.event_shape), context)
        return scores.reshape(x.shape[: x.ndim - len(self.event_shape)])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = SCALAR) -> Tensor:
        """Draws ``sample_shape + batch_shape + event_shape``, of the model's dtype."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context = self.context.expand(*shape, self.model.context_dim).reshape(shape.numel(), self.model.context_dim)
        return self.model.draw(context).reshape(*shape, *self.event_shape)

    @torch.no_grad()
    def complete(self, x: Tensor, num_known: int, progress: bool = False) -> Tensor:
        """Draws the rest of events from their beginnings, such as the lower halves of images.

        Args:
            x: ``(…, *event_shape)``; what is to be drawn is not looked at.
            num_known: entries to keep, the first in the model's :meth:`~Autoregressive.generation_order`.
            progress: show a bar.

        Returns:
            Events over the batch shape of ``x`` and the context together.

        Raises:
            ValueError: ``x`` has another event shape, ``num_known`` is not between 0 and the event's size, or the
                model is a mixture.
        """
        self.model.check_one_order()
        if not 0 <= num_known <= self.event_shape.numel():
            raise ValueError(f"num_known must lie between 0 and {self.event_shape.numel()}, got {num_known}")
        x, context = self._flat(x)
        rows = x.reshape(len(context), *self.event_shape)
        return self.model.extend(rows, num_known, context, progress).reshape(x.shape)
