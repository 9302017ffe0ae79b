"""Random Gaussian programs of any shape, with their exact posterior and evidence by arithmetic of their own."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
LATENT_KINDS = ("normal", "vector", "mvn", "log_normal", "sum", "matrix")


@dataclass(frozen=True)
class RandomSite:
    """A Gaussian site whose mean is linear in sites before it; ``counts`` is how its observations enter."""

    name: str
    kind: str
    plates: tuple[str, ...]
    batch: tuple[int, ...]
    event: tuple[int, ...]
    parents: tuple[tuple[str, float], ...]
    const: float
    scale: float
    tril: Tensor
    value: Tensor | None = None
    counts: str = "plain"
    weight: float = 1.0
    mask: Tensor | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the sample sites: a ``sum`` is of two, one after the other."""
        return (f"{self.name}_0", f"{self.name}_1") if self.kind == "sum" else (self.name,)

    def log_prob(self, value: Tensor, loc: Tensor) -> Tensor:
        """Of unconstrained values, ``batch``."""
        residual = (value - loc).expand(self.batch + self.event)
        if self.kind == "mvn":
            tril = self.tril.double()
            z = torch.linalg.solve_triangular(tril, residual[..., None], upper=False)[..., 0]
            return (-0.5 * (z.square() + LOG_2PI)).sum(-1) - tril.diagonal().log().sum()
        q = -0.5 * (residual / self.scale).square() - math.log(self.scale) - 0.5 * LOG_2PI
        return q.flatten(len(self.batch)).sum(-1) if self.event else q

    def distribution(self, loc: Tensor) -> Any:
        """As Pyro has it."""
        loc = loc.expand(loc.shape[: loc.dim() - len(self.event)] + self.event)
        if self.kind == "mvn":
            return dist.MultivariateNormal(loc, scale_tril=self.tril)
        kind = dist.LogNormal if self.kind == "log_normal" else dist.Normal
        return kind(loc, self.scale).to_event(len(self.event))


class RandomProgram:
    """Two to six sites in up to two plates; the last one, and some of the others, observed, weighed or masked.

    Args:
        seed: of the program and its data.
    """

    def __init__(self, seed: int) -> None:
        pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        names = ("a", "b")[: pick.choice((0, 1, 1, 2, 2))]
        self.plates = {name: (-1 - place, pick.choice((1, 2, 3, 4))) for place, name in enumerate(names)}
        self.sites: dict[str, RandomSite] = {}
        count = pick.randint(2, 6)
        for index in range(count):
            observed = index == count - 1 or (index > 0 and pick.random() < 0.35)
            kind = pick.choice(LATENT_KINDS[:3] if observed else LATENT_KINDS)
            inside = tuple(name for name in names if pick.random() < 0.6)
            batch = [1] * max((-self.plates[name][0] for name in inside), default=0)
            for name in inside:
                batch[self.plates[name][0]] = self.plates[name][1]
            size = pick.choice((1, 2, 3))
            event = {"vector": (size,), "mvn": (max(size, 2),), "matrix": (2, size)}.get(kind, ())
            root = 0.5 * torch.randn(3, 3, generator=generator)[: max(size, 2), : max(size, 2)]
            parents = tuple((name, pick.uniform(-1.2, 1.2)) for name in self.sites if pick.random() < 0.6)
            more: dict[str, Any] = {}
            if observed:
                how = pick.choice(("plain", "plain", "scale", "mask", "masked", "obs_mask", "factor"))
                more = {"value": 1.5 * torch.randn((*batch, *event), generator=generator), "counts": how}
                if how == "scale":
                    more["weight"] = pick.choice((0.5, 2.0, 3.0))
                if "mask" in how:
                    more["mask"] = torch.rand(tuple(batch), generator=generator) < 0.6
            self.sites[f"x{index}"] = RandomSite(
                f"x{index}", kind, inside, tuple(batch), event, parents, pick.uniform(-1, 1), pick.uniform(0.3, 1.5),
                torch.linalg.cholesky(root @ root.T + 0.3 * torch.eye(len(root))), **more,
            )  # fmt: skip
        self.shapes = {
            part: torch.Size(site.batch + site.event)
            for site in self.sites.values() if site.value is None for part in site.parts
        }  # fmt: skip

    def loc(self, site: RandomSite, values: Mapping[str, Tensor]) -> Tensor:
        """``const + ½ Σ c Σ parent``, summed over events and over plates that the site is not in."""
        loc = torch.as_tensor(site.const)
        for name, factor in site.parents:
            parent = self.sites[name]
            feature = values[name].flatten(len(parent.batch)).sum(-1) if parent.event else values[name]
            for plate in set(parent.plates) - set(site.plates):
                feature = feature.sum(self.plates[plate][0], keepdim=True)
            loc = loc + 0.5 * factor * feature.reshape(feature.shape[max(feature.dim() - len(site.batch), 0) :])
        return loc.reshape(loc.shape + (1,) * len(site.event))

    def __call__(self) -> None:
        """The Pyro program."""
        plates = {name: pyro.plate(name, size, dim=dim) for name, (dim, size) in self.plates.items()}
        values: dict[str, Tensor] = {}
        for site in self.sites.values():
            fn = site.distribution(self.loc(site, values))
            with ExitStack() as stack:
                for name in site.plates:
                    stack.enter_context(plates[name])
                if site.counts == "scale":
                    stack.enter_context(poutine.scale(scale=site.weight))
                if site.counts == "mask":
                    stack.enter_context(poutine.mask(mask=site.mask))
                if site.value is None:
                    drawn = [pyro.sample(part, fn) for part in site.parts]
                    values[site.name] = drawn[0].log() if site.kind == "log_normal" else sum(drawn[1:], drawn[0])
                    continue
                values[site.name] = self.seen(site)
                if site.counts == "factor":
                    pyro.factor(site.name, fn.log_prob(site.value).expand(site.batch))
                elif site.counts == "obs_mask":
                    pyro.sample(site.name, fn, obs=site.value, obs_mask=site.mask)
                else:
                    masked = fn.expand(site.batch).mask(site.mask) if site.counts == "masked" else fn
                    pyro.sample(site.name, masked, obs=site.value)

    @staticmethod
    def seen(site: RandomSite) -> Tensor:
        """What other sites see of an observation: nothing of what is missing."""
        assert site.value is not None
        if site.counts != "obs_mask" or site.mask is None:
            return site.value
        return site.value * site.mask.reshape(site.mask.shape + (1,) * len(site.event))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """By sample site."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def log_joint(self, flat: Tensor) -> Tensor:
        """The log density of unconstrained latents, one after the other, without Pyro."""
        latents = self.split(flat)
        values: dict[str, Tensor] = {}
        total = flat.new_zeros(())
        for site in self.sites.values():
            loc = self.loc(site, values)
            if site.value is None:
                total = total + sum(site.log_prob(latents[part], loc).sum() for part in site.parts)
                values[site.name] = torch.stack([latents[part] for part in site.parts]).sum(0)
            else:
                found = site.log_prob(site.value.double(), loc)
                total = total + site.weight * (found if site.mask is None else found * site.mask).sum()
                values[site.name] = self.seen(site).double()
        return total

    def exact(self) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """Posterior means and sds by sample site, unconstrained, and the log evidence: the density is quadratic."""
        size = sum(shape.numel() for shape in self.shapes.values())
        origin = torch.zeros(size, dtype=torch.float64)
        precision = -torch.autograd.functional.hessian(self.log_joint, origin)
        covariance = torch.linalg.inv(precision)
        mean = covariance @ torch.autograd.functional.jacobian(self.log_joint, origin)
        evidence = self.log_joint(mean) + 0.5 * size * LOG_2PI - 0.5 * torch.logdet(precision)
        return self.split(mean), self.split(covariance.diagonal().sqrt()), float(evidence)
