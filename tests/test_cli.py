"""The command line as a new user meets it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from PIL import Image

from vi_flows.cli import main
from vi_flows.training import Run
from vi_flows.training.kinds import KINDS


def run(*args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code


SMALL = ("--epochs", 1, "--latent-dims", 4, "--batch-size", 300, "--quiet", "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", "vae", "--out", folder, *SMALL, "--no-amortized", "conv_flow", "--num-blocks", 2) == 0
    return folder


def test_train_evaluate_sample(folder, capsys):
    assert run("evaluate", folder, "--num-samples", 50, "--quiet") == 0
    out = capsys.readouterr().out
    assert "NLL" in out
    assert "g1-z4-conv_flow-global-k2" in out
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


def test_a_run_that_is_stopped_goes_on(folder, capsys):
    assert run("train", "--resume", folder, "--quiet") == 0
    assert "steps in" in capsys.readouterr().out
    assert run("train", "--resume", folder, "--quiet", "--epochs", 1) == 2
    assert "--epochs" in capsys.readouterr().err
    assert run("train", "vae", "--out", folder, *SMALL) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_command_and_knows_its_name(kind, capsys):
    assert KINDS[kind].config.kind == kind
    assert KINDS[kind].config().name
    assert run("train", kind, "--help") == 0
    assert "--learning-rate" in capsys.readouterr().out


def test_data_list(capsys):
    assert run("data", "list") == 0
    assert "binarized_mnist" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_left_as_it_is(folder, capsys):
    with (folder / "metrics.jsonl").open("a") as file:  # an epoch that the other process has not saved yet
        file.write('{"epoch": 99, "step": 99999}\n')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with Run.open(folder).locked():  # a lock of its own, as another process would have
        assert run("train", "--resume", folder, "--quiet") == 1
    assert "another process" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_device_that_is_not_there_leaves_no_folder(tmp_path, capsys):
    assert run("train", "vae", "--out", tmp_path / "run", *SMALL, "--device", "foo") in (1, 2)
    assert "foo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pictures_in_a_folder_of_ones_own_are_replaced_where_that_is_asked_for(folder, tmp_path, capsys):
    out = tmp_path / "pictures"
    out.mkdir()
    (out / "data.png").write_text("mine")
    assert run("sample", folder, "--out", out, "--rows", 1, "--columns", 1) == 2
    assert f"{out} holds data.png already; give --overwrite" in capsys.readouterr().err
    assert (out / "data.png").read_text() == "mine"
    assert run("sample", folder, "--out", out, "--rows", 1, "--columns", 1, "--overwrite") == 0
    assert (out / "data.png").read_bytes()[:4] == b"\x89PNG"
    assert run("sample", folder, "--rows", 1, "--columns", 1) == 0
    assert run("sample", folder, "--rows", 2, "--columns", 1) == 0  # beside the run they are its own


def test_the_picture_of_results_replaces_nothing_silently(folder, tmp_path, capsys):
    picture = tmp_path / "mine.png"
    picture.write_text("mine")
    run("evaluate", folder, "--num-samples", 5, "--limit", 5, "--quiet", "--record", tmp_path / "records")
    capsys.readouterr()
    assert run("results", tmp_path / "records", "--picture", picture) == 2
    assert f"{picture} exists; give --overwrite" in capsys.readouterr().err
    assert picture.read_text() == "mine"
    assert run("results", tmp_path / "records", "--picture", picture, "--overwrite") == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_failure(folder, closed):
    command = f'"{sys.executable}" -m vi_flows runs "{folder}" {closed}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Error" not in done.stderr


def test_a_ctrl_c_while_the_command_is_imported_shows_no_traceback():
    """The signal comes when the first room is looked for, seconds before the command listens itself."""
    program = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.{handler})

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "vi_flows.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from vi_flows.__main__ import main

main()
"""
    listening = program.format(handler="default_int_handler")  # these tests may run where it is ignored
    found = subprocess.run([sys.executable, "-c", listening], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (-signal.SIGINT, "")
    ignoring = program.format(handler="SIG_IGN")
    ignored = subprocess.run([sys.executable, "-c", ignoring, "info"], capture_output=True, text=True, check=False)
    assert ignored.returncode == 0, ignored.stderr
    assert "vi flows" in ignored.stdout
