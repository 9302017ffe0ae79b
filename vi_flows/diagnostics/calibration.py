"""Does an inference do what it promises, averaged over the data of its own model? Ranks, coverage, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro import poutine
from scipy.stats import binomtest, wilcoxon
from torch import Tensor
from tqdm import tqdm

from vi_flows.diagnostics.uniformity import ecdf_band
from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.amortize import AmortizedFit, Simulator
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.fit import fit
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.sites import is_fixed
from vi_flows.plotting import save_figure

__all__ = ["Calibration", "expected_coverage", "simulation_based_calibration"]

LEVEL = 0.99
"""Of the simultaneous bands, for all quantities together: a calibrated inference is called otherwise once in 100."""

JOINT = "joint density"
"""Name of the quantity whose ranks give the coverage of the regions of highest density."""

LIKELIHOOD = "log joint"
"""Name of the quantity that sees whether the data were used at all."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of true parameters among posterior draws, over replications of parameters and data.

    Where the inference is right they are uniform. ``print`` it for the report.

    Attributes:
        verdict: ``calibrated``, ``over-confident``, ``under-confident``, ``biased`` or ``not calibrated``.
        reason: one sentence.
        ranks: by quantity, ``(N,)`` of 0 … ``num_draws``: how many draws are less than the truth. Quantities are the
            entries of the sites, and the ``joint density``: how many draws have a higher ``log q`` than the truth.
            With guides that are fitted there is the ``log joint`` of the model, too, which the data enter: an inference
            that ignores them and returns the prior is only seen there (Modrák et al. 2023).
        num_draws: ``L``, posterior draws a replication.
        p_values: by quantity, of uniform ranks (not corrected for the number of quantities).
        asymmetry: by quantity, p-values of ranks that are symmetric about their middle (Wilcoxon's signed ranks): a
            variational inference whose ranks are not is biased, whatever its spread (VSBC; Yao, Vehtari, Simpson and
            Gelman 2018, section 3.2).
    """

    verdict: str
    reason: str
    ranks: dict[str, Tensor] = field(repr=False)
    num_draws: int
    p_values: dict[str, float] = field(repr=False)
    asymmetry: dict[str, float] = field(repr=False)

    @property
    def num_replications(self) -> int:
        """``N``."""
        return len(next(iter(self.ranks.values())))

    def coverage(self, level: float) -> dict[str, float]:
        """By quantity: the share of replications whose truth lies within the posterior's region of that probability.

        Central intervals for entries of sites, the region of highest density for the joint.

        Raises:
            ValueError: ``level`` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        shares = {}
        for name, ranks in self.ranks.items():
            u = _fractions(ranks, self.num_draws)
            shares[name] = float(np.mean(u <= level if name == JOINT else np.abs(u - 0.5) <= level / 2))
        return shares

    def __str__(self) -> str:
        half, most = self.coverage(0.5), self.coverage(0.9)
        width = max(len(name) for name in self.ranks)
        lines = [f"verdict  {self.verdict}: {self.reason}", f"{'':{width}}  50 %    90 %    p"]
        order = sorted(self.ranks, key=lambda name: self.p_values[name])
        for name in order[:12]:
            low, high = binomtest(round(most[name] * self.num_replications), self.num_replications).proportion_ci()
            between = f"({low:.1%}…{high:.1%})"
            lines.append(f"{name:{width}}  {half[name]:6.1%}  {most[name]:6.1%} {between}  {self.p_values[name]:.2g}")
        if len(order) > 12:
            lines.append(f"and {len(order) - 12} more")
        return "\n".join(lines)

    def plot(self, path: Path | str | None = None) -> Any:
        """Rank histograms and ECDF differences with bands, of the six quantities that are furthest out.

        The band holds all over, for all quantities together, in 99 of 100 checks of a calibrated inference. A ∪ is an
        over-confident inference, a ∩ an under-confident one, a slope a bias.

        Args:
            path: of a picture to write.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        names = sorted(self.ranks, key=lambda name: self.p_values[name])[:6]
        figure = Figure(figsize=(2.6 * max(len(names), 3), 4.6), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False)
        band = ecdf_band(self.num_replications, self.num_draws)
        level = 1 - (1 - LEVEL) / len(self.ranks)
        low, high = band.limits(level)
        bins = min(20, self.num_draws + 1)
        edges = np.linspace(0, 1, bins + 1)
        for column, name in enumerate(names):
            u = _fractions(self.ranks[name], self.num_draws)
            top, bottom = axes[:, column]
            top.hist(u, edges, color="0.6")
            expected, spread = len(u) / bins, (len(u) / bins * (1 - 1 / bins)) ** 0.5
            top.axhspan(expected - 2.58 * spread, expected + 2.58 * spread, color="C0", alpha=0.2, lw=0)
            top.set(title=name, xlim=(0, 1), yticks=[])
            bottom.fill_between(band.points, low - band.points, high - band.points, color="C0", alpha=0.2, lw=0)
            counts = band.counts(self.ranks[name].numpy()) / len(u)
            bottom.plot(band.points, counts - band.points, "k", lw=1)
            bottom.axhline(0, color="0.5", lw=0.5)
            bottom.set(xlim=(0, 1), xlabel="rank of the truth / draws")
        axes[0, 0].set_ylabel("replications")
        axes[1, 0].set_ylabel("ECDF − uniform")
        figure.suptitle(f"{self.verdict} ({self.num_replications} replications)")
        if path is not None:
            save_figure(figure, Path(path), 110)
        return figure


def expected_coverage(
    result: AmortizedFit,
    *,
    num_replications: int = 1000,
    num_draws: int = 200,
    seed: int | None = 0,
    progress: bool = True,
) -> Calibration:
    """Check an amortised posterior on fresh simulations of its own program.

    Gives the simulation-based calibration of each entry (Talts et al. 2018) and, by the ranks of the joint density, the
    expected coverage of its regions of highest density (Hermans et al. 2022).

    Args:
        result: of :func:`~vi_flows.guides.fit_amortized`.
        num_replications: simulations.
        num_draws: posterior draws each.
        seed: of simulations and draws; the global generators are left as they were. ``None`` draws from them.
        progress: whether to show a bar where the standard error is a terminal.

    Raises:
        ValueError: too few replications or draws.
        RuntimeError: the posterior was loaded from a file, which holds no program.
    """
    _check_counts(num_replications, num_draws)
    with preserved_generators(seed), torch.no_grad():
        drawn = result.estimator.simulator.draw(num_replications, progress=progress)
        ranks: dict[str, list[Tensor]] = {}
        for part in torch.arange(num_replications).split(100):
            posterior = result.estimator({name: value[part] for name, value in drawn.data.items()})
            truth = {name: value[part] for name, value in drawn.values.items()}
            draws = posterior.sample((num_draws,))
            found = _ranks_of_sites(truth, draws)
            found[JOINT] = _rank(-posterior.log_prob(truth), -posterior.log_prob(draws))
            for name, rank in found.items():
                ranks.setdefault(name, []).append(rank)
    return _judged({name: torch.cat(parts) for name, parts in ranks.items()}, num_draws)


def simulation_based_calibration(
    model: Callable,
    make_guide: Callable[[Callable], AutoFlow],
    *args: Any,
    num_replications: int = 100,
    num_draws: int = 200,
    data: str | tuple[str, ...] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    progress: bool = True,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Calibration:
    """Check the fits of a guide: draw parameters and data from the model, fit, and look where the truth lies.

    This is simulation-based calibration (Talts et al. 2018), for variational inference VSBC (Yao et al. 2018). It says
    whether a guide is right for the data that the *prior* expects; for the data at hand there is
    :func:`~vi_flows.diagnostics.diagnose`.

    Args:
        model: a Pyro program with proper priors; its observed sites are drawn anew, and discrete latents, which guides
            sum out, are not ranked.
        make_guide: makes a guide of a model, such as :class:`~vi_flows.guides.AutoConvFlow`.
        args: the model's arguments.
        num_replications: fits; a hundred see a bias of 0.5 sd and sds that are half of what they should be.
        num_draws: draws of each fitted guide.
        data: names of the data sites; default: the observed ones.
        fit_options: of :func:`~vi_flows.guides.fit`, such as ``{"num_steps": 1000}``.
        seed: of everything; the global generators are left as they were. ``None`` draws from them.
        progress: whether to show a bar where the standard error is a terminal.
        model_kwargs: keyword arguments of the model whose names this function has, too.
        kwargs: its other keyword arguments.

    Raises:
        ValueError: too few replications or draws; the model can't be drawn from
            (:class:`~vi_flows.guides.amortize.Simulator`); a data site has no density.
    """
    _check_counts(num_replications, num_draws)
    kwargs = {**kwargs, **(model_kwargs or {})}
    options = {"progress": False, "seed": None, **(fit_options or {})}
    with preserved_generators(seed):
        # Guides sum discrete latents out, or refuse the model and say why.
        simulator = Simulator(model, args, kwargs, data=data, discrete="nuisance")
        for name in simulator.data:
            if is_fixed(simulator.trace.nodes[name]["fn"]):
                raise ValueError(
                    f"data site {name!r} is computed and has no density, so that no guide can be fitted to it: use "
                    "fit_amortized and expected_coverage"
                )
        drawn = simulator.draw(num_replications)
        ranks: dict[str, list[Tensor]] = {}
        for index in tqdm(
            range(num_replications), desc="calibrate", unit="fit", disable=None if progress else True, leave=False
        ):
            given = poutine.condition(model, data={name: value[index] for name, value in drawn.data.items()})
            guide = make_guide(given)
            fit(given, guide, *args, model_kwargs=kwargs, **options)
            truth = {name: value[index : index + 1] for name, value in drawn.values.items()}
            with torch.no_grad():
                draws = {name: value[:, None] for name, value in guide.sample_posterior(num_draws).items()}
                found = _ranks_of_sites(truth, draws)
                both = {name: torch.cat([value, draws[name][:, 0].to(value)]) for name, value in truth.items()}
                log_joint = LogJoint(given, args, kwargs)(both)
                found[LIKELIHOOD] = _rank(log_joint[:1], log_joint[1:, None])
                if guide.get_transform().has_inverse:
                    log_q = guide.log_prob(both)
                    found[JOINT] = _rank(-log_q[:1], -log_q[1:, None])
            for name, rank in found.items():
                ranks.setdefault(name, []).append(rank)
    return _judged({name: torch.cat(parts) for name, parts in ranks.items()}, num_draws)


def _check_counts(num_replications: int, num_draws: int) -> None:
    if num_replications < 20 or num_draws < 20:
        raise ValueError(f"at least 20 replications and 20 draws, got {num_replications} and {num_draws}")


def _rank(truth: Tensor, draws: Tensor) -> Tensor:
    """How many draws ``(L, N)`` are less than the truth ``(N,)``; ties are broken at random."""
    less, same = (draws < truth).sum(0), (draws == truth).sum(0)
    return (less + (torch.rand(same.shape) * (same + 1)).long()).cpu()


def _ranks_of_sites(truth: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in truth.items():
        flat = value.reshape(len(value), -1)
        many = draws[name].to(value).reshape(-1, *flat.shape)
        for entry in range(many.shape[-1]):
            # Entries that are fixed by the support, as in a Cholesky factor, have nothing to be right about.
            if not bool((many[..., entry] == flat[:1, entry]).all()):
                found[_entry_name(name, value.shape[1:], entry)] = _rank(flat[:, entry], many[..., entry])
    return found


def _entry_name(name: str, shape: torch.Size, entry: int) -> str:
    return f"{name}[{', '.join(str(int(i)) for i in np.unravel_index(entry, shape))}]" if shape else name


def _fractions(ranks: Tensor, num_draws: int) -> np.ndarray:
    """Ranks as numbers in (0, 1): the middles of their bins."""
    return (ranks.numpy() + 0.5) / (num_draws + 1)


def _judged(ranks: dict[str, Tensor], num_draws: int) -> Calibration:
    count = len(next(iter(ranks.values())))
    band = ecdf_band(count, num_draws)
    p_values = {name: band.p_value(rank.numpy()) for name, rank in ranks.items()}
    fractions = {name: _fractions(rank, num_draws) for name, rank in ranks.items()}
    asymmetry = {name: float(wilcoxon(u - 0.5).pvalue) for name, u in fractions.items()}
    alarms = [name for name in sorted(ranks, key=p_values.__getitem__) if p_values[name] * len(ranks) < 1 - LEVEL]
    if not alarms:
        width = 2.58 * (0.9 * 0.1 / count) ** 0.5
        reason = (
            f"the ranks of all {len(ranks)} quantities are as uniform as {count} replications can tell (coverages of "
            f"90 % intervals to ± {100 * width:.0f} %)"
        )
        return Calibration("calibrated", reason, ranks, num_draws, p_values, asymmetry)
    # The log joint sees most, and says least of what is wrong.
    told = min(alarms, key=lambda name: (name == LIKELIHOOD, p_values[name]))
    verdict, words = _kind(told, fractions[told])
    more = f" (and {len(alarms) - 1} more of {len(ranks)} quantities)" if len(alarms) > 1 else ""
    return Calibration(verdict, words + more, ranks, num_draws, p_values, asymmetry)


def _kind(name: str, u: np.ndarray) -> tuple[str, str]:
    """What is wrong with ranks that are not uniform, by the clearest of their first moments."""
    offset = (u.mean() - 0.5) * math.sqrt(12 * len(u))
    # The variance of (u − 1/2)² of a uniform u is 1/180.
    spread = (np.mean((u - 0.5) ** 2) - 1 / 12) * math.sqrt(180 * len(u))
    inside = np.mean(u <= 0.9) if name == JOINT else np.mean(np.abs(u - 0.5) <= 0.45)
    region = "regions of highest density of" if name == JOINT else f"intervals of {name!r} of"
    covered = f"{region} 90 % hold the truth in {inside:.0%} of the replications"
    if name == JOINT and abs(offset) >= abs(spread):
        return ("over-confident" if offset > 0 else "under-confident"), covered
    if name == LIKELIHOOD and abs(offset) >= abs(spread):
        side = "less" if offset > 0 else "more"
        return (
            "not calibrated",
            f"draws fit the data {side} than the truth does: the ranks of the log joint are not even",
        )
    if abs(offset) >= abs(spread):
        where = "below" if offset > 0 else "above"
        return (
            "biased",
            f"draws of {name!r} lie {where} the truth too often (mean rank {u.mean():.2f} in place of 0.50)",
        )
    return ("over-confident" if spread > 0 else "under-confident"), covered
