"""An ensemble of autoregressive models, as the equal mixture of their densities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vi_flows.autoregressive.base import Autoregressive
from vi_flows.nn.typed import ModuleListOf
from vi_flows.settings import check_types
from vi_flows.transforms.regions import same_support

__all__ = ["Ensemble"]


class Ensemble(Autoregressive):
    r"""``p(x) = (1/K) Σ_k p_k(x)``: models with weights and an order of their own, trained in turn.

    A step of training is one of a single member's, so that ``K`` times as many train ``K`` independent models, of which
    each learns as if it were alone. The mixture is exact and normalised, and never worse than the members' mean:
    ``log p(x) ≥ (1/K) Σ_k log p_k(x)``, by Jensen's inequality. A :class:`~vi_flows.autoregressive.MADE` with several
    masks is the ensemble whose members share their weights (Germain et al. 2015, section 4.2).

    The members' orders may differ, so that the mixture has no conditionals of one order, nor completions by them: those
    are its members', one by one.

    Args:
        members: at least one, of one event shape, family of conditionals and size of context.

    Raises:
        TypeError: a member is no autoregressive model.
        ValueError: there is none, or they differ.
    """

    turn: Tensor

    def __init__(self, members: Sequence[Autoregressive]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one member")
        for index, member in enumerate(members):
            check_types(Autoregressive, ", such as a MADE", **{f"members[{index}]": member})
        first = members[0]
        for name in ("event_shape", "context_dim"):
            found = {getattr(member, name) for member in members}
            if len(found) > 1:
                raise ValueError(f"the members of an ensemble must have one {name}, got {sorted(found)}")
        for output in (member.output for member in members):
            same = (type(output), output.num_params) == (type(first.output), first.output.num_params)
            if not same or not same_support(output.support, first.output.support):
                raise ValueError("the members of an ensemble must have one family of conditionals, of the same entries")
        super().__init__(first.event_shape, first.output, first.context_dim)
        self.members = ModuleListOf(members)
        self.register_buffer("turn", torch.zeros(1, dtype=torch.long))

    @property
    def num_members(self) -> int:
        """See :attr:`Autoregressive.num_members`; a member that is a mixture itself counts once."""
        return len(self.members)

    @property
    def is_mixture(self) -> bool:
        """See :attr:`Autoregressive.is_mixture`; an ensemble of one model is what that is."""
        return len(self.members) > 1 or self.members[0].is_mixture

    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.params`.

        Raises:
            ValueError: it is a mixture, which has no conditionals of one order.
        """
        self.check_one_order()
        return self.members[0].params(x, context)

    def training_params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.training_params`; of the member whose turn it is."""
        params = self.members[int(self.turn)].training_params(x, context)
        self.turn.add_(1).remainder_(len(self.members))
        return params

    def member_log_density(self, member: int, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.member_log_density`."""
        return self.members[member].log_density(x, context)

    def draw_member(self, member: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.draw_member`."""
        return self.members[member].draw(context, progress)

    def generation_order(self) -> Tensor:
        """See :meth:`Autoregressive.generation_order`.

        Raises:
            ValueError: it is a mixture, of several orders.
        """
        self.check_one_order()
        return self.members[0].generation_order()

    def place_context(self) -> None:
        """See :meth:`Autoregressive.place_context`; of every member."""
        for member in self.members:
            member.place_context()

    @torch.no_grad()
    def set_output_bias(self, mean: Tensor) -> None:
        """See :meth:`Autoregressive.set_output_bias`; of every member."""
        for member in self.members:
            member.set_output_bias(mean)
