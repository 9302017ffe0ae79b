"""Image flows through the same training loop, evaluation, pictures and command line as the VAEs."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from tests.training.whole_and_parts import check_same_in_parts
from vi_flows.cli import main
from vi_flows.cli.main import _parse
from vi_flows.distributions.image_config import ImageFlowConfig, build_image_density, image_config
from vi_flows.flows.image import IMAGE_PRESETS
from vi_flows.flows.image_steps import Glow, InvConv3x3
from vi_flows.records import Record
from vi_flows.training import ImageTrainConfig, Run, Trainer
from vi_flows.training.config import config_from_dict, config_to_dict
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.image import ImageEvaluationSettings

IMAGE = image_config("inv_conv3x3", coupling="quad", num_levels=1, num_steps=2, width=8)
SMALL = ImageTrainConfig(image=IMAGE, epochs=2, batch_size=200, threads=1, ema_decay=0.9, checkpoint_seconds=1e9)


def trained(folder, config=SMALL):
    trainer = Trainer(Run.create(folder, config), progress=False)
    trainer.start()
    trainer.fit()
    return trainer


def test_training_lowers_bits_per_dim_and_evaluation_repeats(tmp_path):
    trained(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["valid_loss"] < lines[0]["valid_loss"] < 8
    settings = ImageEvaluationSettings(limit=30, num_samples=2)
    written, path = evaluate_run(Run.open(tmp_path / "run"), settings, progress=False)
    record = written.figures
    assert record["num_rows"] == 30
    assert record["num_draws"] == 2
    assert record["num_dims"] == 64
    assert record["round_trip_exact"] == 1.0
    low, high = record["interval"]
    assert low < record["bits_per_dim"] < high
    assert "inv_conv3x3-quad-l1-d2-w8" in written.key
    read = Record.read(path)
    assert read.figures == json.loads(json.dumps(record))
    assert read.scores["bits_per_dim"].mean() == pytest.approx(record["bits_per_dim"], rel=1e-5)
    again, _ = evaluate_run(Run.open(tmp_path / "run"), settings, progress=False, overwrite=True)
    assert again.figures["bits_per_dim"] == record["bits_per_dim"]


def test_resumed_run_takes_the_same_steps(tmp_path):
    check_same_in_parts(tmp_path, SMALL, 3)


def test_command_line(tmp_path, capsys):
    folder = str(tmp_path / "run")
    flow = ["nice", "--hidden-dims", "16", "--base", "logistic"]
    with pytest.raises(SystemExit) as done:
        main(["train", "image", "--out", folder, "--epochs", "1", "--batch-size", "500", "--quiet", *flow])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["evaluate", folder, "--num-samples", "1", "--limit", "10", "--quiet"])
    assert done.value.code == 0
    assert "bits/dim" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["sample", folder, "--rows", "2", "--columns", "3", "--temperature", "0.8"])
    assert done.value.code == 0
    for name in ("samples", "data", "interpolations"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 0


def test_learned_noise_and_mixed_precision_train(tmp_path):
    image = replace(
        IMAGE,
        flow=replace(IMAGE.flow, coupling="affine"),
        dequantization="variational",
        mixed_precision=True,
        checkpoint=True,
    )
    trainer = trained(tmp_path / "run", replace(SMALL, image=image, epochs=1))
    assert trainer.state["best"]["valid_loss"] < 8
    noise = trainer.module.dequantizer
    assert all((p.grad is not None) and p.grad.isfinite().all() for p in noise.parameters())
    assert any(p.detach().abs().sum() > 0 for n, p in noise.named_parameters() if n.endswith("4.weight"))


@pytest.mark.parametrize("preset", IMAGE_PRESETS)
def test_presets_are_built_and_on_the_command_line(preset):
    """Built small: the preset's depth is cut, its other settings stay."""
    flow = IMAGE_PRESETS[preset]
    has = {item.name for item in fields(flow)}
    small = {"num_steps": 1, "num_couplings": 1, "num_blocks": 1, "width": 4, "hidden_dims": (4,)}
    config = image_config(preset, **{name: value for name, value in small.items() if name in has})
    shape = (1, 28, 28) if "mnist" in preset else (3, 64, 64) if preset.endswith("64") else (3, 32, 32)
    density = build_image_density(config, shape)
    assert density.bits_per_dim(torch.randint(0, 256, (2, *shape))).isfinite().all()
    command = _parse(["train", "image", "--out", "run", "--alpha", "0.1", preset]).command
    assert command.config.image == ImageFlowConfig(flow, alpha=0.1)
    assert config_from_dict(ImageTrainConfig, json.loads(json.dumps(config_to_dict(command.config)))) == command.config


def test_the_default_is_glow_and_a_preset_can_be_changed():
    def parsed(*words):
        return _parse(["train", "image", "--out", "run", *words]).command.config.image.flow

    assert parsed() == parsed("glow") == Glow()
    changed = parsed("inv_conv3x3-cifar10", "--num-steps", "4", "--no-masked")
    assert changed == InvConv3x3(num_levels=3, num_steps=4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: image_config("glow-mnist9"), "mconv-mnist"),
        (lambda: image_config("nice", width=3), "nice has no width"),
        (lambda: image_config("real_nvp", coupling="quad"), "has no coupling"),
        (lambda: image_config("glow", num_blocks=2), "conditioner=gated"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("flow", ["maf", "real_nvp --num-levels 1"])
@pytest.mark.parametrize("size", [1, 1296])
def test_minibatches_of_one_image_are_refused_where_they_are_normalised(flow, size, tmp_path, capsys):
    """Of 1297 training images in minibatches of 1296 one is left: its variance is zero, as is that of each alone."""
    line = f"train image --out {tmp_path / 'run'} --batch-size {size} --epochs 1 --quiet {flow} --norm batch"
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert f"in minibatches of {size} leave a single one: choose another --batch-size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
