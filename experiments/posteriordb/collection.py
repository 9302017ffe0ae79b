"""Where the posteriors lie, and which of them there are programs for."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.posteriordb import others, regressions, series
from experiments.posteriordb.programs import Program
from vi_flows.data.sources import resolve_root

PROGRAMS: dict[str, Program] = {p.name: p for p in [*regressions.PROGRAMS, *series.PROGRAMS, *others.PROGRAMS]}
"""By posteriordb's name, ``data-model``."""


def load(name: str, root: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Data and reference draws of a posterior, one tensor ``(chains, draws)`` a scalar.

    Where the collection's draws are not there and the posterior has a closed form, its own independent draws stand in
    for them (``Program.exact``).

    Below ``posteriordb/`` of the data root there may be either a folder for each posterior (``NAME/data.json.zip``,
    ``NAME/reference_draws.json.zip``) or a checkout of the collection itself, whose layout this is::

        posterior_database/posteriors/NAME.json
        posterior_database/data/data/DATA.json.zip
        posterior_database/reference_posteriors/draws/draws/DRAWS.json.zip

    Raises:
        FileNotFoundError: neither is there (``VI_FLOWS_DATA``), or the posterior has no reference draws.
    """
    top = resolve_root(root).path / "posteriordb"
    database = top / "posterior_database"
    if (top / name).is_dir():
        paths = top / name / "data.json.zip", top / name / "reference_draws.json.zip"
    elif (database / "posteriors" / f"{name}.json").exists():
        entry = json.loads((database / "posteriors" / f"{name}.json").read_text(encoding="utf-8"))
        draws = entry.get("reference_posterior_name")
        if draws is None:
            raise FileNotFoundError(f"posteriordb has no reference draws of {name}")
        paths = (
            database / "data" / "data" / f"{entry['data_name']}.json.zip",
            database / "reference_posteriors" / "draws" / "draws" / f"{draws}.json.zip",
        )
    elif (program := PROGRAMS.get(name)) and program.exact and (top / program.data_of / "data.json.zip").is_file():
        data = _unzip(top / program.data_of / "data.json.zip")
        return data, program.exact(data)
    else:
        raise FileNotFoundError(
            f"no {name} below {top}: set VI_FLOWS_DATA to the folder that holds posteriordb/, a folder for each "
            "posterior or a checkout of the collection"
        )
    data, chains = map(_unzip, paths)
    return data, {key: torch.tensor([chain[key] for chain in chains]).double() for key in chains[0]}


def _unzip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
