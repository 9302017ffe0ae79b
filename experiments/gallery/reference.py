"""Ground truth of the gallery: posteriordb's reference draws, or Pyro's NUTS with its convergence checked."""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from vi_flows.data.sources import resolve_root
from vi_flows.guides import pathfinder

Draws = Mapping[str, Tensor]
Quantities = Callable[[Draws], Draws]


@dataclass(frozen=True)
class Reference:
    """What is known of the true posterior, one entry a scalar.

    Attributes:
        source: where it comes from.
        mean: posterior means.
        sd: posterior standard deviations.
        num_chains: Markov chains.
        num_draws: in all chains.
        max_r_hat: the worst split R-hat of any scalar (1 is perfect).
        min_ess: the least effective sample size of any scalar; a mean is known to 1/√ESS posterior sd.
        divergences: divergent transitions after warm-up; ``None`` where unknown.
        seconds: wall time of sampling; ``None`` where it was done elsewhere.
    """

    source: str
    mean: dict[str, float]
    sd: dict[str, float]
    num_chains: int
    num_draws: int
    max_r_hat: float
    min_ess: float
    divergences: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def summarise(source: str, chains: Draws, **extra: Any) -> Reference:
    """Means, standard deviations and convergence of scalars given as ``(chains, draws)``.

    Raises:
        ValueError: a scalar does not move.
    """
    r_hats, sizes = [], []
    for name, x in chains.items():
        if not float(x.std()) > 0:
            raise ValueError(f"the draws of {name} are all equal")
        r_hats.append(float(split_gelman_rubin(x, chain_dim=0, sample_dim=1)))
        sizes.append(float(effective_sample_size(x, chain_dim=0, sample_dim=1)))
    shape = next(iter(chains.values())).shape
    return Reference(
        source=source,
        mean={name: float(x.mean()) for name, x in chains.items()},
        sd={name: float(x.std()) for name, x in chains.items()},
        num_chains=shape[0],
        num_draws=math.prod(shape),
        max_r_hat=round(max(r_hats), 4),
        min_ess=round(min(sizes), 1),
        **extra,
    )


def posteriordb(name: str, root: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Data and reference draws of a posterior of posteriordb, one tensor ``(chains, draws)`` a scalar.

    Raises:
        FileNotFoundError: the folder ``posteriordb/NAME`` isn't below the data root (``VI_FLOWS_DATA``).
    """
    folder = resolve_root(root).path / "posteriordb" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: set VI_FLOWS_DATA to the folder that holds posteriordb/")
    data, chains = (_unzip(folder / f"{kind}.json.zip") for kind in ("data", "reference_draws"))
    return data, {key: torch.tensor([chain[key] for chain in chains]).double() for key in chains[0]}


def _unzip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def nuts(
    model: Callable,
    args: tuple,
    quantities: Quantities,
    num_draws: int = 1000,
    warmup: int = 500,
    num_chains: int = 4,
    precondition: bool = True,
    start: Draws | None = None,
    max_tree_depth: int = 8,
) -> Reference:
    """Sample the posterior by Pyro's NUTS, one chain after the other from different random starts.

    Args:
        model: a Pyro program.
        args: its arguments.
        quantities: from draws of the sites ``(draws, …)`` to scalars ``(draws,)``.
        num_draws: of each chain.
        warmup: of each chain.
        num_chains: chains.
        precondition: run in coordinates in which the Gaussian near the mode is a standard one, and start from draws of
            it: the law of the chain's limit does not depend on them, the length of its trajectories does. Else from
            Pyro's own start.
        start: values of the sites from where the mode is looked for; default: Pyro's own start.
        max_tree_depth: of NUTS.
    """
    began = time.perf_counter()
    chains, divergences = [], 0
    for seed in range(num_chains):
        pyro.set_rng_seed(seed)
        coordinates = Coordinates(model, args, precondition, start)
        kernel = NUTS(potential_fn=coordinates.potential, max_tree_depth=max_tree_depth)
        mcmc = MCMC(
            kernel, num_draws, warmup_steps=warmup, initial_params={"z": coordinates.start()}, disable_progbar=True
        )
        mcmc.run()
        draws = quantities(coordinates.sites(mcmc.get_samples()["z"]))
        chains.append({name: x.double() for name, x in draws.items()})
        divergences += sum(len(found) for found in mcmc.diagnostics()["divergences"].values())
    stacked = {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}
    seconds = round(time.perf_counter() - began, 1)
    return summarise("Pyro NUTS", stacked, divergences=divergences, seconds=seconds)


class Coordinates:
    """A model's posterior as a density of one vector ``z``, with ``x = loc + scale z`` the unconstrained latents.

    Args:
        model: a Pyro program.
        args: its arguments.
        precondition: take location and scale from the best Gaussian along a quasi-Newton path, else leave ``x = z``.
        start: values of the sites at the start of that path.
    """

    def __init__(self, model: Callable, args: tuple, precondition: bool, start: Draws | None = None) -> None:
        self.initial, self._potential, self.transforms, _ = initialize_model(
            model, args, num_chains=1, jit_compile=True, skip_jit_warnings=True,
            init_strategy=init_to_uniform if start is None else init_to_value(values=dict(start)),
        )  # fmt: skip
        x = torch.cat([value.detach().flatten() for value in self.initial.values()])
        self.loc, self.scale = torch.zeros_like(x), torch.eye(len(x))
        self.z = x
        if precondition:
            found = pathfinder(lambda xs: -torch.stack([self._potential(self.unpack(x)) for x in xs]), x[None])
            if found is None:
                raise RuntimeError("the model's density is finite nowhere on the path from its start")
            self.loc, self.scale = found.loc.to(x), torch.linalg.cholesky(found.covariance).to(x)
            self.z = torch.randn_like(x)

    def start(self) -> Tensor:
        """Where a chain starts: Pyro's own start, or a draw of the Gaussian."""
        return self.z

    def potential(self, values: Draws) -> Tensor:
        """The negative log density, up to a constant."""
        return self._potential(self.unpack(self.loc + self.scale @ values["z"]))

    def sites(self, z: Tensor) -> dict[str, Tensor]:
        """Constrained values by site, of vectors ``(draws, d)``."""
        values = self.unpack(self.loc + z @ self.scale.T)
        return {name: self.transforms[name].inv(x) if name in self.transforms else x for name, x in values.items()}

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        """Unconstrained values by site, of vectors ``(…, d)``."""
        parts = x.split([value.numel() for value in self.initial.values()], -1)
        return {
            name: part.reshape(x.shape[:-1] + value.shape)
            for part, (name, value) in zip(parts, self.initial.items(), strict=True)
        }
