"""What keeps a decoder from learning one binarisation by heart: dropout, and images drawn again by the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_captured import NothingRead
from vi_flows.data import draw_binary, load
from vi_flows.training import PixelVAETrainConfig, VAETrainConfig
from vi_flows.training.stacked_layers import stack_modules
from vi_flows.training.tasks.vae import VAETask
from vi_flows.vae import VAEConfig, build_vae

TINY = VAEConfig(latent_dims=(2,), hidden_dims=((30, 20),))
CONFIG = VAETrainConfig(vae=TINY)


def task_with(**settings: object) -> VAETask:
    torch.manual_seed(0)
    return VAETask(replace(CONFIG, **settings), load("digits"))


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_share_of_the_images_is_drawn_again_from_what_the_model_makes_of_them(share: float) -> None:
    task = task_with(redrawn=share)
    rows = task.train_rows
    asked: list[Tensor] = []

    def reconstruct(x: Tensor) -> Tensor:
        asked.append(x)
        return torch.full_like(x, 0.25)

    task.module.reconstruct = reconstruct
    torch.manual_seed(1)
    seen = task._seen(rows)
    torch.manual_seed(1)
    kept = draw_binary(task.data.means(rows))
    assert torch.equal(asked[0], kept)
    chosen = (seen != kept).any(-1)
    assert abs(chosen.double().mean() - share) < 4 * (share * (1 - share) / len(rows)) ** 0.5
    assert abs(seen[chosen].mean() - 0.25) < 0.01  # whole images, as binary draws of the means
    assert set(seen.unique().tolist()) == {0.0, 1.0}


def test_the_bound_is_that_of_the_images_seen_and_no_gradient_goes_through_their_making() -> None:
    task = task_with(redrawn=0.5)
    rows = task.train_rows[:50]
    torch.manual_seed(1)
    seen = task._seen(rows)
    assert not seen.requires_grad
    expected = task.objective.row_bounds(task.module, seen, 1, 0.5)
    torch.manual_seed(1)
    found = task.row_bounds(rows, 0.5, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_it_the_draws_are_those_that_there_were() -> None:
    task = task_with()
    torch.manual_seed(1)
    assert task._seen(task.train_rows[:9]).shape == (9, 64)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    draw_binary(task.data.means(task.train_rows[:9]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", [{"redrawn": 0.5}, {"vae": replace(TINY, dropout=0.2, batch_norm=True)}])
def test_a_step_reads_nothing_back(settings: dict[str, object]) -> None:
    task = task_with(**settings)
    task.module.train()
    with NothingRead():
        task.step(task.train_rows[:50], torch.tensor([0.5]), 2).loss.backward()


def test_dropout_is_in_the_decoder_and_in_training_alone() -> None:
    vae = build_vae(replace(TINY, dropout=0.25), 9)
    assert [type(layer) for layer in vae.model.networks[0]] == [nn.Linear, nn.Tanh, nn.Dropout] * 2
    assert not any(isinstance(layer, nn.Dropout) for layer in vae.guide.modules())
    z = torch.randn(4000, 2)
    torch.manual_seed(0)
    hidden = nn.Sequential(*list(vae.model.networks[0])[:3])(z)
    assert abs((hidden == 0).double().mean() - 0.25) < 0.01
    plain = build_vae(TINY, 9).eval()
    named = [[p for _, p in v.named_parameters()] for v in (plain, vae)]
    with torch.no_grad():
        for mine, theirs in zip(*named, strict=True):
            mine.copy_(theirs)
    assert torch.equal(vae.eval().model.decode(z), plain.model.decode(z))


def test_names_and_what_is_refused() -> None:
    config = replace(TINY, dropout=0.1)
    assert config.name == "g1-z2-h30x20-dropout0.1"
    assert config.label == "VAE, dropout 0.1"
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\)"):
        VAEConfig(dropout=1.0)
    with pytest.raises(ValueError, match=r"redrawn must lie in \[0, 1\)"):
        VAETrainConfig(redrawn=-0.1)
    with pytest.raises(ValueError, match="redrawn takes a draw of the decoder pixel by pixel"):
        PixelVAETrainConfig(redrawn=0.1)
    with pytest.raises(ValueError, match="models with dropout can't be stacked"):
        stack_modules([build_vae(config, 9) for _ in range(2)])
