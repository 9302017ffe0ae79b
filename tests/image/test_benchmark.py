"""The small-compute benchmark and what it is made of: budgets, runs, scores, tables."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace

import pytest
import torch

from experiments.tables import densities
from tests.image.test_experiments import script
from vi_flows.distributions.image import ImageDensity
from vi_flows.distributions.image_config import build_image_density, image_config
from vi_flows.evaluation.nll import student_half_width
from vi_flows.records import Record
from vi_flows.settings import SettingsError
from vi_flows.table import OutOfTimeError, Workplace, status_of
from vi_flows.table.work import work
from vi_flows.training import ImageTrainConfig, Run, RunError
from vi_flows.training.budget import BudgetTrainer, CPUSeconds
from vi_flows.training.checkpoint import load_tensors, save_tensors

benchmark = script("image_benchmark")
job_module = importlib.import_module("image_benchmark_job")
figures_module = importlib.import_module("image_benchmark_figures")
tables_module = importlib.import_module("image_benchmark_tables")
rows_module = importlib.import_module("image_benchmark_rows")
BENCHMARKS = rows_module.BENCHMARKS

FIGURES = {
    "row": "glow", "half_width": 1.0, "num_images": 9, "num_test_images": 9, "parameters": 5, "steps": 1000,
    "cpu_seconds": 1.0, "images_seen": 2, "round_trip_error": 1e-5, "benchmark": "mnist-large",
    "samples": {"cpu_seconds": 0.01, "finite_images": 1.0, "saturated_pixels": 0.0},
}  # fmt: skip
TINY = {"flow": "glow", "num_levels": 1, "num_steps": 1, "width": 4}


def config(**changes):
    given = {"epochs": 1000, "batch_size": 64, "threads": 1, "ema_decay": 0.9, "valid_images": 20, **changes}
    return ImageTrainConfig(image=image_config(**TINY), **given)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_budget_ends_the_training_and_the_schedule_follows_it(tmp_path):
    trainer = BudgetTrainer(Run.create(tmp_path / "run", config()), CPUSeconds(1.0), 0.25)
    trainer.start()
    state = trainer.fit()
    assert state["finished"]
    assert 1.0 <= state["cpu_seconds"] < 2.0
    found = lines(tmp_path / "run")
    assert found[0]["step"] == 1
    assert found[-1]["step"] == state["step"]
    for line in found[1:]:  # the rate was set before the step that the line comes after
        expected = 0.5e-3 * (1 + math.cos(math.pi * min(line["cpu_seconds"], 1.0)))
        assert line["learning_rate"] == pytest.approx(expected, abs=6e-5)
    best = load_tensors(tmp_path / "run" / "best.safetensors")[1]
    assert best["valid_loss"] == min(line["valid_loss"] for line in found)
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_a_run_that_is_cut_goes_on_with_what_it_had_used(tmp_path):
    trainer = BudgetTrainer(Run.create(tmp_path / "run", config()), CPUSeconds(1.0), 60.0)
    trainer.start()
    state = trainer.fit(until=3)
    assert state["step"] == 3
    assert not state["finished"]
    used = state["cpu_seconds"]
    second = BudgetTrainer(Run.open(tmp_path / "run"), CPUSeconds(1.0), 60.0)
    second.resume()
    assert second.state["cpu_seconds"] == used
    assert second.fit()["finished"]
    assert lines(tmp_path / "run")[0]["step"] == 1


def test_the_wall_clock_stops_a_run_with_usable_weights(tmp_path):
    trainer = BudgetTrainer(Run.create(tmp_path / "run", config()), CPUSeconds(1000.0), 60.0, wall_seconds=0.5)
    trainer.start()
    assert not trainer.fit()["finished"]
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_black_and_white_pixels_stand_in_the_table_beyond_the_data():
    group = [{"samples": {"extreme_pixels": e}, "test_extreme_pixels": 0.02} for e in (0.03, 0.04)]
    assert tables_module._beyond_the_data([*group, {"samples": {}}]) == "+1.50 %"
    assert tables_module._beyond_the_data([{"samples": {}}]) == "–"


@pytest.fixture
def tiny(monkeypatch):
    """The benchmark with a quick row on quick images: its table."""
    monkeypatch.setattr(job_module, "CHUNK", 20)
    table = replace(BENCHMARKS["mnist"], dataset="digits", rows={"glow": rows_module.Row(TINY, 1e-3, 30)})
    monkeypatch.setitem(BENCHMARKS, "mnist", table)
    return table


def test_a_row_from_start_to_table(tmp_path, capsys, tiny, monkeypatch):
    monkeypatch.setattr("vi_flows.records.git_revision", lambda: "a" * 40)  # changed code takes up no scores
    place = Workplace(tmp_path / "runs" / "mnist", tmp_path / "runs" / "mnist")
    job, whole = (job_module.BudgetJob(tiny, "glow", 0, 30, only_scores=scores) for scores in (False, True))
    limits = job_module.Limits(evaluate_seconds=0.0, num_samples=8)
    with pytest.raises(OutOfTimeError):  # stopped at once: no record yet, but a checkpoint
        work([job], place, replace(limits, wall_seconds=0.0))
    assert not job.has_record(place)
    assert status_of(job, place).state == "stopped"
    with pytest.raises(RunError, match="has 1 of its 30 steps: `run` trains it to its end"):
        whole.evaluate(place, limits)
    assert not job.has_record(place)
    record = work([job], place, limits)["glow-s0"].figures
    assert record["num_images"] == 20 < record["num_test_images"]
    assert (record["budget_used"], record["steps"]) == (1.0, 30)
    assert [line["step"] for line in record["curve"]] == [1, *range(2, 31, 2)]  # 30 by 20, rounded up
    assert job.has_record(place)
    assert not whole.has_record(place)
    with pytest.raises(OutOfTimeError, match=f"40 of {record['num_test_images']} test images"):
        work([whole], place, limits)
    scored = work([whole], place, replace(limits, evaluate_seconds=math.inf))["glow-s0"].figures
    assert scored["num_images"] == scored["num_test_images"]
    assert scored["steps"] == record["steps"]
    assert whole.has_record(place)
    status = status_of(job, place)
    assert (status.state, status.score) == ("done", scored["bits_per_dim"])
    other = replace(job, steps=50)
    assert "30 steps, not 50" in status_of(other, place).error
    with pytest.raises(RunError, match="30 steps, not 50"):
        other.evaluate(place, limits)
    out = tmp_path / "runs"
    benchmark.Render(out=out, results=tmp_path / "results", figures=tmp_path / "figures").run()
    for name in ("curves", "samples", "best"):
        assert (tmp_path / "figures" / f"image-benchmark-mnist-{name}.png").stat().st_size > 1000
    table = capsys.readouterr().out
    assert f"| glow | {scored['bits_per_dim']:.4f} |" in table
    assert "†" in table
    monkeypatch.setitem(densities.BENCHMARKS, "mnist", tiny)
    monkeypatch.setattr(densities, "BENCHMARK_RECORDS", tmp_path / "results")
    shown = densities.render_images().partition("\n\n**MNIST")[0]
    head = "**Benchmark mnist: steps worth 1200 CPU seconds of one thread, at most 100,000 parameters**"
    assert shown == f"{head}\n\n{table.strip()}"
    assert benchmark.Status(out=out, rows=("glow",), seeds=(0,), steps=30).run() == 0
    assert f"{scored['bits_per_dim']:.4f}" in capsys.readouterr().out


def test_scores_of_other_weights_are_not_taken_up(tmp_path, tiny):
    """A run that was scored in part and then trained on is scored from its beginning."""
    place = Workplace(tmp_path, tmp_path)
    job, whole = (job_module.BudgetJob(tiny, "glow", 0, 5, only_scores=scores) for scores in (False, True))
    limits = job_module.Limits(evaluate_seconds=0.0, num_samples=8)
    before = work([job], place, limits)["glow-s0"].scores["bits_per_dim"]
    best = tmp_path / "glow-s0" / "best.safetensors"
    tensors, state = load_tensors(best)
    save_tensors(best, {name: t + 0.05 if t.is_floating_point() else t for name, t in tensors.items()}, state)
    everything = replace(limits, evaluate_seconds=math.inf)
    mixed = work([whole], place, everything)["glow-s0"].scores["bits_per_dim"]
    assert not list(tmp_path.glob("glow-s0/.record.parts"))
    fresh = whole.evaluate(place, everything).scores["bits_per_dim"]
    assert abs(mixed[: len(before)] - before).max() > 0.01
    assert (mixed == fresh).all()


@pytest.mark.parametrize(("revision", "made"), [("a" * 40, "later"), ("a" * 40 + "-dirty", "all")])
def test_scores_by_changed_code_are_not_taken_up(tmp_path, tiny, monkeypatch, revision, made):
    """Between a scoring in part and the rest the code may change, which its revision doesn't tell."""
    monkeypatch.setattr("vi_flows.records.git_revision", lambda: revision)
    place = Workplace(tmp_path, tmp_path)
    job, whole = (job_module.BudgetJob(tiny, "glow", 0, 5, only_scores=scores) for scores in (False, True))
    limits = job_module.Limits(evaluate_seconds=0.0, num_samples=8)
    before = work([job], place, limits)["glow-s0"].scores["bits_per_dim"]
    score = ImageDensity.bits_per_dim
    monkeypatch.setattr(ImageDensity, "bits_per_dim", lambda *args: score(*args) + 1)
    after = work([whole], place, replace(limits, evaluate_seconds=math.inf))["glow-s0"].scores["bits_per_dim"]
    shift = after[: len(before)] - before
    assert shift == pytest.approx(1.0 if made == "all" else 0.0, abs=1e-5)


def test_a_picture_that_would_lose_rows_is_left_as_it_is(tmp_path, tiny):
    def record(row, seed, bits):
        return {"row": row, "seed": seed, "bits_per_dim": bits}

    records = [record("glow", 0, 2.0), record("nice", 0, 1.5), record("nice", 1, 3.0)]
    out, path = tmp_path / "mnist", tmp_path / "picture.png"
    job = job_module.BudgetJob(tiny, "glow", 0, 5)
    work([job], Workplace(out, out), job_module.Limits(evaluate_seconds=0.0, num_samples=8))
    assert figures_module.draw_samples(out, records, path, None) is None  # there was none
    path.write_text("an older picture")
    assert "no weights of nice; delete it" in figures_module.draw_samples(out, records, path, None)
    assert path.read_text() == "an older picture"
    # NICE is worse on average, and best with seed 0 alone.
    assert figures_module.draw_best(out, records, path, None) is None
    assert path.stat().st_size > 1000
    path.unlink()
    assert "no weights of nice, the best row" in figures_module.draw_best(out, records[:2], path, None)
    assert not path.exists()


def test_the_speed_of_a_row_is_measured_and_says_what_its_steps_are_worth(capsys, tiny):
    benchmark.Speed(rows=("glow",), seconds=0.1, rounds=2).run()
    row, pace, steps, seconds, equal = capsys.readouterr().out.splitlines()[-1].split()
    assert (row, steps, equal) == ("glow", "30", "30")
    assert float(pace) > 0
    assert float(seconds) == pytest.approx(30 / float(pace), abs=1)
    with pytest.raises(ValueError, match="unknown row 'maf' of mnist"):
        benchmark.Speed(rows=("maf",)).run()
    speed = importlib.import_module("image_benchmark_speed")
    rows = {"glow": rows_module.Row(TINY, 1e-3, 1000), "nice": rows_module.Row(TINY, 1e-3, 300)}
    lines = speed.speed_table(replace(tiny, rows=rows), {"glow": 5.0, "nice": 2.5}).splitlines()
    # 1000 steps of Glow take 200 s, in which there are 500 of the other.
    assert [line.split() for line in lines[2:]] == [
        ["glow", "5.00", "1000", "200", "1000"], ["nice", "2.50", "300", "120", "500"],
    ]  # fmt: skip
    alone = speed.speed_table(replace(tiny, rows=rows), {"nice": 2.5}).splitlines()[-1]
    assert alone.split() == ["nice", "2.50", "300", "120", "–"]


def test_a_run_of_other_steps_than_the_row_s_says_so():
    def shown(**steps):
        records = [
            {**FIGURES, "bits_per_dim": 1.0, "seed": seed, "steps": count} for seed, count in enumerate(steps.values())
        ]
        return tables_module.markdown_table(records, {"glow": 1000}).splitlines()[2].split("|")[1].strip()

    assert shown(a=1000) == shown(a=997) == shown(a=1000, b=1000) == "glow"
    assert shown(a=370) == "glow (37 % of the steps)"
    assert shown(a=1000, b=1100) == "glow (105 % of the steps)"


def test_most_records_have_the_steps_of_their_rows():
    """Those that were made within a CPU time, on a machine of another speed than the others', and not made again."""
    other = set()
    for name, table in BENCHMARKS.items():
        assert all(steps > 2000 for steps in table.steps.values())
        for path in sorted((benchmark.RESULTS / name).glob("*.json")):
            figures = Record.read(path).figures
            if figures["steps"] != table.steps[figures["row"]]:
                other.add(f"{name}/{path.stem}")
    assert other <= {"mnist/flow_pp-spline-vardeq-s0", "mnist/flow_pp-mixture-attention-s0"}


def test_nothing_is_begun_after_the_time_is_up_and_the_exit_code_says_so(tmp_path, capsys):
    out = tmp_path / "runs"
    assert benchmark.RunAll(out=out, rows=("glow",), seeds=(0,), limits=job_module.Limits(wall_seconds=-1.0)).run() == 1
    assert "0 of 1 runs are done; the same command goes on with 1" in capsys.readouterr().out
    assert not out.exists()


def test_rows_and_shards():
    with pytest.raises(ValueError, match="i/n"):
        benchmark.RunAll(shard="3/2").mine()
    with pytest.raises(ValueError, match="unknown row 'maf' of mnist"):
        benchmark.Status(rows=("maf",)).run()
    shards = [benchmark.RunAll(shard=f"{i}/4").mine() for i in (1, 2, 3, 4)]
    names = [job.name for job in benchmark.RunAll().mine()]
    assert sorted(job.name for shard in shards for job in shard) == sorted(names)
    assert names[:2] == ["nice-s0", "real_nvp-s0"]
    seeds = {name: len(benchmark.RunAll(name).mine()) / len(table.rows) for name, table in BENCHMARKS.items()}
    assert seeds == {"mnist": 3, "mnist-large": 1, "cifar": 3}
    assert {job.steps for job in benchmark.RunAll("cifar", rows=("glow",)).mine()} == {6611}
    assert {job.steps for job in benchmark.RunAll("cifar", steps=7).mine()} == {7}
    with pytest.raises(ValueError, match="benchmark must be one of mnist, mnist-large, cifar"):
        benchmark.Status("imagenet")


def test_intervals_over_seeds_are_students():
    table = tables_module.markdown_table(
        [{**FIGURES, "bits_per_dim": bits, "seed": seed} for seed, bits in enumerate((1.0, 1.1, 1.2))], {"glow": 1000}
    )
    # Standard deviation 0.1 of three seeds: 4.303 · 0.1/√3.
    assert "| glow | 1.1000 | 0.2484 | – | 3 |" in table
    alone = tables_module.markdown_table([{**FIGURES, "bits_per_dim": 2.0, "seed": 0}], {"glow": 1000})
    assert "| glow | 2.0000 | 1.0000† | – | 1 |" in alone
    scored = [{**FIGURES, "bits_per_dim": 1.0, "seed": seed, "num_images": count} for seed, count in enumerate((9, 5))]
    assert "1.0000 (5 images) |" in tables_module.markdown_table(scored, {"glow": 1000})
    assert student_half_width([1.0, 2.0], level=0.5) == pytest.approx(0.5)  # of Cauchy's law the quartile is 1
    assert math.isnan(student_half_width([1.0]))


def row_figures(row: str, seed: int, bits: float, steps: int = 7, scored: int = 9) -> dict[str, object]:
    counts = {"steps": steps, "num_images": scored, "num_test_images": 9}
    return {"row": row, "seed": seed, "bits_per_dim": bits, **counts}


def test_rows_are_compared_seed_by_seed():
    """Differences of 0.1, 0.2 and 0.3: 0.2 ± 4.303 · 0.1/√3; of 0.10 and 0.11: 0.105 ± 12.706 · 0.005."""
    paired = tables_module.paired_table
    steps = dict.fromkeys(("base", "wide", "near", "one", "none", "short"), 7)
    base = [row_figures("base", seed, bits) for seed, bits in enumerate((1.0, 2.0, 3.0))]
    wide = [row_figures("wide", seed, bits) for seed, bits in enumerate((1.1, 2.2, 3.3))]
    near = [row_figures("near", 2, 2.9), row_figures("near", 0, 0.89), row_figures("near", 7, 50.0)]
    rest = [row_figures("one", 1, 2.5), row_figures("none", 9, 1.0), row_figures("short", 0, 0.1, steps=6)]
    rest.append(row_figures("short", 1, 0.1, scored=8))
    assert paired([*near, *rest, *wide, *base], "base", steps).splitlines()[2:] == [
        "| near | −0.110, −0.100 | −0.105 | −0.169 … −0.041 | yes |",
        "| wide | 0.100, 0.200, 0.300 | 0.200 | −0.048 … 0.448 | no |",
        "| one | 0.500 | 0.500 | – | one seed |",
    ]
    with pytest.raises(ValueError, match="no record of 'glow'; choose among base, near"):
        paired([*base, *near], "glow", {**steps, "glow": 7})


@pytest.mark.parametrize("command", [benchmark.Render, benchmark.Compare])
def test_scores_of_different_data_make_no_table(tmp_path, command):
    given = {"results": tmp_path, **({"out": tmp_path / "runs"} if command is benchmark.Render else {})}
    with pytest.raises(ValueError, match=r"no record in .*mnist; see `run` and `render`"):
        command(**given).run()
    for seed, data in enumerate(("a", "a", "b")):
        name, provenance = f"glow-s{seed}", {"data_sha256": data}
        record = Record("image_benchmark", name, "glow", {}, row_figures("glow", seed, 1.0), provenance)
        record.write(tmp_path / "mnist" / f"{name}.json")
    with pytest.raises(ValueError, match="scored on different data, for example glow-s1 and glow-s2; delete"):
        command(**given).run()


def test_the_papers_numbers_stand_beside_their_family():
    published = tables_module.published_bits
    assert [published("mnist", row) for row in ("mconv-kernel", "real_nvp", "glow")] == [1.07, 1.09, None]
    assert published("cifar", "real_nvp") is None


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, table in BENCHMARKS.items() for row in table.rows])
def test_rows_stay_within_their_table(name, row):
    table = BENCHMARKS[name]
    shape = (3, 32, 32) if name == "cifar" else (1, 28, 28)
    density = build_image_density(table.config(row, 0, None).image, shape)
    size = sum(p.numel() for p in density.parameters())
    assert size <= table.max_parameters
    if name == "cifar":  # equal sizes: an order by bits/dim is none by parameters
        assert size == pytest.approx(400_000, rel=0.02)


def test_pictures_in_colours_and_broken_ones_in_red():
    strip = figures_module._strip
    grey = torch.full((2, 1, 1, 1), 0.2)
    grey[1] = torch.nan
    assert strip(grey)[0].tolist() == [pytest.approx([0.8] * 3), [1.0, 0.0, 0.0]]
    colours = torch.tensor([0.0, 0.2, 1.0]).reshape(1, 3, 1, 1)
    assert strip(colours)[0].tolist() == [pytest.approx([0.0, 0.2, 1.0])]


def test_what_has_no_weights_is_not_scored(tmp_path):
    with pytest.raises(ValueError, match=r"of the 3 runs asked for, none has weights in .*mnist: begin with .* run"):
        benchmark.Evaluate(out=tmp_path, rows=("glow",)).run()


@pytest.mark.parametrize(
    ("command", "option"),
    [("Render", {"rows": ("glow",)}), ("Render", {"seeds": (1,)}), ("Render", {"steps": 5}), ("Speed", {"steps": 5}),
     ("Speed", {"seeds": (1,)})],
)  # fmt: skip
def test_options_without_effect_are_refused(command, option):
    (name,) = option
    with pytest.raises(SettingsError, match=f"{name} has no effect on {command.lower()}: leave --{name} out"):
        getattr(benchmark, command)(**option)


def test_a_run_that_diverged_once_and_was_trained_to_its_end_has_not_diverged(tmp_path, tiny):
    place = Workplace(tmp_path, tmp_path)
    limits = job_module.Limits(evaluate_seconds=0.0, num_samples=8)
    folder = tmp_path / "glow-s0"
    with pytest.raises(OutOfTimeError):
        work([job_module.BudgetJob(tiny, "glow", 0, 5)], place, replace(limits, wall_seconds=0.0))
    (folder / "diverged.txt").write_text("step 2\n")
    assert work([job_module.BudgetJob(tiny, "glow", 0, 5)], place, limits)["glow-s0"].figures["diverged"] is False
