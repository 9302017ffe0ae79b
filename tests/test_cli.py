"""The command line as a new user meets it."""

from __future__ import annotations

import pytest
from PIL import Image

from vi_flows.cli import main
from vi_flows.training import Run


def run(*args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code


SMALL = ("--epochs", 1, "--latent-dims", 4, "--batch-size", 300, "--quiet", "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", "--out", folder, *SMALL, "--flow", "global", "--num-blocks", 2) == 0
    return folder


def test_train_evaluate_sample(folder, capsys):
    assert run("evaluate", folder, "--num-samples", 50, "--quiet") == 0
    out = capsys.readouterr().out
    assert "NLL" in out
    assert "g1-conv_flow-global-k2" in out
    assert run("evaluate", folder, "--num-samples", 50, "--quiet") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("sample", folder, "--rows", 3, "--columns", 5) == 0
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (5 * 9 * 7 + 7, 3 * 9 * 7 + 7)
        assert len(set(picture.getdata())) > 10
    assert run("sample", folder, "--rows", 0) == 2


def test_demo(tmp_path, capsys):
    assert run("demo", "--out", tmp_path / "demo", "--epochs", 1, "--num-samples", 20, "--quiet") == 0
    out = capsys.readouterr().out
    assert "VAE + ConvFlow K=4, amortised" in out
    assert len(list((tmp_path / "demo").glob("*/results/*.json"))) == 3
    assert len(list((tmp_path / "demo").glob("*/*.png"))) == 9
    assert run("demo", "--out", tmp_path / "demo", "--epochs", 1, "--quiet") == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "--out", "{tmp}/a", "--dataset", "minst"), "binarized_mnist"),
        (("train", "--out", "{tmp}/a", "--dataset", "mnist", "--data-root", "{tmp}/none"), "data download"),
        (("train", "--out", "{tmp}/a", "--epochs", "0"), "epochs"),
        (("train", "--out", "{tmp}/a", "--latent-dims", "3", "4"), "2 latents|latent_dims"),
        (("train", "--out", "{tmp}/none", "--resume"), "holds no run"),
        (("evaluate", "{tmp}/none"), "holds no run"),
        (("sample", "{tmp}/none"), "holds no run"),
        (("train",), "--out"),
        (("trian",), "train"),
    ],
)
def test_mistakes_are_answered_in_words(args, words, tmp_path, capsys):
    assert run(*(arg.format(tmp=tmp_path) for arg in args)) == 2
    error = capsys.readouterr().err
    assert any(word in error for word in words.split("|")), error
    assert "Traceback" not in error
    assert not (tmp_path / "a" / "checkpoint.safetensors").exists()


def test_resume_refuses_other_settings(folder, capsys):
    assert run("train", "--out", folder, "--resume", "--batch-size", 7) == 2
    assert "batch_size" in capsys.readouterr().err
    assert run("train", "--out", folder, *SMALL) == 2
    assert "--resume" in capsys.readouterr().err


def test_data_list(capsys):
    assert run("data", "list") == 0
    assert "binarized_mnist" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_left_as_it_is(folder, capsys):
    with (folder / "metrics.jsonl").open("a") as file:  # an epoch that the other process has not saved yet
        file.write('{"epoch": 99, "step": 99999}\n')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with Run.open(folder).locked():  # a lock of its own, as another process would have
        assert run("train", "--out", folder, "--resume", "--quiet") in (1, 2)
    assert "another process" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_device_that_is_not_there_leaves_no_folder(tmp_path, capsys):
    assert run("train", "--out", tmp_path / "run", *SMALL, "--device", "foo") in (1, 2)
    assert "foo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
