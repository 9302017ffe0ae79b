"""The runner: nothing twice, nothing lost, one failure is one failure."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import forkserver

import pytest

from vi_flows.cli import main
from vi_flows.records import Record
from vi_flows.table import Machine, Row, Runner, VAEJob, status_of, status_table
from vi_flows.table.claim import Claim, HeldError, is_held, last_note
from vi_flows.table.runner import work_through
from vi_flows.table.work import work
from vi_flows.training import ImageTrainConfig, Run, RunError, TrainingInterrupted, VAETrainConfig
from vi_flows.training.captured import trainer_for
from vi_flows.vae import VAEConfig

TINY = VAETrainConfig(
    vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), batch_size=400, validate_every=2, checkpoint_seconds=1e9
)
ROW = Row("tiny", "standard", TINY, "plain")
FINISH = Row("tiny-iwae3", "finish", replace(TINY, objective="iwae", num_particles=3), source=ROW)
FAST = Machine(num_samples=5)


@pytest.fixture
def own_server():
    """Its processes write where this test reads: a server that another test began has that one's standard output."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def jobs_of(*seeds, epochs=2):
    return [VAEJob(ROW, seed, epochs) for seed in seeds]


def finish_of(job, epochs=1):
    return VAEJob(FINISH, job.seed, epochs, job)


def make(job, place, machine):
    """The new record of a job, if there is one."""
    return work([job], place, machine).get(job.name)


def epochs_of(job, place):
    lines = (job.folder(place) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def record_of(job, place):
    return Record.read(job.record(place))


def test_records_that_are_there_are_said_to_stay(place, capsys):
    (job,) = jobs_of(0)
    assert work_through([job], place, FAST) == 0
    assert "already" not in capsys.readouterr().out
    assert work_through([job], place, replace(FAST, num_samples=7)) == 0
    assert "1 of 1 runs have a record already, which stays as it is" in capsys.readouterr().out
    assert record_of(job, place).figures["num_samples"] == 5


# One run ------------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_evaluated_and_recorded(place):
    (job,) = jobs_of(3)
    assert status_of(job, place).state == "new"
    assert make(job, place, FAST).figures["nll"] == record_of(job, place).figures["nll"]
    record = record_of(job, place)
    assert record.figures["num_samples"] == 5
    assert record.settings["seed"] == 3
    assert epochs_of(job, place) == [1, 2]
    status = status_of(job, place)
    assert (status.state, status.progress, status.score, status.seconds_left) == ("done", 2, record.figures["nll"], 0.0)


def test_an_ablation_is_evaluated_on_the_validation_images(place):
    job = VAEJob(replace(ROW, change="ema", paper_row=None), 0, 1)
    record = make(job, place, FAST)
    assert record.settings["evaluation"]["split"] == "valid"
    assert job.record(place) == place.results / "ablation" / "ablation-digits-g1-tiny-ema-e1-s0.json"
    assert status_of(job, place).score == record.figures["nll"]
    assert make(jobs_of(0, epochs=1)[0], place, FAST).settings["evaluation"]["split"] == "test"


def test_images_are_annealed_and_guides_refined_where_that_is_asked_for(place, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "vi_flows.table.vae_job.evaluate_run",
        lambda _, settings, **__: (
            asked.append((settings.ais and settings.ais.images, settings.refine and settings.refine.steps)), None,
        ),
    )  # fmt: skip
    for machine in (FAST, replace(FAST, ais_images=12), replace(FAST, refine=30)):
        make(jobs_of(0, epochs=1)[0], place, machine)
    assert asked == [(None, None), (12, None), (None, 30)]


def test_a_run_that_was_stopped_goes_on_where_it_was(place):
    (job,) = jobs_of(0, epochs=4)
    whole = replace(place, runs=place.runs / "whole", results=place.results / "whole")
    expected = make(job, whole, FAST)
    trainer = trainer_for(Run.create(job.folder(place), job.config(place)), progress=False)
    trainer.start()
    trainer.fit(until=2 * trainer.steps_per_epoch)
    status = status_of(job, place)
    assert (status.state, status.progress, status.total) == ("stopped", 2, 4)
    assert make(job, place, FAST).figures["nll"] == expected.figures["nll"]
    assert epochs_of(job, place) == [1, 2, 3, 4]


def test_a_run_goes_on_from_the_weights_of_its_source(place):
    (job,) = jobs_of(1)
    finish = finish_of(job)
    assert status_of(finish, place).state == "waiting"
    make(job, place, FAST)
    assert status_of(finish, place).state == "new"
    run = Run.create(finish.folder(place), finish.config(place))
    assert status_of(finish, place).state == "stopped"
    with run.locked():  # trained by another command than the table's
        assert status_of(finish, place).state == "training"
    record = make(finish, place, FAST)
    assert finish.name == "digits-g1-tiny-iwae3-clean-e2+1-s1"
    assert Run.open(finish.folder(place)).started_from["run"] == job.name
    assert record.settings["epochs"] == 1


def test_a_run_begun_otherwise_is_refused_by_name(place):
    (job,) = jobs_of(0)
    Run.create(job.folder(place), replace(job.config(place), learning_rate=0.5))
    with pytest.raises(RunError, match=r"learning_rate=0\.5"):
        make(job, place, FAST)


def test_a_run_goes_on_on_its_own_kind_of_device(place):
    (job,) = jobs_of(0)
    Run.create(job.folder(place), job.config(place, "cuda", cuda_graph=True))
    with pytest.raises(RunError, match="begun on cuda: go on with --device cuda"):
        make(job, place, FAST)


# Claims -------------------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from vi_flows.table.claim import Claim
with Claim(Path(sys.argv[1]), sys.argv[2]).held() as claim:
    claim.note("training")
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_is_one_process_own_until_it_dies(place):
    (job,) = jobs_of(0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place.runs), job.name], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert is_held(place.runs, job.name)
        assert status_of(job, place).state == "training"
        with pytest.raises(HeldError):
            make(job, place, FAST)
        outcome = Runner([job], place, FAST).run()  # it is left to its holder
        assert (outcome.held, outcome.done, outcome.failed) == ([job.name], [], {})
    finally:
        holder.kill()
        holder.wait()
    assert last_note(place.runs, job.name)["pid"] == holder.pid
    assert not is_held(place.runs, job.name)
    with Claim(place.runs, job.name).held():
        assert is_held(place.runs, job.name)
    make(job, place, FAST)


@pytest.mark.parametrize("note", ['{"state": "fai', "[]", "{}", '{"state": 3}'])
def test_a_damaged_note_is_of_its_row_alone(place, note):
    first, second = jobs_of(0, 1)
    path = place.runs / ".claims" / f"{first.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(note)
    found = status_of(first, place)
    assert (found.state, found.error) == ("failed", f"the note {path} can't be read: delete it, and run the row again")
    assert status_table([first, second], place).endswith("1 failed, 1 new")
    path.write_text('{"state": "failed"}')
    assert status_of(first, place).error == "it does not say why"


@pytest.mark.parametrize("line", ['{"step": 5}', '{"epoch": "x", "seconds": 1.0}', '{"epoch": 2, "seconds": null}'])
def test_a_line_of_metrics_that_says_nothing_is_left_out(place, line):
    (job,) = jobs_of(0)
    Run.create(job.folder(place), job.config(place))
    whole = '{"epoch": 1, "step": 3, "seconds": 2.0, "valid_loss": 4.0}'
    (job.folder(place) / "metrics.jsonl").write_text(f"{whole}\n{line}\n")
    found = status_of(job, place)
    assert (found.state, found.progress, found.valid_loss) == ("stopped", 1, 4.0)
    assert found.seconds_left == pytest.approx(2.0 * (job.total - 1))


def test_seeds_in_a_stack_are_the_seeds_alone(place):
    jobs, alone = jobs_of(0, 1, 2), replace(place, runs=place.runs / "alone", results=place.results / "alone")
    with Claim(place.runs, jobs[1].name).held():  # it is left to its holder
        records = work(jobs, place, replace(FAST, stack=3))
    assert set(records) == {jobs[0].name, jobs[2].name}
    for job in (jobs[0], jobs[2]):
        assert records[job.name].figures["nll"] == pytest.approx(make(job, alone, FAST).figures["nll"], rel=1e-4)
        assert status_of(job, place).state == "done"
    assert jobs[1].name not in records


def test_a_folder_with_a_run_of_another_kind_is_refused_in_a_sentence(place):
    (job,) = jobs_of(0)
    Run.create(job.folder(place), ImageTrainConfig())
    with pytest.raises(RunError, match="of kind 'image', not 'vae'"):
        work([job], place, FAST)


# Many runs ----------------------------------------------------------------------------------------------------------


def test_the_list_is_worked_through_once(own_server, place, capfd):
    """A source, the run that starts from it, and one that can't be: begun with other settings, and its follower."""
    good, bad = jobs_of(0, 1)
    jobs = [bad, finish_of(bad), good, finish_of(good)]
    Run.create(bad.folder(place), replace(bad.config(place), batch_size=7))
    outcome = Runner(jobs, place, FAST, processes=2).run()
    assert set(outcome.done) == {good.name, finish_of(good).name}
    assert "batch_size=7" in outcome.failed[bad.name]
    assert outcome.failed[finish_of(bad).name] == f"it starts from {bad.name}, which failed"
    assert "batch_size=7" in status_of(bad, place).error
    assert "open_or_create" in last_note(place.runs, bad.name)["traceback"]
    table = status_table(jobs, place).splitlines()
    assert [line.split()[1] for line in table[1:5]] == ["failed", "waiting", "done", "done"]
    assert table[-1] == "2 done, 1 failed, 1 waiting"
    printed = capfd.readouterr().out
    assert f"{good.name}: NLL" in printed
    assert f"{bad.name}: failed" in printed
    before = {path: path.stat().st_mtime_ns for path in place.results.iterdir()}
    again = Runner([good, finish_of(good)], place, FAST).run()
    assert again.done == [good.name, finish_of(good).name]
    assert {path: path.stat().st_mtime_ns for path in place.results.iterdir()} == before
    assert "begun" not in capfd.readouterr().out


def test_a_record_that_came_without_its_weights_is_kept_and_its_run_made_for_those_that_need_it(place):
    (job,) = jobs_of(0)
    place.results.mkdir()
    Record("vae", "a", "a", {}, {"nll": 1.0}, {}).write(job.record(place))
    assert Runner([job], place, FAST).run().done == [job.name]
    assert not job.folder(place).exists()
    outcome = Runner([job, finish_of(job)], place, FAST).run()
    assert set(outcome.done) == {job.name, finish_of(job).name}
    assert record_of(job, place).figures == {"nll": 1.0}


def test_a_record_of_another_recipe_is_no_record_of_the_row(place, monkeypatch):
    monkeypatch.setattr(Runner, "_start", lambda *_: pytest.fail("begun"))
    (job,) = jobs_of(0)
    vae = {"hidden_dims": [[5]], "batch_norm": False, "of_another_version": 1}
    Record("vae", "a", "a", {"batch_size": 400, "vae": vae}, {"nll": 1.0}, {}).write(job.record(place))
    outcome = Runner([job], place, FAST).run()
    assert "is of a run with vae.hidden_dims=[[5]], and the row has [[4]]" in outcome.failed[job.name]
    status = status_of(job, place)
    assert (status.state, "hidden_dims" in status.error) == ("failed", True)
    job.record(place).write_text("[]")
    assert "can't be read" in Runner([job], place, FAST).run().failed[job.name]
    vae["hidden_dims"] = [[4]]
    job.record(place).unlink()  # what is no record is not replaced
    Record("vae", "a", "a", {"batch_size": 400, "vae": vae}, {"nll": 1.0}, {}).write(job.record(place))
    assert Runner([job], place, FAST).run().done == [job.name]


def test_seeds_of_a_row_are_begun_together(place, monkeypatch):
    begun = []
    monkeypatch.setattr(
        Runner, "_start", lambda self, jobs: begun.append([self.pending.pop(j.name).name for j in jobs])
    )
    longer, done = VAEJob(ROW, 0, 3), jobs_of(5)[0]
    Record("vae", "a", "a", {}, {"nll": 1.0}, {}).write(done.record(place))
    jobs = [*jobs_of(0), longer, *jobs_of(1), done, *jobs_of(2, 3)]
    outcome = Runner(jobs, place, replace(FAST, stack=3), processes=9).run()
    assert outcome.done == [done.name]
    assert begun == [[job.name for job in jobs_of(0, 1, 2)], [longer.name], [jobs_of(3)[0].name]]


@pytest.mark.parametrize(
    ("settings", "recorded"),
    [({}, False), ({"device": "cuda"}, True), ({"device": "cuda:1", "stack": 2}, False),
     ({"device": "cuda", "cuda_graph": False}, False)],
)  # fmt: skip
def test_steps_are_recorded_on_a_gpu_and_not_of_stacks(settings, recorded):
    assert Machine(**settings).records_steps == recorded


def test_a_stopped_list_raises_what_stopped_it(place):
    runner = Runner(jobs_of(0), place, FAST)
    runner._stopped = signal.SIGTERM
    with pytest.raises(TrainingInterrupted) as stopped:
        runner.run()
    assert stopped.value.number == signal.SIGTERM
    assert not place.runs.exists()


# Status -------------------------------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_the_last_twenty_epochs(place):
    """Epochs of 10 s, then twenty of 2 s: the 60 left take 120 s. Before there are twenty, all of them count."""
    (job,) = jobs_of(0, epochs=90)
    folder = job.folder(place)
    folder.mkdir(parents=True)
    seconds = [10.0 * e for e in range(1, 11)] + [100 + 2.0 * e for e in range(1, 21)]
    lines = [json.dumps({"epoch": e, "step": e, "seconds": s}) for e, s in enumerate(seconds, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n")
    assert status_of(job, place).seconds_left == 850
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epoch": 31, "st')  # in the middle of a line
    status = status_of(job, place)
    assert (status.progress, status.seconds_left, status.state) == (30, 120, "stopped")
    table = status_table([job], place)
    assert "30/90" in table
    assert "0:02:00" in table


def test_a_runner_says_once_how_long_a_training_will_take(place, capfd):
    """Of 100 epochs the first took 10 s, which is too little to tell; two took 24 s: 98 more take 1176 s."""
    (job,) = jobs_of(0, epochs=100)
    folder = job.folder(place)
    folder.mkdir(parents=True)
    runner = Runner([job], place, FAST)
    runner._running = [([job], None)]
    lines = [json.dumps({"epoch": e, "step": e, "seconds": s}) for e, s in ((1, 10.0), (2, 24.0), (3, 34.0))]
    for count in range(4):
        (folder / "metrics.jsonl").write_text("\n".join(lines[:count]))
        runner._project()
    assert capfd.readouterr().out == f"{job.name}: epoch 2 of 100, about 0:19:36 of training left\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--processes", "0"], "processes must be at least 1"),
        (["--num-samples", "0"], "num_samples must be at least 1"),
        (["--rows", "nothing"], "no row matches 'nothing'"),
        (["--shard", "3/2"], "--shard must be i/n"),
    ],
)
def test_mistakes_in_the_command_are_named(words, named, capsys, place):
    with pytest.raises(SystemExit) as ended:
        main(["table", "run", "--rows", "digits-g1-plain-clean", *words, "--runs", str(place.runs)])
    assert ended.value.code == 2
    assert named in " ".join(capsys.readouterr().err.split())  # in a box of some width
    assert not place.runs.exists()
