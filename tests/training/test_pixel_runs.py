"""Autoregressive image models through the same loop, evaluation, pictures and command line as the other kinds."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from tqdm import tqdm

from tests.training.test_captured import NothingRead
from tests.training.whole_and_parts import check_same_in_parts
from vi_flows.autoregressive.config import PIXEL_MODELS, Made, PixelConfig, build_pixel_model, pixel_config
from vi_flows.cli import main
from vi_flows.training import PixelTrainConfig, Run, Trainer
from vi_flows.training.captured import trainer_for
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.base import BinaryDrawingSettings, EvaluationSettings

MADE = pixel_config("made", hidden_dims=(32,), num_masks=3)
CNN = pixel_config("pixel_cnn", width=8, num_blocks=1, dropout=0.1)
SMALL = PixelTrainConfig(pixel=MADE, epochs=2, batch_size=200, threads=1, ema_decay=0.9, checkpoint_seconds=1e9)


def trained(folder, config=SMALL):
    trainer = trainer_for(Run.create(folder, config), progress=False)
    trainer.start()
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    "pixel",
    [MADE, CNN, replace(CNN, output="categorical"), replace(CNN, output="logistic_mixture")],
    ids=lambda p: p.name,
)
def test_training_lowers_the_loss_and_evaluation_is_the_sum_over_pixels(tmp_path, pixel):
    trainer = trained(tmp_path / "run", replace(SMALL, pixel=pixel, learning_rate=1e-2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["valid_loss"] < lines[0]["valid_loss"]
    run = Run.open(tmp_path / "run")
    task = run.build_task()
    run.load_weights(task)
    pixels = run.data.split("clean").test
    found = task.evaluate(pixels, EvaluationSettings(limit=20), False)
    x = run.data.binarized(pixels)[7::15] if pixel.output == "bernoulli" else pixels[7::15].float()
    x = x.reshape(20, *run.data.shape)
    model = trainer.module.eval()
    model.load_state_dict(load_tensors(tmp_path / "run" / "best.safetensors")[0])
    expected = model.ensemble_log_prob(x, range(3)) if pixel is MADE else model.log_prob(x)
    assert torch.allclose(found.scores["nll"], -expected.detach(), atol=1e-3)
    assert abs(found.figures["nll"] + expected.double().mean().item()) < 1e-4


def test_validation_chooses_and_the_record_says_what_it_needs(tmp_path):
    trained(tmp_path / "run")
    _, path = evaluate_run(Run.open(tmp_path / "run"), EvaluationSettings(limit=30), progress=False)
    text = path.read_text()
    assert '"exact": true' in text
    assert '"weights": "best"' in text
    assert "made-h32-num_masks3" in text


@pytest.mark.parametrize("pixel", [MADE, CNN], ids=["made", "pixel_cnn"])
def test_resumed_run_takes_the_same_steps(tmp_path, pixel):
    check_same_in_parts(tmp_path, replace(SMALL, pixel=pixel), 4)


def test_static_buffers_change_nothing(tmp_path):
    config = replace(SMALL, pixel=MADE, batch_size=250)
    plain = trained(tmp_path / "plain", config)
    recorded = trained(tmp_path / "recorded", replace(config, cuda_graph=True))
    assert type(recorded) is not type(plain)
    for name, tensor in plain.module.state_dict().items():
        assert torch.allclose(tensor.double(), recorded.module.state_dict()[name].double(), atol=1e-5), name
    assert recorded.state["best"]["valid_loss"] == pytest.approx(plain.state["best"]["valid_loss"], abs=1e-3)


@pytest.mark.parametrize("model", PIXEL_MODELS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_reads_nothing_back_and_reaches_every_parameter(tmp_path, model, precision):
    small = MADE if model == "made" else pixel_config(model, width=8)
    regular = replace(small, model=replace(small.model, dropout=0.1))
    config = replace(SMALL, pixel=regular, precision=precision)
    task = Run(tmp_path, config).build_task()
    task.module.train()
    with NothingRead():
        result = task.step(task.train_rows[:8], 1.0, 1)
        result.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.module.parameters())
    exact = Run(tmp_path, replace(config, precision="float32", pixel=small)).build_task()
    difference = abs(exact.step(task.train_rows[:8], 1.0, 1).loss.item() / result.loss.item() - 1)
    assert difference < 0.1


@pytest.mark.parametrize("model", [MADE.model, Made(hidden_dims=(), direct=True), Made(hidden_dims=(4,), direct=True)])
def test_made_starts_at_the_mean_image(tmp_path, model):
    task = Run(tmp_path, replace(SMALL, pixel=PixelConfig(model))).build_task()
    task.initialize()
    for layer in [*task.module.last, *task.module.direct]:
        torch.nn.init.zeros_(layer.weight)
    means = task.data.means("train").mean(0)
    expected = means.clamp(1e-4, 1 - 1e-4).reshape(1, 1, 8, 8)
    logits = task.module.params(torch.zeros(1, 1, 8, 8), torch.zeros(1, 0))
    assert torch.allclose(logits[..., 0].sigmoid(), expected, atol=1e-5)
    assert means.min() == 0  # the corners, within one in ten thousand of it
    with pytest.raises(ValueError, match="64 binary entries"):
        task.module.set_output_bias(means[:5])


def test_models_of_grey_values_and_shared_layers_start_as_they_are(tmp_path):
    for pixel in (CNN, pixel_config("made", "categorical", hidden_dims=(4,))):
        task = Run(tmp_path, replace(SMALL, pixel=pixel)).build_task()
        before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
        task.initialize()
        assert all(torch.equal(tensor, before[name]) for name, tensor in task.module.state_dict().items())
    with pytest.raises(ValueError, match="1088 binary entries"):
        task.module.set_output_bias(torch.full((64,), 0.5))


def test_masks_take_turns():
    torch.manual_seed(0)
    model = build_pixel_model(MADE, (1, 3, 3)).double()
    x = torch.bernoulli(torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64))
    none = x.new_zeros(5, 0)
    seen = [model.training_params(x, none) for _ in range(6)]
    assert all(torch.equal(seen[i], seen[i + 3]) for i in range(3))
    assert not torch.allclose(seen[0], seen[1])
    for index in range(3):
        model.resample_masks(index)
        assert torch.equal(model.params(x, none), seen[index])
    assert torch.allclose(model.log_density(x, none), model.ensemble_log_prob(x, range(3)), atol=1e-12)
    assert torch.allclose(model.log_prob(x), model.log_density(x, none))
    assert not model.log_prob(x).allclose(model.output.log_prob(model.params(x, none), x).flatten(1).sum(1))


def test_command_line(tmp_path, capsys):
    folder = str(tmp_path / "run")
    options = ["gated_pixel_cnn", "--width", "4", "--num-layers", "1", "--first-kernel", "3"]
    with pytest.raises(SystemExit) as done:
        main(["train", "pixel", "--out", folder, "--epochs", "1", "--batch-size", "500", "--quiet", *options])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["evaluate", folder, "--limit", "10", "--quiet"])
    assert done.value.code == 0
    assert "nats (exact)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["sample", folder, "--rows", "1", "--columns", "3"])
    assert done.value.code == 0
    for name in ("samples", "data", "completions"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 0
    # Trained elsewhere: refused where there is no such device, unless another one is named.
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["device"] = "nonsense"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["sample", folder, "--rows", "1", "--columns", "1"])
    assert done.value.code == 2
    assert "device 'nonsense' can't be used here" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["sample", folder, "--rows", "1", "--columns", "1", "--device", "cpu"])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["evaluate", folder, "--limit", "10", "--quiet", "--device", "cpu", "--record", str(tmp_path / "r.json")])
    assert done.value.code == 0
    assert "nats (exact)" in capsys.readouterr().out
    for wrong in (
        ["sample", folder, "--temperature", "0.5", "--device", "cpu"],
        ["evaluate", folder, "--num-samples", "5"],
    ):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2


def test_completions_begin_with_the_image_and_keep_its_upper_half(tmp_path):
    task = Run(tmp_path, replace(SMALL, pixel=replace(CNN, model=replace(CNN.model, dropout=0.0)))).build_task()
    torch.manual_seed(0)
    grid = task.pictures(BinaryDrawingSettings(2, 3, binary=True))["completions"].reshape(2, 3, 8, 8)
    assert torch.equal(grid[:, 0], task.data.binarized("test")[[75, 225]].reshape(2, 8, 8))
    assert (grid[:, 1:, :4] == grid[:, :1, :4]).all()
    assert (grid[:, 1:, 4:] != grid[:, :1, 4:]).any()
    drawn_order = Run(tmp_path, SMALL).build_task()
    assert "completions" not in drawn_order.pictures(BinaryDrawingSettings(2, 3, binary=True))


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("made", {"width": 8}, "made has no width; it takes .*hidden_dims"),
        ("pixel_cnn", {"num_layers": 2}, "pixel_cnn has no num_layers"),
        ("gated_pixel_cnn", {"num_masks": 2}, "has no num_masks"),
        ("pixel_cnn", {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ("made", {"num_masks": 2, "order": "random"}, "the orders of 2 masks are drawn anyway"),
        ("made", {"hidden_dims": (0,)}, "hidden_dims must be at least 1"),
        ("pixel_rnn", {}, "unknown model 'pixel_rnn'; choose one of .*row_lstm"),
        ("gated_pixel_cnn", {"kernel_size": 2}, "odd"),
    ],
)
def test_bad_settings_are_named(model, settings, words):
    with pytest.raises(ValueError, match=words):
        build_pixel_model(pixel_config(model, **settings), (1, 8, 8))


@pytest.mark.parametrize("name", PIXEL_MODELS)
def test_every_setting_reaches_its_model(name):
    """No setting is left unused: each changes the modules or parameters of a small model."""
    small = {"hidden_dims": (4,)} if name == "made" else {"width": 4, "first_kernel": 3}
    other = {
        "hidden_dims": (5,), "activation": "tanh", "direct": True, "num_masks": 2, "width": 6, "first_kernel": 5,
        "num_blocks": 1, "num_layers": 1, "kernel_size": 5, "dropout": 0.5, "order": "random",
        "num_networks": 2,
    }  # fmt: skip

    def shown(**settings):
        model = build_pixel_model(pixel_config(name, **{**small, **settings}), (1, 4, 4), context_dim=2)
        assert model.context_dim == 2
        return (
            repr(model),
            [] if model.is_mixture else model.generation_order().tolist(),
            [(key, value.shape) for key, value in [*model.named_parameters(), *model.named_buffers()]],
        )

    plain = shown()
    for item in fields(PIXEL_MODELS[name]):
        assert shown(**{item.name: other[item.name]}) != plain, item.name


def test_names_say_the_sizes_and_what_is_not_at_its_default():
    assert PixelConfig().name == "gated_pixel_cnn-w64-l7"
    assert PixelConfig(Made()).name == "made-h500"
    assert pixel_config("made", order="random", dropout=0.5).name == "made-h500-dropout0.5-random"
    many = pixel_config("made", "categorical", hidden_dims=(20, 30), num_masks=4, direct=True, activation="tanh")
    assert many.name == "made-categorical-h20x30-tanh-direct-num_masks4"
    assert (
        pixel_config("pixel_cnn", width=8, dropout=0.1, kernel_size=5).name == "pixel_cnn-w8-b7-dropout0.1-kernel_size5"
    )


@pytest.mark.parametrize(("seconds", "written"), [(0.01, 1), (1.0, 0)])
def test_large_checkpoints_are_written_less_often(tmp_path, monkeypatch, seconds, written):
    """Ten seconds after the last one: after an epoch again if that took 10 ms, not if it took a second."""
    trainer = Trainer(Run.create(tmp_path / "run", replace(SMALL, epochs=9)), progress=False)
    trainer.start()
    trainer._last_save, trainer._save_seconds = trainer._last_save - 10, seconds
    saves = []
    monkeypatch.setattr(trainer, "save", lambda: saves.append(1))
    trainer.module.train()
    for batch in trainer.batches():
        trainer.take_step(batch)
    with tqdm(disable=True) as bar:
        trainer.end_epoch(bar)
    assert len(saves) == written


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to evaluate on")
def test_what_a_gpu_trained_is_evaluated_and_drawn_without_one(tmp_path, capsys):
    trained(tmp_path / "run")
    settings = tmp_path / "run" / "config.json"
    text = settings.read_text()
    assert text.count('"device": "cpu"') == 1
    settings.write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    for words in (["evaluate", "--limit", "3"], ["sample", "--rows", "1", "--columns", "2"]):
        with pytest.raises(SystemExit) as ended:
            main([words[0], str(tmp_path / "run"), *words[1:]])
        assert ended.value.code == 2
        assert "cuda" in capsys.readouterr().err
        with pytest.raises(SystemExit) as ended:
            main([words[0], str(tmp_path / "run"), *words[1:], "--device", "cpu"])
        assert ended.value.code == 0
        assert "run/" in capsys.readouterr().out
