"""Runs that start from another run's weights: what they start with, what is refused, and what is written down."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from vi_flows.cli import main
from vi_flows.training import Run, Trainer
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.run import RunUnusableError
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETrainConfig
from vi_flows.vae import VAEConfig

SMALL = VAETrainConfig(
    vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),), batch_norm=True), epochs=2, batch_size=400, threads=1
)


def trained(folder, **settings):
    trainer = Trainer(Run.create(folder, replace(SMALL, **settings)), progress=False)
    trainer.start()
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a finished run whose best weights are not its last ones."""
    folder = tmp_path_factory.mktemp("source") / "elbo"
    trained(folder, learning_rate=0.05)
    return folder


def weights(folder, name="best"):
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def test_it_starts_with_the_chosen_weights_and_a_fresh_optimizer(source, tmp_path):
    run = Run.create(tmp_path / "iwae", replace(SMALL, objective="iwae", num_particles=3, start_from=source, seed=4))
    trainer = Trainer(run, progress=False)
    trainer.start()
    for name, tensor in weights(source).items():
        torch.testing.assert_close(trainer.module.state_dict()[name], tensor, rtol=0, atol=0)
    assert not trainer.optimizer.state
    assert trainer.module.training
    trainer.fit()
    assert trainer.state["step"] == 2 * trainer.steps_per_epoch


def test_the_record_says_where_its_weights_came_from(source, tmp_path):
    trainer = trained(tmp_path / "second", start_from=source, objective="dreg", num_particles=2)
    third = trained(tmp_path / "third", start_from=trainer.run.folder)
    record, _ = evaluate_run(third.run, VAEEvaluationSettings(limit=5, num_samples=10), progress=False)
    last = record.provenance["started_from"]
    assert (last["run"], last["model"], last["seed"]) == ("second", "g1-z2-h4-bn-dreg2", 0)
    first = last["started_from"]
    assert first["run"] == "elbo"
    assert first["sha256"] == hashlib.sha256((source / "best.safetensors").read_bytes()).hexdigest()
    assert first["epoch"] == Run.open(source).load_weights(Run.open(source).build_task())["epoch"]
    assert first["steps"] == first["epoch"] * third.steps_per_epoch
    assert first["started_from"] is None
    assert record.settings["start_from"] is None  # a path of this machine


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vae": replace(SMALL.vae, hidden_dims=((5,),))}, r"hidden_dims=\[\[4\]\], this one \[\[5\]\]"),
        ({"vae": replace(SMALL.vae, batch_norm=False)}, "batch_norm=True, this one False"),
        ({"dataset": "binarized_mnist"}, "dataset=digits, this one binarized_mnist"),
    ],
)
def test_runs_of_another_model_or_data_are_refused(source, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Run.create(tmp_path / "new", replace(SMALL, start_from=source, **settings))
    assert not (tmp_path / "new").exists()


def test_weights_that_have_seen_the_validation_images_are_refused(tmp_path):
    trained(tmp_path / "paper", protocol="paper", epochs=1)
    with pytest.raises(ValueError, match="trained on the validation images"):
        Run.create(tmp_path / "new", replace(SMALL, start_from=tmp_path / "paper"))
    run = Run.create(tmp_path / "new", replace(SMALL, start_from=tmp_path / "paper", protocol="paper"))
    assert run.started_from["weights"] == "last"


def test_weights_that_changed_since_are_refused(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    run = Run.create(tmp_path / "new", replace(SMALL, start_from=copy))
    shutil.copy(copy / "last.safetensors", copy / "best.safetensors")
    if weights(source)["model.logits.bias"].equal(weights(source, "last")["model.logits.bias"]):
        (copy / "best.safetensors").write_bytes(b"")
    with pytest.raises(RunUnusableError, match="not what it was"):
        Trainer(run, progress=False).start()


def test_a_run_without_weights_is_refused(tmp_path):
    Run.create(tmp_path / "empty", SMALL)
    with pytest.raises(RunUnusableError, match="no usable weights"):
        Run.create(tmp_path / "new", replace(SMALL, start_from=tmp_path / "empty"))


def test_once_it_has_begun_it_needs_its_source_no_more(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    run = Run.create(tmp_path / "new", replace(SMALL, start_from=copy))
    trainer = Trainer(run, progress=False)
    trainer.start()
    shutil.rmtree(copy)
    again = Trainer(Run.open(run.folder), progress=False)
    again.resume()
    again.fit()
    assert json.loads((run.folder / "config.json").read_text())["started_from"]["run"] == "copy"


def test_the_command_takes_it(source, tmp_path, capsys):
    words = ["--quiet", "--epochs", "1", "--batch-size", "400", "--latent-dims", "2", "--hidden-dims", "4"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "vae", "--out", str(tmp_path / "new"), "--from", str(source), *words])
    assert ended.value.code == 2
    assert "batch_norm=True, this one False" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "vae", "--out", str(tmp_path / "new"), "--from", str(source), "--batch-norm", *words])
    assert ended.value.code == 0


def test_objectives_that_a_flow_cannot_serve_are_refused_before_there_is_a_folder(tmp_path, capsys):
    flow = ["--no-amortized", "--objective", "dreg", "--num-particles", "3", "conv_flow"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "vae", "--out", str(tmp_path / "new"), *flow])
    assert ended.value.code == 2
    assert "leaky ReLU jumps; use a smooth activation such as tanh" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
