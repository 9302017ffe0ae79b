"""Draws of a Pyro program's sites as ``xarray`` data sets: the names of dimensions, and labels along them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pyro.poutine import Trace

from vi_flows.traces import Site, is_deterministic, is_subsample, nodes

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["SAMPLE_DIMS", "Layout"]

SAMPLE_DIMS = ("chain", "draw")
"""ArviZ's names of the first two dimensions of all that is drawn."""

Arrays = Mapping[str, np.ndarray]


class Layout:
    """Names of dimensions: given ones, those of the model's plates, or ArviZ's.

    Args:
        trace: a run of the model.
        dims: names of a site's dimensions, instead of the plates'.
        coords: labels of a dimension.

    Raises:
        ValueError: ``dims`` names no site, or gives a dimension the name of something else.
    """

    def __init__(self, trace: Trace, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]) -> None:
        self.sites: dict[str, Site] = {
            name: site for name, site in nodes(trace).items() if site["type"] == "sample" and not is_subsample(site)
        }
        self.dims, self.coords = dims, coords
        self._used: dict[str, int] = {}
        for name, given in dims.items():
            if name not in self.sites:
                raise ValueError(f"dims names {name!r}, which is no site of the model; it has {_listed(self.sites)}")
            for dim in given:
                if not _is_free(dim, self.sites) or list(given).count(dim) > 1:
                    raise ValueError(
                        f"dims of {name!r}: no dimension can be called {dim!r}, as something else is, or it has a '/': "
                        "give it a name that is not chain, draw, one of a site or one of its other dimensions"
                    )

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse names that xarray can't hold.

        Args:
            names: of the sites that are to be laid out.

        Raises:
            ValueError: a site is called as one of the :data:`SAMPLE_DIMS`, or with a ``/``, which divides groups.
        """
        for name in names:
            if not _is_free(name, ()):
                raise ValueError(
                    f"site {name!r} can't have that name in a DataTree, where '/' divides groups and 'chain' and "
                    "'draw' are dimensions: rename it in the model, or take guide.sample_posterior"
                )

    def check_coords(self) -> None:
        """Refuse labels of no dimension, once all is laid out.

        Raises:
            ValueError: ``coords`` labels a dimension that nothing has.
        """
        for dim in self.coords:
            if dim not in self._used:
                raise ValueError(f"coords labels {dim!r}, which is no dimension; there are {_listed(self._used)}")

    def dataset(
        self,
        arrays: Arrays,
        sample_dims: tuple[str, ...],
        *,
        named: bool = True,
        events: bool = True,
        counted: Arrays | None = None,
    ) -> Dataset:
        """A data set of arrays by site.

        Where elements don't count, whole slices of them are left out, and the labels along that dimension with them.
        What is not a block then is laid out along one dimension ``y_kept``, with the labels along ``rows`` as
        ``y_kept_rows``.

        Args:
            arrays: each of shape ``sample_dims`` + its own.
            sample_dims: names of the dimensions that all have in front.
            named: whether the dimensions are those of the sites, and not of their unconstrained coordinates.
            events: whether the arrays have the dimensions of events, as log densities don't.
            counted: by site, which elements are to be kept; without it, all are.

        Returns:
            The variables.

        Raises:
            ValueError: the names given for a site's dimensions are not as many as these, or one of them is longer
                elsewhere; or the labels of a dimension are not as many as it is long.
        """
        import xarray

        in_front = next(iter(arrays.values())).shape
        labels: dict[str, Any] = {dim: self._labels(dim, n) for dim, n in zip(sample_dims, in_front, strict=False)}
        variables: dict[str, Any] = {}
        for name, value in arrays.items():
            shape = value.shape[len(sample_dims) :]
            names = self._names(name, shape, events) if named else _of_arviz(name, len(shape))
            kept = np.broadcast_to(True if counted is None else counted[name], shape)
            axes = range(len(shape))
            places = [np.flatnonzero(kept.any(tuple(other for other in axes if other != axis))) for axis in axes]
            block: tuple[Any, ...] = np.ix_(*places)
            here: dict[str, np.ndarray] = {}
            for i, (dim, size) in enumerate(zip(names, shape, strict=True)):
                # A dimension of something else's name, or with other labels, is not that dimension.
                own = _unlike(arrays, f"{name}_dim_{i}")
                for called in (dim, own) if _is_free(dim, arrays) else (own,):
                    along = self._labels(called, size)[places[i]]
                    if called == own or np.array_equal(labels.get(called, along), along):
                        here[called] = along
                        break
            if kept[block].all():
                labels |= here
                variables[name] = ((*sample_dims, *here), value[(..., *block)])
            else:
                one = _unlike(arrays, f"{name}_kept")
                where = np.nonzero(kept[block])
                for (dim, along), index in zip(here.items(), where, strict=True):
                    labels[f"{one}_{dim}"] = (one, along[index])
                variables[name] = ((*sample_dims, one), value[..., kept])
        return xarray.Dataset(variables, coords=labels)

    def _labels(self, dim: str, size: int) -> np.ndarray:
        self._used[dim] = size
        if dim not in self.coords:
            return np.arange(size)
        if len(self.coords[dim]) != size:
            raise ValueError(f"coords of {dim!r}: {len(self.coords[dim])} labels for a dimension of length {size}")
        return np.asarray(self.coords[dim])

    def _names(self, name: str, shape: Sequence[int], events: bool) -> list[str]:
        count = len(shape)
        site = self.sites.get(name)
        if site is None:  # computed at some draws only
            return _of_arviz(name, count)
        event = 0 if is_deterministic(site) else site["fn"].event_dim
        whole = count if events else count + event
        if name in self.dims:
            given = list(self.dims[name])
            if len(given) != whole:
                raise ValueError(f"dims of {name!r}: {len(given)} names for {whole} dimensions")
            for dim, size in zip(given, shape, strict=False):
                if self._used.get(dim, size) != size:
                    raise ValueError(
                        f"dims of {name!r}: {dim!r} has the length {size}, and {self._used[dim]} elsewhere"
                    )
            return given[:count]
        names = _of_arviz(name, count)
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:  # a loop over a plate: its sites have no dimension of it
                continue
            place = whole - event + frame.dim
            if 0 <= place < count and shape[place] == frame.size:
                names[place] = frame.name
        return names


def _of_arviz(name: str, count: int) -> list[str]:
    return [f"{name}_dim_{i}" for i in range(count)]


def _is_free(name: str, taken: Collection[str]) -> bool:
    return "/" not in name and name not in SAMPLE_DIMS and name not in taken


def _unlike(taken: Collection[str], name: str) -> str:
    while name in taken:
        name += "_"
    return name


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
