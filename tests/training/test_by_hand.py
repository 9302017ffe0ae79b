"""What the tasks say of a trained model, and the defaults of the recipe, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from scipy.io import wavfile
from torch import nn

from tests.data.speech_files import write_recordings
from vi_flows.autoregressive.config import pixel_config
from vi_flows.data import load
from vi_flows.flows import IAF
from vi_flows.training import (
    ImageTrainConfig,
    PixelTrainConfig,
    Run,
    Trainer,
    TrainingDivergedError,
    VAETrainConfig,
    WaveTrainConfig,
)
from vi_flows.training.config import check_device
from vi_flows.training.distributed import speaks_here
from vi_flows.training.kinds import KINDS
from vi_flows.training.stacked import StackedTrainer
from vi_flows.training.tasks.base import BinaryDrawingSettings, DrawingSettings, EvaluationSettings
from vi_flows.training.tasks.image import ImageDrawingSettings, ImageEvaluationSettings, ImageFlowTask
from vi_flows.training.tasks.pixel import PixelTask
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETask
from vi_flows.training.tasks.wave import PAUSE_SECONDS, WaveConfig, WaveTask
from vi_flows.vae import VAEConfig

COMMON = {
    "data_root": None, "protocol": "clean", "epochs": 100, "learning_rate": 1e-3, "schedule": "cosine",
    "lr_warmup_steps": 0, "weight_decay": 0.0, "ema_decay": None, "clip_norm": None, "validate_every": 1,
    "checkpoint_seconds": 60.0, "start_from": None, "seed": 0, "device": "cpu", "threads": None,
}  # fmt: skip
OWN = {
    "vae": {
        "dataset": "digits", "batch_size": 100, "objective": "elbo", "num_particles": 1, "particles_schedule": (),
        "particles_epochs": (), "kl_warmup_epochs": 0.0, "output_bias": True, "valid_particles": 1, "redrawn": 0.0,
        "cuda_graph": False,
    },
    "image": {"dataset": "digits", "batch_size": 100, "valid_images": 1_000_000},
    "pixel": {
        "dataset": "digits", "batch_size": 100, "precision": "float32", "cuda_graph": False, "labels": False,
    },
    "wave": {"dataset": "fsdd-jackson", "batch_size": 4, "precision": "float32", "sample_seconds": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", OWN)
def test_the_defaults_of_the_recipe(kind):
    """The README's commands and the records rely on them."""
    config = KINDS[kind].config()
    found = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("vae", "image", "pixel", "wave")}
    assert found == COMMON | OWN[kind]
    assert (config.kind, config.stackable) == (kind, kind == "vae")


def test_the_defaults_of_evaluation_and_drawing():
    assert EvaluationSettings() == EvaluationSettings("test", None, 0)
    assert (VAEEvaluationSettings().num_samples, ImageEvaluationSettings().num_samples) == (5000, 8)
    assert (DrawingSettings().rows, DrawingSettings().columns) == (10, 10)
    assert BinaryDrawingSettings().binary is False
    assert ImageDrawingSettings().temperature == 1.0
    wave = WaveConfig()
    assert (wave.width, wave.skip_width, wave.num_layers, wave.num_stacks, wave.kernel_size) == (32, 64, 10, 1, 2)
    assert (wave.output, wave.digit, PAUSE_SECONDS) == ("categorical", True, 0.25)


def test_names_and_labels():
    many = WaveConfig(width=8, skip_width=16, num_layers=3, num_stacks=2, output="logistic_mixture", digit=False)
    assert WaveTrainConfig(wave=many).name == "wavenet-w8-s16-l3x2-logistic_mixture-nodigit"
    assert WaveTrainConfig().name == "wavenet-w32-s64-l10"
    flow = VAETrainConfig(vae=VAEConfig(flow=IAF(2)), objective="iwae", num_particles=50)
    assert flow.name == "g1-iaf-amortized-k2-iwae50"
    assert flow.label == "VAE + IAF (2), amortized, IW = 50"
    assert VAETrainConfig(num_particles=5).label == "VAE, draws = 5"
    assert VAETrainConfig(objective="dreg", particles_schedule=(1, 5)).label == "VAE, dreg, draws = 5"
    assert VAETrainConfig(objective="stl").name == "g1-stl1"
    assert PixelTrainConfig(epochs=7, seed=3).slug == "digits-gated_pixel_cnn-w64-l7-clean-e7-s3"
    assert ImageTrainConfig().name == ImageTrainConfig().label == "glow-l2-d8-w512-b1"


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'nonsense' can't be used here \(.+\); choose cpu$"):
        check_device("nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"; choose cpu or cuda$"):
        check_device("nonsense")
    check_device("cpu")


# Tasks --------------------------------------------------------------------------------------------------------------


def test_lines_of_the_vae_report():
    task = VAETask(VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),))), load("digits"))
    record = {
        "nll": 87.1234, "interval": [86.5, 87.75], "num_samples": 500, "elbo": 90.5, "mean_ess": 12.6,
        "median_k_hat": 0.456, "share_k_hat_above_0.7": 0.1234,
    }  # fmt: skip
    assert task.report(record) == [
        "NLL  87.123 nats, 95 % interval [86.500, 87.750], 500 samples",
        "ELBO 90.500 nats; mean ESS 13",
        "Pareto k-hat: median 0.46, 12.3 % of the images above 0.7",
    ]
    few = task.report(record | {"share_k_hat_above_0.7": math.nan, "num_samples": 10})
    assert few[2] == "Pareto k-hat: 10 samples are too few to estimate it"
    ais = {
        "nll": 86.0, "num_rows": 50, "nll_importance": 86.5, "gap": 0.5, "chains": 8, "temperatures": 800,
        "start": "prior", "mean_effective_chains": 6.25, "mean_acceptance": 0.655,
        "bdmc": {"num_rows": 20, "nll_lower": 80.0, "nll_upper": 80.25},
    }  # fmt: skip
    assert task.report(record | {"ais": ais})[3:] == [
        "AIS  86.000 nats on the first 50 images, where 86.500 by importance sampling: 0.500 lower",
        "AIS: 8 chains of 800 temperatures from the prior, 6.2 effective, acceptance 0.66",
        "BDMC on 20 images of the model's own: NLL between 80.000 and 80.250",
    ]


def test_pictures_of_a_vae():
    data = load("digits")
    task = VAETask(VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),))), data)
    task.initialize()
    task.module.eval()
    grids = task.pictures(BinaryDrawingSettings(rows=2, columns=3))
    assert {name: tuple(images.shape) for name, images in grids.items()} == {
        "samples": (6, 1, 8, 8), "data": (6, 1, 8, 8), "reconstructions": (6, 1, 8, 8),
    }  # fmt: skip
    assert torch.equal(grids["reconstructions"][::2].flatten(1), data.binarized(task.test_rows)[:3])
    assert ((grids["reconstructions"][1::2] > 0) & (grids["reconstructions"][1::2] < 1)).all()
    shown = {name: (images * (1 - images) > 0).any().item() for name, images in grids.items()}
    assert shown["samples"]  # means, not pixels
    drawn = task.pictures(BinaryDrawingSettings(1, 1, binary=True))
    assert drawn["reconstructions"].shape == (2, 1, 8, 8)  # one pair at least
    assert all((drawn[name] * (1 - drawn[name]) == 0).all() for name in ("samples", "data"))


class Flat(nn.Module):
    """An image density: half of the images come back, samples are their temperature."""

    num_dims = 64

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return images.float().flatten(1).mean(1) / 255

    def bits_per_dim(self, images, num_draws):
        return torch.full((len(images),), float(num_draws)) + torch.arange(len(images)) % 2

    def encode(self, images):
        return images

    def decode(self, latents):
        return torch.where(torch.arange(len(latents))[:, None, None, None] % 2 == 0, latents, latents + 1)

    def sample(self, count, temperature):
        return torch.full((count, 1, 8, 8), 16 * temperature)

    def interpolate(self, first, second, columns):
        first, second = first.float(), second.float()
        return torch.stack([first + (second - first) * i / (columns - 1) for i in range(columns)])


def test_figures_and_pictures_of_an_image_flow():
    data = load("digits")
    task = ImageFlowTask(ImageTrainConfig(valid_images=7, batch_size=3), data)
    task.module = Flat()
    found = task.evaluate(data.test, ImageEvaluationSettings(limit=4, num_samples=3), False)
    assert (found.figures["bits_per_dim"], found.figures["num_draws"], found.figures["num_rows"]) == (3.25, 3, 4)
    assert found.scores["bits_per_dim"].tolist() == [3.0, 4.0, 3.0, 3.0]  # batches of three
    assert (found.figures["round_trip_exact"], found.figures["parameters"]) == (0.5, 3)
    assert task.report(found.figures | {"interval": [1.0, 2.0]}) == [
        "3.2500 bits/dim, 95 % interval [1.0000, 2.0000]",
        f"{3.25 * 64 * math.log(2):.2f} nats; 3 draws of the noise an image",
        "50 % of 100 images come back from their latents unchanged",
    ]
    valid = data.images(task.splits.valid[:7])
    assert task.validate() == pytest.approx((valid.double().flatten(1).mean(1) / 255).mean().item())
    assert task.weigh(data.test[:5]) == 5
    grids = task.pictures(ImageDrawingSettings(2, 3, temperature=0.5))
    assert (grids["samples"] == 8 / (data.levels - 1)).all()
    assert grids["data"].shape == (6, 1, 8, 8)
    assert grids["data"].max() <= 1
    test = data.images(task.splits.test)[:4].float() / (data.levels - 1)
    lines = grids["interpolations"].reshape(2, 3, 1, 8, 8)
    torch.testing.assert_close(lines[:, 0], test[:2])
    torch.testing.assert_close(lines[:, 2], test[2:])
    torch.testing.assert_close(lines[:, 1], (test[:2] + test[2:]) / 2)
    assert "interpolations" not in task.pictures(ImageDrawingSettings(2, 1))


def test_an_image_flow_is_initialized_from_256_training_images():
    data = load("digits")
    task = ImageFlowTask(ImageTrainConfig(), data)
    seen = []
    task.module = Flat()
    task.module.initialize = seen.append
    torch.manual_seed(4)
    task.initialize()
    torch.manual_seed(4)
    chosen = torch.randperm(len(task.train_rows))[:256]
    assert torch.equal(seen[0], data.images(task.train_rows[chosen]))
    assert seen[0].shape == (256, 1, 8, 8)


def test_figures_of_a_pixel_model():
    """Scores of 1 and 2 nats: mean 1.5, s = √½, 1.96 s/√2 = 0.98; 1.5 / (64 ln 2) bits a pixel."""
    data = load("digits")
    task = PixelTask(PixelTrainConfig(), data)
    task.log_probs = lambda rows: -1.0 - torch.arange(len(rows)).float()
    found = task.evaluate(data.test, EvaluationSettings(limit=2), False)
    assert found.figures["nll"] == 1.5
    assert found.figures["interval"] == pytest.approx([0.52, 2.48])
    assert found.figures["bits_per_dim"] == pytest.approx(1.5 / (64 * math.log(2)))
    assert found.figures["exact"] is True
    assert found.scores["nll"].tolist() == [1.0, 2.0]
    assert task.report(found.figures)[0] == "NLL  1.500 nats (exact), 95 % interval [0.520, 2.480]"


def test_pictures_of_a_pixel_model_are_between_black_and_white():
    """Grey values 0 … 16 are divided by 16."""
    data = load("digits")
    task = PixelTask(PixelTrainConfig(pixel=pixel_config("pixel_cnn", "categorical", width=4, num_blocks=0)), data)
    task.module.generate = lambda context, progress: torch.full((len(context), 1, 8, 8), 16.0)
    task.module.extend = lambda starts, known, context, progress: starts
    grids = task.pictures(BinaryDrawingSettings(2, 3))
    assert (grids["samples"] == 1).all()
    assert grids["data"].max() == 1
    assert grids["completions"].max() == 1
    assert grids["completions"].shape == (6, 1, 8, 8)
    grey = task.pictures(BinaryDrawingSettings(2, 3, binary=True))["data"]  # a grey model has no binary pixels
    assert ((grey > 0) & (grey < 1)).any()


def test_pictures_of_a_binary_pixel_model():
    data = load("digits")
    task = PixelTask(PixelTrainConfig(pixel=pixel_config("pixel_cnn", "bernoulli", width=4, num_blocks=0)), data)
    task.module.generate = lambda context, progress: torch.ones(len(context), 1, 8, 8)
    task.module.extend = lambda starts, known, context, progress: starts
    for binary in (False, True):
        grids = task.pictures(BinaryDrawingSettings(2, 3, binary=binary))
        assert ((grids["data"] > 0) & (grids["data"] < 1)).any().item() != binary
        assert grids["samples"].eq(1).all()
        assert grids["completions"].unique().tolist() == [0.0, 1.0]


def test_which_dimension_of_a_training_tensor_counts_rows():
    assert (VAETask.row_dim, ImageFlowTask.row_dim, PixelTask.row_dim, WaveTask.row_dim) == (-2, 0, 0, 0)


def test_the_bound_of_an_epoch_is_the_mean_over_its_own_images(tmp_path):
    """Three batches of 500, 500 and 297 images with bounds 1, 2, 3 and then 4, 5, 6."""
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=2, batch_size=500, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    bounds = iter(range(1, 7))

    def take_step(batch):
        trainer.advance(float(bound := next(bounds)), len(batch))
        return bound

    trainer.take_step = take_step
    trainer.start()
    trainer.fit()
    first, second = (line["train_bound"] for line in lines_of(trainer))
    assert first == pytest.approx((500 + 2 * 500 + 3 * 297) / 1297)
    assert second == pytest.approx((4 * 500 + 5 * 500 + 6 * 297) / 1297)


def lines_of(trainer):
    return [json.loads(line) for line in (trainer.run.folder / "metrics.jsonl").read_text().splitlines()]


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self, **options):
        self.options, self.steps, self.told, self.titles = options, [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, count):
        self.steps.append(count)

    def set_postfix_str(self, text, refresh):
        self.told.append((len(self.steps), text, refresh))

    def set_description(self, text, refresh):
        self.titles.append((text, refresh))


def test_what_the_bar_of_a_training_shows(tmp_path, monkeypatch):
    """33 batches of 40 images an epoch; the bound is told at every twentieth step."""
    bars = []
    monkeypatch.setattr(
        "vi_flows.training.loop.progress_bar", lambda **options: bars.append(Bar(**options)) or bars[-1]
    )
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=2, batch_size=40, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config))
    assert trainer.steps_per_epoch == 33
    trainer.take_step = lambda batch: trainer.advance(1.2345, len(batch)) or 1.2345
    losses = iter([7.126, 8.0])
    trainer.task.validate = lambda: next(losses)
    trainer.start()
    trainer.fit(until=5)
    trainer.fit()
    assert bars[0].options == {
        "total": 2640, "initial": 0, "unit": "img", "unit_scale": True, "shown": True, "smoothing": 0.05,
    }  # fmt: skip
    assert (bars[1].options["initial"], len(bars[0].steps)) == (200, 5)
    assert bars[1].steps == [40] * 61
    assert bars[1].told == [(step - 5, "bound 1.23 nats", False) for step in (20, 40, 60)]
    assert bars[1].titles == [("valid 7.13 (best 7.13)", False), ("valid 8.00 (best 7.13)", False)]
    quiet = Trainer(Run.create(tmp_path / "quiet", config), progress=False)
    quiet.take_step = lambda batch: quiet.advance(1.0, len(batch)) or 1.0
    quiet.start()
    quiet.fit(until=1)
    assert bars[-1].options["shown"] is False


def test_the_line_of_an_epoch(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=9, batch_size=500, threads=1,
                            validate_every=2, learning_rate=0.5)  # fmt: skip
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    trainer.task.validate = lambda: 3.5
    for epoch, expected in ((1, {}), (2, {"valid_loss": 3.5})):
        trainer.state |= {"step": 3 * epoch, "seconds": 12.34567, "bound_sum": 6.0, "images": 4}
        trainer.end_epoch(Bar())
        line = lines_of(trainer)[-1]
        assert line == {
            "epoch": epoch, "step": 3 * epoch, "train_bound": 1.5, "learning_rate": 0.5, "seconds": 12.346, **expected,
        }  # fmt: skip
        assert (trainer.state["bound_sum"], trainer.state["images"], trainer.state["finished"]) == (0.0, 0, False)
    assert trainer.state["best"] == {"epoch": 2, "valid_loss": 3.5}


def test_where_a_training_diverged(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=9, batch_size=500, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    words = "bound nan, gradient norm 2.5. Nothing was saved of it; no checkpoint was written yet. Try a lower"
    for step, epoch in ((0, 1), (2, 1), (3, 2), (8, 3)):
        trainer.state["step"] = step
        with pytest.raises(TrainingDivergedError, match=rf"^step {step} \(epoch {epoch}\): {words}"):
            trainer.stop_diverged([[1.0, math.nan, 2.5]])


def test_one_process_speaks_for_a_machine(monkeypatch):
    for size, rank, speaks in ((None, None, True), ("1", "1", True), ("2", "0", True), ("2", "1", False)):
        for name, value in (("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        assert speaks_here() == speaks


def test_stacked_runs_share_their_data(tmp_path):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), epochs=1, threads=1)
    runs = [Run.create(tmp_path / f"s{seed}", replace(config, seed=seed)) for seed in range(3)]
    trainer = StackedTrainer(runs, progress=False)
    assert [member.run for member in trainer.members] == runs
    assert all(run.data is runs[0].data for run in runs)
    assert not runs[0].data.train.eq(0).all()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return str(write_recordings(tmp_path_factory.mktemp("speech") / "few"))


def test_figures_of_a_wave_model_are_a_ratio_over_recordings(recordings):
    """Log-likelihoods −60 ln 2 b of lengths 60, 65, 70: bits 1, 2 and 3 a sample, linearised about their ratio."""
    config = WaveTrainConfig(dataset=recordings, wave=WaveConfig(width=4, skip_width=4, num_layers=2))
    data = config.load_data()
    task = WaveTask(config, data)
    rows = data.train[[int((data.train[:, -2] == n).nonzero()[0]) for n in sorted(set(data.train[:, -2].tolist()))[:3]]]
    lengths = rows[:, -2].double()
    bits = torch.tensor([1.0, 2.0, 3.0]).double()[: len(rows)] * lengths
    task.log_probs = lambda part: -bits * math.log(2)
    found = task.evaluate(rows, EvaluationSettings(), False)
    mean = (bits.sum() / lengths.sum()).item()
    assert found.figures["bits_per_sample"] == pytest.approx(mean)
    spread = ((bits - mean * lengths) / lengths.mean()).std().item()
    half = 1.96 * spread / math.sqrt(len(rows))
    assert found.figures["interval"] == pytest.approx([mean - half, mean + half])
    assert half < 1.96 * torch.tensor([1.0, 2.0, 3.0])[: len(rows)].std() / math.sqrt(len(rows)) * 1.2
    assert found.scores["bits_per_sample"].tolist() == pytest.approx([1.0, 2.0, 3.0][: len(rows)])
    assert found.figures["num_audio_samples"] == int(lengths.sum())
    assert found.figures["receptive_field"] == 2 + 1 + 2  # two taps at first, then dilations 1 and 2
    figures = {**found.figures, "bits_per_sample": 2.5, "interval": [2.0, 3.0], "trigram_bits_per_sample": 5.91}
    assert task.report(figures)[:2] == [
        "2.5000 bits/sample (exact), 95 % interval [2.0000, 3.0000]",
        "trigram model: 5.9100 bits/sample; uniform: 8",
    ]


def test_loss_and_sounds_of_a_wave_model(recordings, tmp_path):
    config = WaveTrainConfig(dataset=recordings, sample_seconds=0.01, wave=WaveConfig(4, 4, num_layers=2))
    task = WaveTask(config, config.load_data())
    rows = task.train_rows[:3]
    result = task.step(rows, 1.0, 1)
    expected = -task.log_probs(rows).sum() / rows[:, -2].sum() / math.log(2)
    assert result.loss.item() == pytest.approx(expected.item())
    assert result.bound.item() == -result.loss.item()
    assert task.weigh(rows) == rows[:, -2].sum().item()
    expected = -sum(task.log_probs(row[None]).item() for row in task.valid_rows) / task.valid_rows[:, -2].sum()
    assert task.validate() == pytest.approx(expected.item() / math.log(2), rel=1e-5)
    files = task.draw(tmp_path, DrawingSettings(1, 3))
    assert [path.name for path in files] == ["samples.wav", "data.wav", "continuations.wav"]
    assert task.draw(tmp_path, DrawingSettings(1, 3)) == files  # once more into the same folder
    sounds = {path.stem: wavfile.read(path) for path in files}
    assert {name: rate for name, (rate, _) in sounds.items()} == dict.fromkeys(sounds, 8000)
    steps, pause = 80, 2000  # 0.01 s and a quarter of a second
    assert len(sounds["samples"][1]) == len(sounds["continuations"][1]) == 3 * (steps + pause)
    for index in range(3):
        first = index * (steps + pause)
        assert (sounds["samples"][1][first + steps : first + steps + pause] == 0).all()
        begun = sounds["continuations"][1][first : first + steps // 4]
        assert (abs(begun.astype(int) - sounds["data"][1][: steps // 4]) < 700).all() or index > 0
    peak = max(abs(sounds["data"][1].astype(int)))
    assert 0.25 * 32767 < peak < 0.36 * 32767  # the recordings' tones are 0.3 loud


def test_continuations_may_be_longer_than_the_recordings(recordings, tmp_path):
    """Recordings of at most 0.0125 s; asked for 0.05 s, whose first quarter is padded with silence."""
    config = WaveTrainConfig(dataset=recordings, sample_seconds=0.05, wave=WaveConfig(4, 4, num_layers=2))
    task = WaveTask(config, config.load_data())
    assert task.data.max_steps < 100
    seen = []
    steps = 400

    class Silent:
        def generate(self, context, progress):
            return torch.full((len(context), steps), 128.0)

        def extend(self, starts, known, context, progress):
            seen.append((starts, known))
            return starts

    task.module.with_length = lambda length: Silent() if length == steps else None
    files = task.draw(tmp_path, DrawingSettings(2, 6))  # two digits come again, with another take
    ((starts, known),) = seen
    assert known == 100
    assert starts.shape == (len(starts), steps)
    assert (starts[:, task.data.max_steps :] == 0).all()
    assert (starts[:, : task.data.max_steps] != 0).any()
    _, sound = wavfile.read(files[0])
    assert len(sound) == 12 * (steps + 2000)
