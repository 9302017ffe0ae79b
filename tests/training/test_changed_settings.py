"""What was trained with some settings is neither gone on with nor judged under others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vi_flows.cli import main
from vi_flows.training import Run, RunUnusableError, Trainer
from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.vae import VAETrainConfig
from vi_flows.vae import VAEConfig

SMALL = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), epochs=3, batch_size=400, threads=1)


def trained(folder, until=None, **settings):
    trainer = Trainer(Run.create(folder, replace(SMALL, **settings)), progress=False)
    trainer.start()
    trainer.fit(until)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("begun") / "run", until=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run")


def changed(source, folder, **settings):
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text())
    for name, value in settings.items():
        *above, last = name.split("__")
        place = content["settings"]
        for part in above:
            place = place[part]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 5}, "batch_size=5, and the run was trained with 400"),
        ({"objective": "iwae"}, "objective='iwae', and the run was trained with 'elbo'"),
        ({"protocol": "paper"}, "protocol='paper', and the run was trained with 'clean'"),
        ({"ema_decay": 0.9}, "ema_decay=0.9, and the run was trained with None"),
        ({"epochs": 9}, "epochs=9, and the run was trained with 3"),
        ({"epochs": 1}, "epochs=1, and the run was trained with 3"),
        ({"learning_rate": 1.0}, "learning_rate=1.0, and the run was trained with 0.001"),
        ({"seed": 3}, "seed=3, and the run was trained with 0"),
        ({"vae__latent_dims": [5]}, r"vae.latent_dims=\[5\], and the run was trained with \[2\]"),
    ],
)
def test_a_setting_that_was_changed_is_named(begun, finished, settings, said, tmp_path):
    for source in (begun, finished):
        folder = changed(source, tmp_path / source.parent.name, **settings)
        with pytest.raises(RunUnusableError, match=rf"config.json says {said}: put that back"):
            Trainer(Run.open(folder), progress=False).resume()
    with pytest.raises(RunUnusableError, match=rf"config.json says {said}"):
        evaluate_run(Run.open(folder), progress=False)
    config = replace(Run.open(folder).config, start_from=folder, protocol="paper")
    with pytest.raises(RunUnusableError, match=rf"config.json says {said}"):
        Run.create(tmp_path / "next", config)


def test_settings_of_the_machine_may_change(begun, tmp_path):
    trainer = Trainer(Run.open(changed(begun, tmp_path / "run", threads=2)), progress=False)
    trainer.resume()
    assert trainer.state["step"] == 4
    assert trainer.state["settings"]["batch_size"] == 400
    assert "threads" not in trainer.state["settings"]


def aged(path):
    """As an older version wrote it: without its settings, and so without the checksum of what it says."""
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    del state["settings"]
    save_file(load_file(path), path, metadata={"state": json.dumps(state)})


def test_a_checkpoint_that_does_not_say_its_settings_still_fits_or_is_refused(begun, finished, tmp_path, capsys):
    folder = changed(begun, tmp_path / "same")
    aged(folder / "checkpoint.safetensors")
    trainer = Trainer(Run.open(folder), progress=False)
    trainer.resume()
    assert trainer.state["settings"]["batch_size"] == 400  # and says them from now on
    folder = changed(begun, tmp_path / "averaged", ema_decay=0.9)
    aged(folder / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="the checkpoint has no averaged weights, and the run keeps some"):
        Trainer(Run.open(folder), progress=False).resume()
    folder = changed(finished, tmp_path / "larger", vae__latent_dims=[5])
    for name in ("checkpoint", "best", "last"):
        aged(folder / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"is of shape \(.*\) in the file and \(.*\) in the model"):
        Trainer(Run.open(folder), progress=False).resume()
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder)])
    said = capsys.readouterr().err
    assert "in the model; put its config.json back as it was" in said
    assert said.count("\n") == 1
