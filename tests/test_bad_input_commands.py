"""Wrong command lines of every kind are refused in one sentence."""

from __future__ import annotations

import re

import pytest

from vi_flows.cli import main
from vi_flows.cli.main import COMMANDS as main_commands
from vi_flows.training import ImageTrainConfig, PixelTrainConfig, Run, Trainer, VAETrainConfig
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import VAEConfig

COMMANDS = [
    ("nothing", 2, "Unrecognized"),
    ("evaluate nowhere", 1, "nowhere holds no run"),
    ("evaluate started", 1, "no usable best weights"),
    ("sample started", 1, "no usable best weights"),
    ("train vae --out file/run", 1, "Not a directory"),
    ("train vae --out run --dataset mnist --data-root .", 1, "data download"),
    # Settings of another kind are no settings of this one.
    ("train image --out run --objective iwae", 2, "Unrecognized.*--objective"),
    ("train image --out run --num-particles 50", 2, "Unrecognized.*--num-particles"),
    ("train image --out run --num-extra-layers 1", 2, "Unrecognized.*--num-extra-layers"),
    ("train image --out run nice --width 4", 2, "Unrecognized.*--width"),
    ("train image --out run glow --num-couplings 4", 2, "Unrecognized.*--num-couplings"),
    ("train image --out run glow-mnist9", 2, "glow-cifar10"),
    ("train vae --out run --num-levels 2", 2, "Unrecognized.*--num-levels"),
    ("train --out run", 2, "vae"),
    # … nor are those of another flow, or those of a flow where there is none.
    ("train vae --out run conv_flow --num-layers 4", 2, "Unrecognized.*--num-layers"),
    ("train vae --out run planar --num-blocks 4", 2, "Unrecognized.*--num-blocks"),
    ("train vae --out run --num-layers 4", 2, "Unrecognized.*--num-layers"),
    ("train vae --out run --no-amortized", 2, "amortized"),
    ("train vae --out run --no-amortized conv_flow --rank 3", 2, "rank"),
    ("train vae --out run plannar", 2, "planar"),
    ("train vae --out run --dataset full", 2, "no data set 'full': choose .*; a path begins with ./, as ./full"),
    (
        "train vae --out run --dataset ./list.json",
        1,
        "list.json is no .zip, .npz or .npy: name one of them, or a folder",
    ),
    (
        "train vae --out run --dataset ./x.NPZ",
        1,
        "no file or folder ./x.NPZ; looked for .*bad.*/x.NPZ and .*x.NPZ. Work in",
    ),
    ("train vae --out run --dataset X.NPZ --data-root .", 1, "no file or folder X.NPZ; looked for .*--data-root"),
    ("sample trained --out file --rows 1", 1, "file: File exists; a folder was expected there; name another place"),
    ("results one.json --picture file/x.png", 1, "file/x.png can't be written: .*file is a file, not a folder"),
    # Digits has 1297 training images; batch normalisation can't take a last minibatch of one.
    ("train vae --out run --batch-norm --batch-size 16", 2, "1297 .* of 16 leave a single one: .*--batch-size"),
    ("train vae --out run --batch-norm --batch-size 1", 2, "of 1 leave a single one"),
    ("train pixel_vae --out run --batch-norm --batch-size 648", 2, "of 648 leave a single one"),
    # A run that goes on takes no settings, a default neither.
    ("train --resume started --batch-size 100", 2, "Unrecognized.*--batch-size"),
    ("train --resume started --batch-size 50", 2, "Unrecognized.*--batch-size"),
    ("train --batch-size 100 --resume=started", 2, "Unrecognized.*--batch-size"),
    ("train vae --out started --resume", 2, "^vi-flows: a run that goes on keeps .* --resume RUN, without 'vae' and"),
    ("train image --resume started", 2, "keeps its kind and settings: vi-flows train --resume RUN, without 'image'"),
    ("train --resume nowhere", 1, "nowhere holds no run"),
    ("train --resume", 2, "Missing value.*--resume"),
    ("train --resume started --previous", 1, "no previous checkpoint to go back to"),
    ("train vae --out run --previous", 2, "Unrecognized.*--previous"),
    ("train --previous", 2, "Missing from vi-flows train.*--resume"),
    # More memory than there is.
    ("train vae --out run --latent-dims 1000000000000", 1, r"not enough memory for [\d,.]+ GiB.*smaller sizes"),
    ("train vae --out run --hidden-dims 4000000000000000000", 1, "not enough memory.*smaller sizes"),
    ("compare one.json one.json --resamples 99999999999", 1, "not enough memory for .* [GT]iB.*fewer draws"),
    # What a setting says about itself, without the names that the parser has for it.
    (
        "train vae --out run --ema-decay 2",
        2,
        r"^vi-flows: ema_decay must lie .*got 2.0 \(see vi-flows train vae --help\) $",
    ),
    ("evaluate trained --record /proc/x.json --num-samples 2 --quiet", 1, "/proc.*No such file.*name another place"),
    ("train --resume file", 1, "file holds no run"),
    ("train --resume full", 1, "full holds no run"),
    ("table nothing", 2, "run, submit, status, rows"),
    ("data nothing", 2, "list, check, download"),
    ("bench nothing", 2, "Unrecognized"),
    ("info nothing", 2, "Unrecognized"),
]


def each(command: str, code: int, *cases: tuple[str, str]) -> list[tuple[str, int, str]]:
    """Cases of one command: what comes behind it, and what the refusal must name."""
    return [(f"{command} {rest}".strip(), code, word) for rest, word in cases]


for kind in ("vae", "image", "pixel", "wave"):
    COMMANDS += each(f"train {kind}", 2, ("", "--out"), ("--out", "Missing value.*--out"))
    COMMANDS += each(
        f"train {kind} --out run", 2,
        ("--epochs 0", "epochs must be at least 1"), ("--epochs 1.5", "--epochs"),
        ("--batch-size 0", "batch_size must be at least 1"), ("--batch-size many", "--batch-size"),
        ("--learning-rate 0", "learning_rate must be positive"),
        ("--learning-rate nan", "learning_rate must be finite"),
        ("--learning-rate inf", "learning_rate must be finite"),
        ("--learning-rate 1e300", "learning_rate must be within the range of float32"),
        ("--schedule foo", "constant.*cosine.*step"),
        ("--lr-warmup-steps -5", "lr_warmup_steps must be at least 0"), ("--weight-decay -1", "weight_decay"),
        ("--weight-decay nan", "weight_decay"), ("--ema-decay 1", "ema_decay must lie between 0 and 1"),
        ("--clip-norm 0", "clip_norm"), ("--clip-norm nan", "clip_norm"), ("--validate-every 0", "validate_every"),
        ("--checkpoint-seconds nan", "checkpoint_seconds"), ("--protocol foo", "clean.*paper"), ("--seed -1", "seed"),
        ("--threads 0", "threads must be at least 1"), ("--threads 100000", "threads must be at most 1024"),
        ("--seed 4294967296", "seed must be at most 4294967295"), (f"--batch-size {2**63}", "batch_size.*64 bits"),
        (f"--epochs {10**30}", "epochs must have at most 64 bits"), ("--device foo", "device 'foo'.*choose cpu"),
        ("--device cuda:99", "device 'cuda:99'"), ("--device meta", "device 'meta'"),
    )  # fmt: skip
    if kind != "wave":  # whose recordings are not there everywhere
        COMMANDS += each(f"train {kind} --out run", 1, ("--from nowhere", "nowhere holds no run"))
        COMMANDS += each(
            f"train {kind}", 2, ("--out full", "not an empty folder"), ("--out file", "not an empty folder"),
            ("--out started", "holds a run already"),
        )  # fmt: skip

COMMANDS += each(
    "train vae --out run", 2,
    ("--objective foo", "elbo.*stl.*iwae"), ("--num-particles 0", "num_particles"), ("--architecture foo", "g1"),
    ("--latent-dims 0", "latent_dims"), ("--latent-dims -3", "latent_dims"), ("--latent-dims 3 4", "latent_dims"),
    ("--hidden-dims -1", "hidden_dims"), ("--activation foo", "tanh, relu"), ("--kl-warmup-epochs nan", "kl_warmup"),
    ("--dataset minst", "binarized_mnist"), ("--dataset file", "choose one of digits"),

    ("--from trained --latent-dims 5", "latent_dims=.3., this one .5.; give this one the same"),
    ("conv_flow --num-blocks 0", "num_blocks"),
    ("--dataset mnist --data-root file", "file is a file"), ("conv_flow --dilations 0", "dilations"),
    ("planar --num-layers 0", "num_layers"), ("spline --bound -1", "bound"), ("sylvester --rank 0", "rank"),
)  # fmt: skip
COMMANDS += each(
    "train vae --out run", 1, ("--dataset nowhere.npz", "no file or folder.*nowhere.npz"),
    ("--from started", "no usable weights in started.*train --resume started makes them"),
    ("--dataset /dev/null", "name a folder of images, a .zip, .npz or .npy"),
)  # fmt: skip
COMMANDS += each(
    "train image --out run", 2, ("--dataset minst", "choose one of digits"), ("--alpha 2", "alpha must be within"),
    ("--alpha nan", "alpha"), ("--alpha -1", "alpha"), ("--dequantization foo", "uniform.*variational"),
    ("--from trained", "a run of kind vae"), ("glow --num-levels 0", "num_levels"),
    ("glow --num-levels 9", "use fewer levels"), ("glow --num-steps 0", "num_steps"), ("glow --width 0", "width"),
    ("nice --num-couplings 0", "num_couplings"),
)  # fmt: skip
COMMANDS += each(
    "train pixel --out run", 2, ("foo", "made.*row_lstm"), ("--output foo", "bernoulli"),
    ("gated_pixel_cnn --width 0", "width"), ("--width 5", "--width"),
    ("gated_pixel_cnn --first-kernel 4", "must be odd"), ("pixel_cnn --kernel-size 4", "must be odd"),
    ("row_lstm --dropout 1", r"\[0, 1\)"), ("diagonal_bilstm --dropout nan", "dropout"),
    ("gated_pixel_cnn --hidden-dims 5", "--hidden-dims"), ("gated_pixel_cnn --num-blocks 2", "--num-blocks"),
    ("made --width 5", "--width"), ("made --num-masks 0", "num_masks"), ("made --activation foo", "relu"),
    ("--from trained", "a run of kind vae"), ("--dataset minst", "choose one of digits"),
)  # fmt: skip
COMMANDS += each(
    "train wave --out run", 2, ("--width 0", "width"), ("--skip-width 0", "skip_width"),
    ("--num-layers 0", "num_layers"),
    ("--num-stacks 0", "num_stacks"), ("--kernel-size 0", "kernel_size"), ("--output bernoulli", "categorical"),
    ("--sample-seconds 0", "sample_seconds"), ("--sample-seconds nan", "sample_seconds"),
)  # fmt: skip
COMMANDS += each(
    "train wave --out run", 1, ("--dataset nowhere", "no recordings 'nowhere'"), ("--dataset ./file", "readable zip"),
    ("--dataset ./full", "full has no recordings"),
)  # fmt: skip
COMMANDS += each("evaluate", 2, ("", "folder of a run"), ("--pretrained foo", "no pretrained run 'foo'"))
COMMANDS += each("evaluate", 1, ("file", "file holds no run"), ("full", "full holds no run"))
COMMANDS += each(
    "evaluate trained", 2, ("--limit 0", "limit must be at least 1"), ("--limit -5", "limit"),
    ("--num-samples 0", "num_samples"), ("--num-samples 1.5", "--num-samples"), ("--threads -1", "threads"),
    ("--seed -1", "seed must be at least 0"), ("--split train", "test.*valid"), ("--weights foo", "auto.*best.*last"),
    ("--device foo", "device 'foo'"), ("--device meta", "device 'meta'"), ("--ais-chains 5", "needs --ais"),
    ("--ais --ais-chains 0", "chains"), ("--ais --ais-temperatures 1", "temperatures"),
    ("--ais --ais-leapfrog 0", "leapfrog"), ("--ais --ais-images 0", "images"), ("--ais --ais-start foo", "prior"),
    ("--ais --ais-model-images -1", "model_images"), ("--pretrained foo", "or --pretrained NAME"),
    ("--record garbage.json", "garbage.json exists; give --overwrite"),
    ("--paper-row foo", "no row 'foo'.*plain, iwae50"),
)  # fmt: skip
COMMANDS += each(
    "evaluate trained", 1, ("--record file", "file is a file, not a folder"), ("--record file/x.json", "is a file"),
)  # fmt: skip
# Settings of another kind of run are refused before anything is looked for.
COMMANDS += each(
    "evaluate pixels", 2, ("--num-samples 5", "kind pixel has no num_samples; it takes split, limit, seed"),
    ("--ais", "kind pixel has no ais"),
)  # fmt: skip
COMMANDS += each("evaluate pixels", 1, ("", "no usable best weights"))
COMMANDS += each("evaluate flow", 2, ("--ais", "kind image has no ais; it takes split, limit, seed, num_samples"))
COMMANDS += each(
    "sample flow", 2, ("--binary", "kind image has no binary"), ("--temperature nan", "temperature must be"),
    ("--temperature 1e300", "temperature .*float32"), ("--temperature 1e-300", "temperature .*float32"),
)  # fmt: skip
COMMANDS += each(
    "sample pixels", 2, ("--temperature 2", "kind pixel has no temperature; it takes rows, columns, binary")
)
COMMANDS += each("compare", 2, ("", "RUN_OR_RECORD"), ("one.json", "RUN_OR_RECORD"))
COMMANDS += each(
    "compare one.json", 2, ("one.json --score foo", "don't both have foo"), ("one.json --resamples 0", "resamples"),
    ("one.json --seed -1", "seed must be at least 0"),
    ("two.json", "number of images is 2 in one.json and 1 in two.json; evaluate both"),
)  # fmt: skip
COMMANDS += each(
    "compare one.json", 1, ("nowhere", "no record nowhere; vi-flows evaluate RUN writes one"),
    ("file", "file is no record"),
    ("full", "full has no record"),
    ("list.json", "names no schema"), ("garbage.json", "garbage.json is no record"), ("schema.json", "another schema"),
    ("started", "vi-flows evaluate started"),
)  # fmt: skip
COMMANDS += each("runs", 2, ("nowhere", "no folder nowhere"), ("one.json", "no folder one.json"))
COMMANDS += each(
    "results", 2, ("nowhere", "no record or folder nowhere; name a record, a run, or a folder"),
    ("full", "vi-flows evaluate RUN"),
    ("one.json --format foo", "github"), ("one.json --picture one.txt", "--picture must end in .png"),
)  # fmt: skip
COMMANDS += each(
    "results", 1, ("file", "file is no record"), ("garbage.json", "garbage.json is no record"),
    ("schema.json", "another schema"),
)  # fmt: skip
COMMANDS += each("sample", 2, ("", "RUN"))
COMMANDS += each("sample", 1, ("nowhere", "nowhere holds no run"), ("trained --out file", "file"))
COMMANDS += each(
    "sample trained", 2, ("--rows 0", "rows must be at least 1"), ("--columns -1", "columns must be at least 1"),
    ("--temperature inf", "temperature"), ("--temperature nan", "temperature"), ("--temperature 0", "temperature"),
    ("--temperature 0.5", "kind vae has no temperature; it takes rows, columns, binary"),
    ("--seed -1", "seed must be at least 0"),
    ("--weights foo", "auto.*best.*last"),
)  # fmt: skip
COMMANDS += each(
    "fit2d", 2, ("--target foo", "wave"), ("--flow foo", "conv_flow"), ("--activation foo", "leaky_relu"),
    ("--num-blocks 0", "num_blocks"), ("--dilations 0", "dilations"), ("--dilations 1.5", "dilations"),
    ("--dilations", "dilations must name at least one"), ("--num-steps 0", "num_steps"),
    ("--batch-size 0", "batch_size"),
    ("--learning-rates 0", "learning_rates"), ("--learning-rates nan", "learning_rates"),
    ("--learning-rates inf", "learning_rates"),
    ("--learning-rates 1e300", "learning_rates .*float32"),
    ("--learning-rates", "learning_rates must name at least one"),
    ("--restarts 0", "restarts"), ("--probe-steps 0", "probe_steps"), ("--finalists 0", "finalists"),
    ("--seed -1", "seed"), ("--flow planar --dilations 7", "dilations is for conv_flow"),
    ("--flow iaf --activation elu", "activation is for conv_flow"),
)  # fmt: skip
COMMANDS += each(
    "fit2d", 1, ("--out file", "file is a file, not a folder"), ("--out file/x", "file is a file"),
    ("--flow planar --num-steps 3 --learning-rates 1e30", "lower the learning rate"),
)  # fmt: skip
for command in ("run", "status"):
    COMMANDS += each(
        f"table {command}", 2, ("--rows foo", "no row matches 'foo'"), ("--rows", "rows must name at least one"),
        ("--seeds", "seeds must name at least one"), ("--seeds -1", "seeds must be at least 0"),
        ("--seeds 0.5", "--seeds"), ("--epochs 0", "epochs"), ("--finish-epochs 0", "finish_epochs"),
        ("--shard 0/2", "1 <= i <= n"), ("--shard 3/2", "1 <= i <= n"), ("--shard foo", "1 <= i <= n"),
        ("--runs file", "runs must be a folder"), ("--results file", "results must be a folder"),
    )  # fmt: skip
COMMANDS += each(
    "table run", 2, ("--processes 0", "processes"), ("--num-samples 0", "num_samples"),
    ("--ais-images -1", "ais_images"),
    ("--stack 0", "stack"), ("--device foo", "device 'foo'"), ("--device cuda:99", "device 'cuda:99'"),
)  # fmt: skip
COMMANDS += each("table", 2, ("", "run, submit, status, rows"))
COMMANDS += each("data", 2, ("", "list, check, download"), ("check foo", "no data set 'foo'"), ("download", "STR"))
COMMANDS += each("data", 2, ("download foo", "no data set 'foo'"), ("list --data-root file", "file is a file"))
COMMANDS += each("data", 2, ("check --data-root file", "file is a file"))
COMMANDS += each(
    "data", 2, ("check ./full", r"no data set './full': choose .* all; images of your own are checked where they")
)
COMMANDS += each("data", 1, ("check mnist --data-root nowhere", "not complete"))
COMMANDS += each("data", 1, ("download mnist --data-root /proc/x", "data root /proc/x .* can't be made.*name another"))
COMMANDS += each(
    "demo", 2, ("--epochs 0", "epochs"), ("--epochs 1.5", "--epochs"), ("--num-samples 0", "num_samples"),
    ("--seed -1", "seed"),
)  # fmt: skip
COMMANDS += each("demo", 1, ("--out file", "Not a directory"))
COMMANDS += each("bench", 2, ("--goals 9", "no goal 9"), ("--goals foo", "--goals"), ("--rounds 0", "rounds"))
COMMANDS += each("bench", 1, ("--history file", "file is a file, not a folder"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return furnished(tmp_path_factory.mktemp("bad"))


def furnished(folder):
    """A folder with a run that was trained, one that was not, records good and bad, a file and a full folder."""
    (folder / "file").touch()
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    Run.create(folder / "started", VAETrainConfig(batch_size=50))
    Run.create(folder / "pixels", PixelTrainConfig())
    Run.create(folder / "flow", ImageTrainConfig())
    small = VAEConfig(latent_dims=(3,), hidden_dims=((8,),))
    run = Run.create(folder / "trained", VAETrainConfig(vae=small, epochs=1, batch_size=400, threads=1))
    trainer = Trainer(run, progress=False)
    trainer.start()
    trainer.fit()
    evaluate_run(run, VAEEvaluationSettings(limit=2, num_samples=2), record=folder / "one.json", progress=False)
    evaluate_run(run, VAEEvaluationSettings(limit=1, num_samples=2), record=folder / "two.json", progress=False)
    (folder / "list.json").write_text("[]")
    (folder / "garbage.json").write_text("{ nope")
    (folder / "schema.json").write_text('{"schema": 99}')
    return folder


def in_a_line(said):
    """Without the parser's boxes."""
    return re.sub(r"[│╭╮╰╯─\s]+|-{5,}", " ", said)


def content(folder):
    """Every file and folder with its size."""
    return {path: path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(("line", "code", "word"), COMMANDS, ids=lambda value: str(value))
def test_command_lines_are_refused(line, code, word, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = content(place)
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    error = in_a_line(capsys.readouterr().err)
    assert stopped.value.code == code
    assert re.search(word, error), error
    assert "Traceback" not in error
    assert content(place) == before


def test_there_are_enough_of_them():
    lines = [line for line, _, _ in COMMANDS]
    assert len(set(lines)) == len(lines) >= 250
    assert {*main_commands} <= {line.split()[0] for line in lines}


def test_debug_shows_where_a_failure_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "nowhere", "--debug"])
    assert stopped.value.code == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--debug" in capsys.readouterr().out
