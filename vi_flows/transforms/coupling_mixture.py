"""The coupling map of Flow++: the CDF of a mixture of logistics, which can bend where an affine map can only scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.transforms.coupling_maps import ElementwiseMap
from vi_flows.transforms.implicit import differentiable_root

__all__ = ["MixtureMap"]


class MixtureMap(ElementwiseMap):
    r"""A shifted and scaled mixture-of-logistics CDF in logit space (Ho et al. 2019, *Flow++*, section 3.2).

    ``y = (h(x) + t) eᵃ`` with ``h(x) = (1−ε) logit Σ_k π_k σ((x − μ_k) e^{−s_k}) + ε x`` and
    ``log|det| = Σ (log h′(x) + a)``. The second term of ``h``, which Flow++ does not have, keeps its slope at least
    ``ε``: between narrow components the CDF is flat, and its inverse would lose all digits there. ``s_k`` and ``a`` are
    bounded softly (``c tanh(·/c)``, ``c`` of 4 and 2). Zero maps give components at fixed, different places: equal ones
    would stay equal, as they would get equal gradients.

    ``h`` has no closed inverse. For every ``k`` it is linear with component ``k`` alone, and the mixture's inverse lies
    between the least and the largest of the inverses of these; bisection from there, then Newton's method within the
    bracket.

    Args:
        num_components: ``K``.

    Raises:
        ValueError: there is no component.
    """

    leak = 0.05
    num_bisections = 30
    num_newton = 3

    def __init__(self, num_components: int = 4) -> None:
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components
        self.num_maps = 2 + 3 * num_components

    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Bend, shift, scale; or the reverse."""
        shift, log_scale = maps[0], 2.0 * torch.tanh(maps[1] / 2.0)
        log_weight, mean, log_width = self._components(torch.stack(list(maps[2:])))
        if inverse:
            target = x * (-log_scale).exp() - shift
            x = self._solve(target, log_weight, mean, log_width)
            _, log_slope = self._bend(x, log_weight, mean, log_width)
            return x, -(log_slope + log_scale)
        bent, log_slope = self._bend(x, log_weight, mean, log_width)
        return (bent + shift) * log_scale.exp(), log_slope + log_scale

    def _components(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``log π``, ``μ`` and ``s``, each with the components in front."""
        logits, mean, log_width = maps.chunk(3)
        places = torch.linspace(-1.0, 1.0, self.num_components + 2, dtype=maps.dtype, device=maps.device)[1:-1]
        mean = mean + places.reshape(-1, *[1] * (maps.dim() - 1))
        return F.log_softmax(logits, 0), mean, 4.0 * torch.tanh(log_width / 4.0)

    def _bend(self, x: Tensor, log_weight: Tensor, mean: Tensor, log_width: Tensor) -> tuple[Tensor, Tensor]:
        """``h`` and ``log h′``."""
        z = (x - mean) * (-log_width).exp()
        log_cdf_k = F.logsigmoid(z)
        below = log_weight + log_cdf_k
        log_cdf = torch.logsumexp(below, 0)
        log_rest = torch.logsumexp(below - z, 0)  # log σ(−z) = log σ(z) − z
        log_pdf = torch.logsumexp(below + (log_cdf_k - z - log_width), 0)
        slope = (log_pdf - log_cdf - log_rest).exp()
        bent = (1 - self.leak) * (log_cdf - log_rest) + self.leak * x
        return bent, ((1 - self.leak) * slope + self.leak).log()

    def _solve(self, target: Tensor, log_weight: Tensor, mean: Tensor, log_width: Tensor) -> Tensor:
        """``h⁻¹(target)``, with the derivatives of the equation."""

        def residual_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
            bent, log_slope = self._bend(x, log_weight, mean, log_width)
            return bent - target, log_slope.exp()

        with torch.no_grad():
            gain = (1 - self.leak) * (-log_width).exp()
            alone = (target + gain * mean) / (gain + self.leak)
            low, high = alone.amin(0), alone.amax(0)
            for _ in range(self.num_bisections):
                middle = 0.5 * (low + high)
                above = self._bend(middle, log_weight, mean, log_width)[0] > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            x = 0.5 * (low + high)
            for _ in range(self.num_newton):
                bent, log_slope = self._bend(x, log_weight, mean, log_width)
                x = torch.minimum(torch.maximum(x - (bent - target) * (-log_slope).exp(), low), high)
        return differentiable_root(x, residual_and_slope)
