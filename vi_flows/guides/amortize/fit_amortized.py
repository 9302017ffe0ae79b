"""One call that learns the posterior for all data at once, from simulations of a Pyro program."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vi_flows.flows import VectorFlow
from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.amortize.posterior import AmortizedPosterior, SitesDistribution
from vi_flows.objectives.step import OptimizerStep
from vi_flows.settings import check_counts

__all__ = ["AmortizedFit", "fit_amortized"]

REDUCTION = 4.0
"""The rate is divided by that where the held-out loss has stopped falling, twice; then training ends."""


@dataclass
class AmortizedFit:
    """What amortised inference learnt.

    Attributes:
        estimator: the trained module, to be saved or asked.
        loss: of the held-out simulations, ``−E log q(u | x)`` of the unconstrained parameters in nats, at its best.
        num_simulations: with those that were held out.
        num_epochs: passes over the simulations.
        stopped: why the fit ended: ``no further gain``, ``num_epochs``, or ``interrupted``.
        skipped_steps: steps left out because the loss or its gradient was not finite.
        seconds: wall time.
        losses: of each epoch, on the simulations trained with.
        held_out_losses: likewise, on those that were held out.
    """

    estimator: AmortizedPosterior = field(repr=False)
    loss: float
    num_simulations: int
    num_epochs: int
    stopped: str
    skipped_steps: int
    seconds: float
    losses: list[float] = field(repr=False)
    held_out_losses: list[float] = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the fit ended of itself."""
        return self.stopped == "no further gain"

    def posterior(self, data: Tensor | Mapping[str, Tensor]) -> SitesDistribution:
        """The posterior given data; see :meth:`AmortizedPosterior.posterior`."""
        return self.estimator.posterior(data)

    def sample(
        self, data: Tensor | Mapping[str, Tensor], sample_shape: Sequence[int] = (), seed: int | None = None
    ) -> dict[str, Tensor]:
        """Posterior draws by site, each ``sample_shape + batch shape of the data + site shape``.

        Args:
            data: see :meth:`AmortizedPosterior.posterior`.
            sample_shape: of the draws.
            seed: of them; the global generators are left as they were. ``None`` draws from them.
        """
        with preserved_generators(seed):
            return self.posterior(data).sample(sample_shape)

    @torch.no_grad()
    def log_prob(self, values: Mapping[str, Tensor], data: Tensor | Mapping[str, Tensor]) -> Tensor:
        """``log q(θ | x)`` of values by site; see :meth:`SitesDistribution.log_prob`."""
        return self.posterior(data).log_prob(values)


def fit_amortized(
    prior_and_simulator: Callable,
    *args: Any,
    parameters: str | Sequence[str] | None = None,
    data: str | Sequence[str] | None = None,
    num_simulations: int = 10_000,
    flow: VectorFlow | None = None,
    hidden_dims: Sequence[int] = (64, 64),
    embed: nn.Module | None = None,
    num_epochs: int = 200,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    held_out: float = 0.1,
    patience: int = 8,
    seed: int | None = 0,
    progress: bool = True,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> AmortizedFit:
    r"""Learn ``q(θ | x)`` for all data that a program can simulate, by maximum likelihood on simulations.

    ``θ, x ~ p(θ) p(x | θ)`` are drawn from the program, and ``−E log q(θ | x) = E KL(p(θ|x) ‖ q(θ|x)) + const`` is
    minimised by Adam (neural posterior estimation: Papamakarios and Murray 2016, without their proposals, so that the
    answer holds for all data, as in Greenberg, Nonnenmacher and Macke 2019, section 2). The program needs no density
    that can be evaluated: a simulator may give its output by ``pyro.deterministic``. With a program that only draws
    pairs from a data set this is conditional density estimation.

    Some simulations are held out. Where their loss has not fallen for ``patience`` epochs, the best parameters so far
    come back and the rate is divided by four, and after the third time training ends.

    ::

        def program():
            theta = pyro.sample("theta", dist.Normal(0, 1))
            pyro.sample("x", dist.Normal(theta, 0.5), obs=torch.tensor(0.0))  # the value counts for nothing

        result = fit_amortized(program)
        result.posterior(torch.tensor(1.2)).sample((1000,))["theta"]

    Args:
        prior_and_simulator: a Pyro program: latent sites are parameters, observed ones are data.
        args: its positional arguments.
        parameters: names of the sites to infer; default: all latent ones. Others are integrated out.
        data: names of the data sites, which may be sampled, observed or deterministic; default: the observed ones, all
            of which must be among them, or be parameters.
        num_simulations: joint draws.
        flow: of :mod:`vi_flows.flows`; default: four spline couplings (an RQ spline in one dimension).
        hidden_dims: widths of the network that reads the data.
        embed: a module in front of it that summarises the data, see :class:`AmortizedPosterior`.
        num_epochs: the most passes over the simulations.
        batch_size: simulations a step.
        learning_rate: of Adam, before its reductions.
        held_out: share of the simulations.
        patience: epochs.
        seed: of simulations, initial parameters and batches; the global generators are left as they were. ``None``
            draws from them.
        progress: whether to show bars where the standard error is a terminal.
        model_kwargs: keyword arguments of the program whose names this function has, too.
        kwargs: its other keyword arguments.

    Raises:
        ValueError: an option is out of range, or the program is none that can be learnt from (see
            :class:`~vi_flows.guides.amortize.joint_draws.Simulator`).
        RuntimeError: a hundred steps in a row had no finite gradient.
    """
    check_counts(1, num_epochs=num_epochs, batch_size=batch_size, patience=patience)
    check_counts(100, num_simulations=num_simulations)
    if not 0 < held_out < 0.5:
        raise ValueError(f"held_out must be a share between 0 and 0.5, got {held_out}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    began = time.perf_counter()
    with preserved_generators(seed):
        estimator = AmortizedPosterior(
            prior_and_simulator, args, {**kwargs, **(model_kwargs or {})},
            parameters=parameters, data=data, flow=flow, hidden_dims=hidden_dims, embed=embed,
        )  # fmt: skip
        latents, rows = estimator.flat(estimator.simulator.draw(num_simulations, progress=progress))
        kept = num_simulations - max(1, round(held_out * num_simulations))
        estimator.measure(latents[:kept], rows[:kept])
        training = _Training(estimator, latents, rows, kept, batch_size, patience, learning_rate)
        training.run(num_epochs, progress)
    estimator.eval()
    return AmortizedFit(
        estimator=estimator,
        loss=training.best,
        num_simulations=num_simulations,
        num_epochs=len(training.losses),
        stopped=training.stopped,
        skipped_steps=training.skipped,
        seconds=time.perf_counter() - began,
        losses=training.losses,
        held_out_losses=training.held_out_losses,
    )


class _Training:
    """The loop: Adam, held-out loss, and what is done where it stops falling."""

    def __init__(
        self,
        estimator: AmortizedPosterior,
        latents: Tensor,
        rows: Tensor,
        kept: int,
        batch_size: int,
        patience: int,
        learning_rate: float,
    ) -> None:
        self.estimator, self.batch_size, self.patience = estimator, min(batch_size, kept), patience
        self.latents, self.rows, self.kept = latents, rows, kept
        self.optimizer = torch.optim.Adam(estimator.parameters(), lr=learning_rate)
        self.take = OptimizerStep(self.optimizer, self._skip, max_norm=10.0)
        self.losses: list[float] = []
        self.held_out_losses: list[float] = []
        self.best, self.stopped, self.skipped, self._failed = math.inf, "num_epochs", 0, 0
        self._state = copy.deepcopy(estimator.state_dict())

    def run(self, num_epochs: int, progress: bool) -> None:
        """Train; the parameters with the best held-out loss stay."""
        since, reductions = 0, 0
        with tqdm(total=num_epochs, desc="fit", unit="epoch", disable=None if progress else True, leave=False) as bar:
            try:
                for _ in range(num_epochs):
                    self._epoch()
                    since = 0 if self._look() else since + 1
                    bar.update()
                    bar.set_postfix_str(f"held-out loss {self.held_out_losses[-1]:.3f}, best {self.best:.3f} nats")
                    if since >= self.patience:
                        if reductions == 2:
                            self.stopped = "no further gain"
                            break
                        since, reductions = 0, reductions + 1
                        self.estimator.load_state_dict(self._state)
                        for group in self.optimizer.param_groups:
                            group["lr"] /= REDUCTION
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                warnings.warn(
                    f"interrupted after {len(self.losses)} epochs: the best parameters so far are kept", stacklevel=3
                )
        self.estimator.load_state_dict(self._state)

    def _epoch(self) -> None:
        self.estimator.train()
        total, count = 0.0, 0
        order = torch.randperm(self.kept)
        for index in order[: self.kept - self.kept % self.batch_size].split(self.batch_size):
            self._failed += 1
            figures = self.take(-self.estimator.log_prob_latent(self.latents[index], self.rows[index]).mean())
            if figures is not None:
                self._failed, total, count = 0, total + figures[0][0], count + 1
        self.losses.append(total / count if count else math.nan)

    @torch.no_grad()
    def _look(self) -> bool:
        """Whether the held-out loss is the best so far."""
        self.estimator.eval()
        parts = zip(self.latents[self.kept :].split(2000), self.rows[self.kept :].split(2000), strict=True)
        loss = -float(torch.cat([self.estimator.log_prob_latent(u, x) for u, x in parts]).mean())
        self.held_out_losses.append(loss)
        if not loss < self.best:
            return False
        self.best, self._state = loss, copy.deepcopy(self.estimator.state_dict())
        return True

    def _skip(self, figures: list[list[float]]) -> None:
        self.skipped += 1
        if self._failed >= 100:
            raise RuntimeError(
                "a hundred steps in a row had no finite loss and gradient: are there simulations with extreme values? "
                "Transform the data (logarithm), or give them an embed that bounds them"
            )
