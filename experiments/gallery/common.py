"""What the gallery shares: fit four guides under one budget, compare them with ground truth, write a record."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from vi_flows.data.sources import resolve_root
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

RESULTS = Path(__file__).parents[1] / "results"
Draws = Mapping[str, Tensor]

GUIDES: dict[str, Callable[..., Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": lambda model: AutoIAFNormal(model, num_transforms=2),
    "AutoConvFlow": lambda model: AutoConvFlow(model, num_blocks=2),
}


def posteriordb(name: str, root: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Data and reference draws (all chains, one tensor a scalar) of a posterior of posteriordb.

    Raises:
        FileNotFoundError: the folder ``posteriordb/NAME`` isn't below the data root (``VI_FLOWS_DATA``).
    """
    folder = resolve_root(root).path / "posteriordb" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: set VI_FLOWS_DATA to the folder that holds posteriordb/")
    data, chains = (_unzip(folder / f"{kind}.json.zip") for kind in ("data", "reference_draws"))
    return data, {key: torch.tensor([x for chain in chains for x in chain[key]]).double() for key in chains[0]}


def _unzip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def nuts_reference(
    model: Callable, args: tuple, quantities: Callable[[Draws], Draws], num_samples: int, warmup: int
) -> tuple[dict[str, Tensor], float]:
    """Ground truth by Pyro's NUTS, and its seconds."""
    pyro.set_rng_seed(0)
    began = time.perf_counter()
    mcmc = MCMC(NUTS(model), num_samples=num_samples, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(*args)
    return {k: v.double() for k, v in quantities(mcmc.get_samples()).items()}, time.perf_counter() - began


def errors(draws: Draws, reference: Draws) -> dict[str, Any]:
    """Largest error of a mean in reference sd, and the range of sd ratios, with the names."""
    z = {k: float((v.double().mean() - reference[k].mean()).abs() / reference[k].std()) for k, v in draws.items()}
    ratio = {k: float(v.double().std() / reference[k].std()) for k, v in draws.items()}
    worst, low, high = max(z, key=z.__getitem__), min(ratio, key=ratio.__getitem__), max(ratio, key=ratio.__getitem__)
    return {
        "max_mean_error_sd": round(z[worst], 4), "at": worst,
        "min_sd_ratio": round(ratio[low], 4), "min_at": low,
        "max_sd_ratio": round(ratio[high], 4), "max_at": high,
    }  # fmt: skip


def compare(
    name: str,
    model: Callable,
    args: tuple,
    quantities: Callable[[Draws], Draws],
    reference: Draws,
    reference_source: str,
    num_steps: int = 3000,
    num_particles: int = 16,
    num_draws: int = 40_000,
    seeds: tuple[int, ...] = (0,),
    only: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Fit every guide with the same call and budget, print a table and write ``results/gallery-NAME.json``.

    With ``only`` (or the variable ``GALLERY_ONLY``, names with commas), the other guides' rows of an existing record
    are kept.
    """
    only = only or tuple(filter(None, os.environ.get("GALLERY_ONLY", "").split(",")))
    path = RESULTS / f"gallery-{name}.json"
    rows = []
    if only and path.exists():
        rows = [row for row in json.loads(path.read_text())["rows"] if row["guide"] not in only]
    print(f"{name} ({reference_source})")
    for guide_name, make in GUIDES.items():
        if only and guide_name not in only:
            continue
        for seed in seeds:
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            began = time.perf_counter()
            guide = make(model)
            result = fit(model, guide, *args, num_steps=num_steps, num_particles=num_particles, seed=seed)
            seconds = time.perf_counter() - began
            with torch.no_grad():
                raw = Predictive(guide, num_samples=num_draws, parallel=True)(*args)
            shapes = {k: v["value"].shape for k, v in guide.prototype_trace.iter_stochastic_nodes()} if hasattr(
                guide, "prototype_trace") else {}  # fmt: skip
            draws = quantities({k: raw[k].reshape(num_draws, *shape) for k, shape in shapes.items()})
            report = diagnose(model, guide, *args)
            row = {
                "guide": guide_name, "seed": seed, **errors(draws, reference),
                "elbo": round(report.elbo, 3), "elbo_se": round(report.elbo_se, 3),
                "log_evidence": round(report.log_evidence, 3), "k_hat": round(report.k_hat, 3),
                "verdict": report.verdict, "steps": result.num_steps, "seconds": round(seconds, 1),
            }  # fmt: skip
            rows.append(row)
            print(
                f"  {guide_name:23s} mean {row['max_mean_error_sd']:.3f} sd  ratios {row['min_sd_ratio']:.3f}…"
                f"{row['max_sd_ratio']:.3f}  ELBO {row['elbo']:.3f}  k-hat {row['k_hat']:.2f}  "
                f"{row['verdict']}  {row['steps']} steps {row['seconds']:.0f} s",
                flush=True,
            )
    record = {
        "name": name, "reference": reference_source, "num_steps_at_most": num_steps, "num_particles": num_particles,
        "num_draws": num_draws, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record
