"""What makes the command line pleasant: bars for people alone, colors for who wants them, examples, completion."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys

import pytest

from vi_flows import progress
from vi_flows.cli import main
from vi_flows.cli.examples import EXAMPLES, examples_for
from vi_flows.cli.main import COMMANDS, _parse
from vi_flows.records import Record
from vi_flows.training import Run, Trainer, VAETrainConfig
from vi_flows.training.kinds import KINDS
from vi_flows.vae import VAEConfig


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "written"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_bars_are_for_terminals(monkeypatch, stream, shown, written):
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress.progress_bar(range(3), shown=shown)) == [0, 1, 2]
    assert bool(sys.stderr.getvalue()) is written


@pytest.mark.parametrize("words", [("results",), ("fit2d", "--help")])
def test_a_terminal_without_dashes_is_no_failure(words, monkeypatch, tmp_path):
    record = Record("vae", "key", "VAE, K = 2 – wide", {"dataset": "digits"}, {"nll": 1.0, "interval": [0.5, 1.5]}, {})
    record.write(tmp_path / "runs" / "one.json")
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    sys.stdout.flush()
    assert ended.value.code == 0
    assert b"\\u" in written.getvalue()


def test_what_is_quick_has_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.progress_bar(range(3))) == [0, 1, 2]
    assert "3/3" not in sys.stderr.getvalue()


@pytest.mark.parametrize(("wish", "colored"), [("", True), ("1", False)])
def test_no_color(monkeypatch, wish, colored):
    monkeypatch.setenv("NO_COLOR", wish)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert ("\x1b[" in sys.stdout.getvalue()) is colored
    assert "vi-flows compare a.json b.json" in sys.stdout.getvalue()


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_understood(line):
    words = shlex.split(line)
    program = words.index("-m") + 1 if words[0] == "torchrun" else 0
    assert words[program] in ("vi-flows", "vi_flows")
    assert callable(_parse(words[program + 1 :]).run)


def test_every_command_has_examples():
    for name in COMMANDS:
        assert examples_for([name, "--help"]), name
    for kind in KINDS:
        assert all(f"train {kind} " in line for line in examples_for(["train", kind, "-h"]))
    assert examples_for(["--help"]) == []


def test_completion_of_commands_and_options(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["--tyro-print-completion", "bash"])
    assert not done.value.code
    script = tmp_path / "vi-flows.bash"
    script.write_text(capsys.readouterr().out)
    for words, expected in ((["tr"], "train"), (["train", "vae", "--batch-s"], "--batch-size")):
        line = " ".join(["vi-flows", *words])
        ask = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; "
            '_tyro_vi_flows; echo "${COMPREPLY[@]}"'
        )
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert expected in found.stdout.split(), (found.stdout, found.stderr)


def said(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_failures_say_what_to_do_next(tmp_path, capsys):
    small = VAEConfig(latent_dims=(2,), hidden_dims=((4,),))
    run = Run.create(tmp_path / "run", VAETrainConfig(vae=small, epochs=2, batch_size=400, threads=1))
    assert f"vi-flows train --resume {run.folder} makes them" in said(capsys, "evaluate", run.folder)
    assert "vi-flows runs lists" in said(capsys, "evaluate", tmp_path)
    trainer = Trainer(run, progress=False)
    trainer.start()
    trainer.fit(until=6)
    (run.folder / "checkpoint.safetensors").write_bytes(b"damaged")
    assert f"train --resume {run.folder} --previous goes on" in said(capsys, "train", "--resume", run.folder)
    (run.folder / "previous.safetensors").unlink()
    assert f"--from {run.folder} --out NEW" in said(capsys, "train", "--resume", run.folder)
    (run.folder / "best.safetensors").write_bytes(b"damaged")
    assert "start it again in another folder" in said(capsys, "train", "--resume", run.folder)
