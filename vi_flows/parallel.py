r"""Several processes that train one model: what they add up, and which rows each of them takes.

A minibatch of ``B`` rows is divided among ``N`` processes, ``⌊rB/N⌋ … ⌊(r+1)B/N⌋ − 1`` for process ``r``. All of them
hold the same weights and the same generator. A draw with a dimension of rows is made for the whole minibatch in every
process, of which each keeps its own rows; so every process sees the numbers that one process alone would see, and all
generators stay equal. With shares ``w_r`` (the part of the minibatch that process ``r`` has) the loss is
``Σ_r w_r ℓ_r``, and gradients and the moments of batch normalisation are summed likewise: a step is that of one process
with the whole minibatch, up to the order in which numbers are added.

:class:`Ranks` is one process alone; :class:`~vi_flows.training.distributed.ProcessGroup` has others beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ["ALONE", "Divided", "Ranks", "Share", "count_over_rows", "mean_over_rows"]

T = TypeVar("T")


class Ranks:
    """The processes that train one model; this class is one process alone, to whom they are nothing.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and validates."""
        return self.rank == 0

    def add_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them."""

    def gather(self, value: T) -> list[T]:
        """Every process's value (anything that can be pickled), in the order of the processes."""
        return [value]

    def numbers(self, *own: float) -> list[list[float]]:
        """Every process's numbers, in the order of the processes."""
        return [list(own)]

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process; where that fails, all fail."""
        return make()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes get through this block, or all of them fail."""
        yield

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare tensors that all processes must hold alike.

        Raises:
            RuntimeError: they differ in a bit.
        """

    def share(self, num_rows: int, row_dim: int) -> Share:
        """This process's part of a minibatch.

        Args:
            num_rows: of the whole minibatch.
            row_dim: the dimension of a step's draws that counts the rows.
        """
        return Share()


ALONE = Ranks()
"""One process."""


class Share:
    """A process's part of a minibatch, to be entered for the step on it; this class is the whole.

    Attributes:
        rows: which of the minibatch's rows.
    """

    rows: slice = slice(None)

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def part(self, mean: Tensor, weigh: Callable[[Tensor], float], rows: Tensor) -> Tensor:
        """``w_r × mean``: what this process adds to the mean over the whole minibatch.

        Args:
            mean: over the process's own rows.
            weigh: what the mean of given rows is over: their number, or that of the sounds in them.
            rows: of the whole minibatch.
        """
        return mean


class _SumOverRanks(torch.autograd.Function):
    """``Σ_r x_r``, in every process; the gradient of a loss that is a sum over the processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = value.clone()
        ranks.add_([total])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        ctx.ranks.add_([total])
        return total, None


_entered: list[Divided] = []  # not a context variable: autograd's threads have to see it when they recompute


def mean_over_rows(mean: Tensor) -> Tensor:
    """The mean over the whole minibatch, from that over this process's rows; differentiable, the same in all of them.

    Outside of a step of several processes, ``mean`` itself. For layers in which the rows of a minibatch meet.

    Args:
        mean: over rows that weigh equally.
    """
    return _entered[-1].mean(mean) if _entered else mean


def count_over_rows(count: int) -> int:
    """How many values :func:`mean_over_rows` is over, from how many this process's rows have."""
    return _entered[-1].count(count) if _entered else count


class Divided(Share, TorchFunctionMode):
    """A part of a minibatch. Within, draws are the process's rows of draws for the whole minibatch, and batch
    normalisation takes its moments from all processes.

    A minibatch of fewer rows than processes is taken whole by each of them, with a share of 1/N.

    Args:
        ranks: the processes.
        num_rows: of the whole minibatch.
        row_dim: the dimension of a step's draws that counts the rows.
    """

    def __init__(self, ranks: Ranks, num_rows: int, row_dim: int) -> None:
        TorchFunctionMode.__init__(self)
        self.ranks, self.num_rows, self.row_dim = ranks, num_rows, row_dim
        whole = num_rows < ranks.size
        first, last = (0, num_rows) if whole else (num_rows * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
        self.rows = slice(first, last)
        self.own = last - first
        self.copies = ranks.size if whole else 1

    def __enter__(self) -> Divided:
        _entered.append(self)
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: object) -> None:
        TorchFunctionMode.__exit__(self, *error)
        _entered.pop()

    def part(self, mean: Tensor, weigh: Callable[[Tensor], float], rows: Tensor) -> Tensor:
        """See :meth:`Share.part`."""
        return mean * (weigh(rows[self.rows]) / (weigh(rows) * self.copies))

    def mean(self, mean: Tensor) -> Tensor:
        """See :func:`mean_over_rows`."""
        return _SumOverRanks.apply(mean * (self.own / (self.num_rows * self.copies)), self.ranks)

    def count(self, count: int) -> int:
        """See :func:`count_over_rows`."""
        return count * self.num_rows // self.own

    # Draws ------------------------------------------------------------------------------------------------------

    def _whole_shape(self, shape: Sequence[int]) -> tuple[torch.Size, int]:
        """The shape of the whole minibatch's draw, and the dimension of the rows in it."""
        dim = self.row_dim + len(shape) if self.row_dim < 0 else self.row_dim
        if not 0 <= dim < len(shape) or shape[dim] != self.own:
            raise ValueError(
                f"a draw of shape {tuple(shape)} can't be divided among processes: its dimension {self.row_dim} is not "
                f"that of {self.own} rows; train this model in one process"
            )
        return torch.Size([*shape[:dim], self.num_rows, *shape[dim + 1 :]]), dim

    def _draw(self, shape: Sequence[int], draw: Callable[[torch.Size], Tensor]) -> Tensor:
        whole, dim = self._whole_shape(shape)
        return draw(whole).narrow(dim, self.rows.start, self.own)

    def _free(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.rand`` and ``torch.randn``."""
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        shape = kwargs.pop("size") if "size" in kwargs else args[0] if not isinstance(args[0], int) else args
        return self._draw(shape, lambda whole: func(whole, **kwargs))

    def _like(self, func: Callable, like: Tensor, **kwargs: Any) -> Tensor:
        """``torch.rand_like`` and ``torch.randn_like``."""
        last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format  # draws follow the memory
        return self._draw(
            like.shape, lambda whole: func(torch.empty_like(like.new_empty(whole), memory_format=layout), **kwargs)
        )

    def _normal(self, func: Callable, mean: Tensor | float, std: Tensor | float, **kwargs: Any) -> Tensor:
        """``torch.normal`` with tensors for both."""
        if kwargs or not (isinstance(mean, Tensor) and isinstance(std, Tensor)):
            return self._refused(func)
        shape = torch.broadcast_shapes(mean.shape, std.shape)
        return mean + std * self._draw(shape, lambda whole: func(mean.new_zeros(whole), mean.new_ones(whole)))

    def _in_place(self, func: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``Tensor.normal_`` and its like, which PyTorch's distributions draw by."""
        if kwargs.get("generator") is not None:
            return func(x, *args, **kwargs)
        return x.copy_(self._draw(x.shape, lambda whole: func(x.new_empty(whole), *args, **kwargs)))

    def _dropout(self, func: Callable, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0:
            return func(x, p, training)
        if self.row_dim < 0:  # of draws of latents; a layer in between counts its rows from the front, particles too
            return self._refused(func)
        return x * self._draw(x.shape, lambda whole: func(x.new_ones(whole), p, True))

    def _refused(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"draws by {getattr(func, '__name__', func)} can't be divided among processes: train this model in one"
        )

    # Batch normalisation ----------------------------------------------------------------------------------------

    def _batch_norm(
        self,
        func: Callable,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """``F.batch_norm``: moments of the whole minibatch, the unbiased variance into the running average."""
        if not training:
            return func(x, running_mean, running_var, weight, bias, training, momentum, eps)
        count = self.count(x.numel() // x.shape[1])
        if count < 2:
            raise ValueError(f"batch normalisation needs more than 1 value a channel, got a minibatch of {count}")
        dims, shape = [d for d in range(x.dim()) if d != 1], [-1 if d == 1 else 1 for d in range(x.dim())]
        mean = self.mean(x.mean(dims))
        centered = x - mean.view(shape)
        variance = self.mean(centered.square().mean(dims))
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
            if running_var is not None:
                running_var.lerp_(variance.to(running_var) * (count / (count - 1)), momentum)
        y = centered * (variance + eps).rsqrt().view(shape)
        y = y if weight is None else y * weight.view(shape)
        return y if bias is None else y + bias.view(shape)

    _HANDLED: ClassVar[dict[Any, Callable[..., Any]]] = {
        torch.rand: _free,
        torch.randn: _free,
        torch.rand_like: _like,
        torch.randn_like: _like,
        torch.normal: _normal,
        F.dropout: _dropout,
        torch.dropout: _dropout,
        F.batch_norm: _batch_norm,
        **dict.fromkeys(
            (
                Tensor.bernoulli_, Tensor.cauchy_, Tensor.exponential_, Tensor.geometric_, Tensor.log_normal_,
                Tensor.normal_, Tensor.random_, Tensor.uniform_,
            ),
            _in_place,
        ),
        **dict.fromkeys(
            (
                torch.bernoulli, torch.poisson, torch.multinomial, torch.randint, torch.randint_like, torch.randperm,
                torch.rrelu, F.rrelu, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
                F.gumbel_softmax, torch.batch_norm, Tensor.bernoulli, Tensor.multinomial, torch._standard_gamma,
                torch._sample_dirichlet, torch.binomial,
            ),
            _refused,
        ),
    }  # fmt: skip

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Draw, normalise, or do what was asked."""
        handler = self._HANDLED.get(func)
        kwargs = {} if kwargs is None else kwargs
        return func(*args, **kwargs) if handler is None else handler(self, func, *args, **kwargs)
