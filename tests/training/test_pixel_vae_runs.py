"""VAEs with autoregressive decoders through the same commands as the other kinds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vi_flows.autoregressive.config import Residual
from vi_flows.cli import main
from vi_flows.training import PixelVAETrainConfig, Run
from vi_flows.training.captured import trainer_for
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.pixel_vae import PixelVAEEvaluationSettings
from vi_flows.vae import VAEConfig

SMALL = PixelVAETrainConfig(
    vae=VAEConfig(latent_dims=(4,), hidden_dims=((16,),)),
    decoder=Residual(width=4, num_blocks=1, first_kernel=3),
    epochs=2, batch_size=200, threads=1, learning_rate=5e-3, checkpoint_seconds=1e9,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pixel-vae") / "run"
    trainer = trainer_for(Run.create(path, SMALL), progress=False)
    trainer.start()
    trainer.fit()
    return path


def test_the_name_says_all(folder):
    assert SMALL.name == "g1-z4-h16-pixel_cnn-w4-b1-first_kernel3"
    assert SMALL.label == "VAE, pixel_cnn decoder"
    assert Run.open(folder).config == SMALL
    assert PixelVAEEvaluationSettings().num_samples == 100


def test_the_record_holds_the_parts_of_the_bound(folder, tmp_path):
    record, path = evaluate_run(
        Run.open(folder), PixelVAEEvaluationSettings(num_samples=20, limit=30), record=tmp_path, progress=False
    )
    figures = json.loads(path.read_text())["figures"]
    assert set(record.scores) >= {"nll", "kl", "reconstruction", "reconstruction_of_others"}
    assert all(len(values) == 30 for values in record.scores.values())
    # One draw of both parts against the mean of twenty: their sum is the ELBO but for the noise.
    assert figures["kl"] + figures["reconstruction"] == pytest.approx(-figures["elbo"], abs=0.5)
    assert figures["nll"] < -figures["elbo"]
    assert figures["num_samples"] == 20


def test_every_image_has_another_one_also_in_the_last_part(folder, monkeypatch):
    run = Run.open(folder)
    task = run.build_task()
    run.load_weights(task)
    monkeypatch.setattr("vi_flows.training.tasks.pixel_vae.ROWS_SCORED", 5)
    pixels = run.data.split("clean").test
    for limit in (2, 5, 6, 11, 12):
        found = task.evaluate(pixels, PixelVAEEvaluationSettings(num_samples=1, limit=limit), False)
        assert len(found.scores["kl"]) == limit
    with pytest.raises(ValueError, match="another image are needed, and there are 1 images: take at least 2"):
        task.evaluate(pixels, PixelVAEEvaluationSettings(num_samples=10**9, limit=1), False)  # before what takes long
    state = torch.random.get_rng_state()
    task.evaluate(pixels, PixelVAEEvaluationSettings(num_samples=1, limit=4), False)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_worth_of_a_latent_does_not_depend_on_the_order_of_the_images(tmp_path):
    """Class after class, as in a file, or shuffled: another image is any other one."""
    decoder = Residual(width=4, num_blocks=0, first_kernel=1)  # which leaves all to the latent
    run = Run.create(tmp_path / "run", replace(SMALL, decoder=decoder, epochs=6, batch_size=20))
    trainer = trainer_for(run, progress=False)
    trainer.start()
    trainer.fit()
    task = run.build_task()
    run.load_weights(task)
    order = run.data.labels["test"].argsort()
    pixels, settings = run.data.split("clean").test, PixelVAEEvaluationSettings(num_samples=1)
    worth = []
    for rows in (pixels, pixels[order]):
        figures = task.evaluate(rows, settings, False).figures
        worth.append(figures["reconstruction_of_others"] - figures["reconstruction"])
    assert worth[1] == pytest.approx(worth[0], abs=0.15 * abs(worth[0]))
    assert worth[0] > 1


def run(*words, code=0):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == code


def test_the_commands(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--epochs", 1, "--batch-size", 500, "--quiet", "--latent-dims", 3, "none", "gated_pixel_cnn")
    run("train", "pixel_vae", "--out", out, *options, "--width", 2, "--num-layers", 1, "--first-kernel", 3)
    run("evaluate", out, "--limit", 10, "--num-samples", 3, "--quiet")
    told = capsys.readouterr().out
    assert "the own latent tells the decoder" in told
    assert "3 samples are too few" in told  # not: none of the images above 0.7
    run("sample", out, "--rows", 1, "--columns", 2)
    assert (out / "samples.png").exists()
    run("train", "pixel_vae", "--out", tmp_path / "other", *options, "--num-blocks", 2, code=2)
