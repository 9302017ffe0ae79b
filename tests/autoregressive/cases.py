"""Small models of every family, in float64 at random parameters."""

import itertools

import torch

from vi_flows.autoregressive import (
    MADE,
    Bernoulli,
    Categorical,
    DiagonalPixelRNN,
    GatedPixelCNN,
    Gaussian,
    LogisticMixture,
    PixelCNN,
    RowPixelRNN,
    WaveNet,
)

BINARY = Bernoulli()
IMAGE = (1, 3, 3)


def resampled(model, seed):
    model.resample_masks(seed)
    return model


BINARY_MODELS = {
    "made": lambda c=0: MADE(IMAGE, BINARY, (24,), context_dim=c),
    "made-deep-direct": lambda c=0: MADE(IMAGE, BINARY, (20, 20), "tanh", direct=True, context_dim=c),
    "made-order-3": lambda c=0: resampled(MADE(IMAGE, BINARY, (64, 64), context_dim=c), 3),
    "made-random": lambda c=0: MADE(IMAGE, BINARY, (24,), context_dim=c, natural_order=False),
    "made-linear": lambda c=0: MADE(IMAGE, BINARY, (), direct=True, context_dim=c),
    "pixel_cnn": lambda c=0: PixelCNN(IMAGE, BINARY, 8, 2, first_kernel=5, context_dim=c),
    "gated": lambda c=0: GatedPixelCNN(IMAGE, BINARY, 6, 2, first_kernel=3, context_dim=c),
    "diagonal": lambda c=0: DiagonalPixelRNN(IMAGE, BINARY, 8, 2, first_kernel=3, context_dim=c),
    "row": lambda c=0: RowPixelRNN(IMAGE, BINARY, 8, 2, first_kernel=5, context_dim=c),
    "wavenet": lambda c=0: WaveNet(9, BINARY, 6, 6, (1, 2, 4), context_dim=c),
}
"""Binary, nine entries each: all 512 events can be listed."""

OTHER_MODELS = {
    "made-gaussian": lambda c=0: MADE((6,), Gaussian(), (30,), "tanh", context_dim=c),
    "made-256": lambda c=0: MADE((4,), Categorical(256), (12,), context_dim=c),
    "pixel_cnn-rgb-256": lambda c=0: PixelCNN((3, 3, 3), Categorical(256), 24, 2, first_kernel=5, context_dim=c),
    "gated-rgb-256": lambda c=0: GatedPixelCNN((3, 3, 3), Categorical(256), 12, 2, first_kernel=3, context_dim=c),
    "diagonal-rgb-256": lambda c=0: DiagonalPixelRNN((3, 3, 3), Categorical(256), 12, 1, 3, context_dim=c),
    "row-rgb-256": lambda c=0: RowPixelRNN((3, 3, 3), Categorical(256), 24, 1, 5, context_dim=c),
    "gated-rgb-logistics": lambda c=0: GatedPixelCNN((3, 3, 3), LogisticMixture(), 12, 2, 3, context_dim=c),
    "wavenet-logistics": lambda c=0: WaveNet(12, LogisticMixture(), 6, 5, (1, 2), kernel_size=3, context_dim=c),
    "wavenet-256": lambda c=0: WaveNet(20, Categorical(256), 6, 6, (1, 2, 4), context_dim=c),
}
MODELS = BINARY_MODELS | OTHER_MODELS


def build(name, context_dim=0, seed=0, scale=0.3):
    """The model in float64, every parameter drawn anew."""
    torch.manual_seed(seed)
    model = MODELS[name](context_dim).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_().mul_(scale)
    return model


def jacobian(model, seeds=6):
    """``max |∂ params_i / ∂ x_j|`` over parameters and random points: ``(D, D)``, in the event's flat order.

    Several points, since a ReLU can be closed at one.
    """
    size = model.event_shape.numel()
    found = torch.zeros(size, size, dtype=torch.float64)
    for seed in range(seeds):
        x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        # Categorical inputs are scaled down by about n/2: go to that scale, so that the network sees numbers near one.
        x = x * (1.0 if model.output.encode(torch.ones(1)) == 1 else 128.0)
        weights = torch.randn(model.output.num_params, dtype=torch.float64)

        def params(flat, weights=weights):
            out = model.params(flat.reshape(1, *model.event_shape), flat.new_zeros(1, 0))
            return (out * weights).sum(-1).flatten()

        found = torch.maximum(found, torch.autograd.functional.jacobian(params, x).abs())
    return found


def past(model):
    """``(D, D)``: whether entry ``j`` comes before entry ``i`` in the model's order."""
    place = torch.empty(model.event_shape.numel(), dtype=torch.long)
    place[model.generation_order()] = torch.arange(len(place))
    return place[:, None] > place


def all_binary(shape):
    size = torch.Size(shape).numel()
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64).reshape(-1, *shape)
