"""Small flows and images that the tests of image densities share."""

from __future__ import annotations

import torch

from vi_flows.flows.image import IMAGE_FLOWS

SMALL = {
    "nice": {"hidden_dims": (12,), "num_couplings": 2},
    "maf": {"hidden_dims": (20,), "num_layers": 2},
    "real_nvp": {"width": 6, "num_blocks": 1, "num_couplings": 2, "num_final": 2},
    "mconv": {"width": 6, "num_blocks": 1, "num_couplings": 2},
    "glow": {"width": 6, "num_steps": 2},
    "inv_conv3x3": {"width": 6, "num_steps": 2},
    "inverse_flow": {"width": 6, "num_steps": 2},
    "emerging": {"width": 6, "num_steps": 2},
    "periodic": {"width": 6, "num_steps": 2, "kernel_size": 1},
    "finc": {"width": 6, "num_steps": 2},
    "flow_pp": {"width": 6, "num_steps": 2},
}


def small_flow(name, shape=(1, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    build = {key: options.pop(key) for key in ("recompute", "conditioner_dtype") if key in options}
    return IMAGE_FLOWS[name](**{**SMALL[name], **options}).build(shape, **build)


def images(*shape, levels=256):
    torch.manual_seed(3)
    return torch.randint(0, levels, shape, dtype=torch.uint8)
