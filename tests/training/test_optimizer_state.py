"""The optimizer's state in checkpoints."""

from __future__ import annotations

import pytest
import torch

from vi_flows.training.checkpoint import flatten_optimizer, restore_optimizer


def test_moments_come_back_in_the_layout_of_their_parameters():
    """Files hold them row by row; PyTorch's fused Adam on a GPU refused to go on with a model in channels_last."""

    def trained(steps, tensors=None):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, (2, 3)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if tensors is not None:
            model.load_state_dict(tensors["model"])
            restore_optimizer(optimizer, tensors["optimizer"])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3, 4, 4)).square().sum().backward()
            optimizer.step()
        return model, optimizer

    whole, _ = trained(4)
    half, optimizer = trained(2)
    rows = {name: tensor.contiguous().clone() for name, tensor in flatten_optimizer(optimizer).items()}
    rest, optimizer = trained(2, {"model": half.state_dict(), "optimizer": rows})
    for parameter, entry in optimizer.state.items():
        assert entry["exp_avg"].stride() == entry["exp_avg_sq"].stride() == parameter.stride()
    assert rest.weight.stride() != torch.empty(4, 3, 2, 3).stride()
    assert torch.equal(whole.weight, rest.weight)
    with pytest.raises(IndexError):
        restore_optimizer(optimizer, {"7.exp_avg": torch.ones(1)})
