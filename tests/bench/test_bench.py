"""The bench command: its arithmetic on a clock of its own, its sides against each other, its records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vi_flows.bench import GOALS, compare, images, kernels, measure, recurrent, rows, table, vae
from vi_flows.bench.images import SamplerShape
from vi_flows.cli.bench import Bench
from vi_flows.cli.info import Info
from vi_flows.kernels import active_kernel, use_kernel
from vi_flows.records import Record
from vi_flows.transforms.image.solvers import CompiledSolver, FollowedSolver, RowSolver
from vi_flows.vae import VAEConfig


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when work says so."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: now[0])

    def work(*seconds):
        costs = iter(seconds)
        state = {"cost": 0.0}

        def run():
            state["cost"] = next(costs, state["cost"])
            now[0] += state["cost"]

        return run

    return work


def test_ratio_is_the_median_of_paired_runs(clock):
    # a long call warms up once, then comes one a round
    slow, fast = clock(9, 2, 4, 60), clock(9, 1, 1, 1)
    result = compare(slow, fast, rounds=3)
    assert result.ratio == 4
    assert result.low <= 4 <= result.high
    assert (result.numerator_ms, result.denominator_ms, result.rounds) == (4000, 1000, 3)


def test_short_work_is_repeated(clock):
    calls = []
    tick = clock(0.001)

    def work():
        calls.append(1)
        tick()

    result = compare(work, clock(0.002), rounds=2, min_seconds=0.03)
    assert len(calls) == 3 + 2 * 30  # two to warm up, one to calibrate
    assert result.ratio == pytest.approx(0.5)
    assert compare(clock(1.0), clock(1.0), rounds=1).ratio == pytest.approx(1)
    with pytest.raises(ValueError, match="rounds"):
        compare(work, work, rounds=0)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    seen = []
    compare(lambda: seen.append(torch.get_num_threads()), lambda: None, rounds=1, min_seconds=0)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_verdicts():
    faster, cheaper = GOALS["1a"], GOALS["5"]
    assert [faster.verdict(r) for r in (60, 50, 49, 20, 19)] == ["goal", "goal", "floor", "floor", "below"]
    assert [cheaper.verdict(r) for r in (1.0, 1.05, 1.1, 1.15, 1.2)] == ["goal", "goal", "floor", "floor", "below"]
    assert {goal.number for goal in GOALS.values()} == set(range(1, 9))
    assert all((g.goal > g.floor) if g.faster else (g.goal < g.floor) for g in GOALS.values())


def test_bare_pytorch_computes_the_same_loss():
    """Otherwise goal 5 would compare two different models."""
    model = vae.make_vae("none")
    bare, x = vae.BareVAE(), vae.images(20)
    linears = [[m for m in part.modules() if isinstance(m, torch.nn.Linear)] for part in (model.guide, model.model)]
    head = model.guide.heads[0]
    mine = [m for m in bare.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        for target, source in zip([*mine[:2], *mine[3:]], [*linears[0][:2], *linears[1]], strict=True):
            target.load_state_dict(source.state_dict())
        torch.manual_seed(3)
        features = model.guide.networks[0](x)
        loc, log_scale = head(features)
        # the bare head is one layer for both: solve for it on the features' span
        inputs = torch.cat([features, torch.ones(20, 1)], 1)
        solved = torch.linalg.pinv(inputs.double()) @ torch.cat([loc, log_scale], 1).double()
        mine[2].weight.copy_(solved[:-1].T)
        mine[2].bias.copy_(solved[-1])
        torch.manual_seed(4)
        expected = -model.log_weight_terms(x, 1).log_weights().mean()
        torch.manual_seed(4)
        found = bare(x)
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("step", [vae.direct_step, vae.pyro_step])
def test_steps_learn(step):
    take = step(vae.make_vae("global"), batch=50)
    losses = [take().item() for _ in range(30)]
    assert losses[-1] < losses[0] - 50


@pytest.mark.parametrize("peer", kernels.PEERS)
def test_peers_run(peer):
    if "zuko" in peer or "normflows" in peer:
        pytest.importorskip(peer.split()[0])
    module, evaluate = kernels.PEERS[peer]()
    kernels.training_pass(evaluate, module, 3)()
    assert all(p.grad is not None for p in module.parameters())


def test_glow_is_compared_with_one_of_as_many_parameters():
    pytest.importorskip("normflows")
    shape = images.SamplerShape(image_shape=(2, 8, 8), num_levels=2, num_steps=2, width=6)
    theirs, ours, sizes = images.glow_passes(shape, 3)
    assert sizes[0] == sizes[1] > 1000
    theirs()
    ours()
    measured, note = images.peer_over_glow(1, shape, 3)
    assert measured.ratio > 0
    assert f"{sizes[0]} and {sizes[1]} parameters" in note
    assert images.glow_passes(shape, 3, torch.bfloat16)[2] == sizes


def test_both_recurrences_are_the_same(monkeypatch):
    found = []
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda out, cotangent: found.append((out.grad_fn.name(), out.detach()))
    )
    for work in recurrent.recurrence_passes(4, (3, 2), 2):
        work()
    assert [name for name, _ in found] == ["CatBackward0", "_DiagonalLSTMBackward"]
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert found[0][1].shape == (2, 6, 2, 2)
    monkeypatch.undo()
    measured, note = recurrent.autograd_over_written(1, 4, (3, 2), 2)
    assert measured.ratio > 0
    assert note == "2 images of 3x2, width 4"


def test_a_missing_peer_is_a_row_and_not_an_error(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(kernels.importlib, "import_module", missing)
    row = rows.measure_row("6c", "zuko", lambda: kernels.peer_over_fused("zuko MAF x4", 3, 1))
    assert row.measurement is None
    assert row.verdict == "-"
    assert "extra `bench`" in row.note


def test_the_command_prints_and_keeps_a_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "DIM", 6)
    monkeypatch.setattr(kernels, "BLOCKS", 1)
    monkeypatch.setattr(measure, "_repeats", lambda work, seconds: 1)
    monkeypatch.setattr(images, "SamplerShape", lambda: SamplerShape((1, 8, 8), 2, 1, 4))
    assert Bench(goals=(3, 4), rounds=2, history=tmp_path / "bench").run() == 0
    printed = capsys.readouterr().out
    assert "inverse / forward" in printed
    assert "100 images of 1x8x8, L=2, D=1, width 4" in printed
    (path,) = (tmp_path / "bench").iterdir()
    record = Record.read(path)
    assert str(path) in printed
    assert [row["name"] for row in record.figures["rows"]] == ["3a", "3b", "4"]
    assert record.provenance["threads"] == 1
    assert record.provenance["kernel"] == active_kernel()
    first = record.figures["rows"][0]
    assert first["ratio"] > 0
    assert first["floor"] == 1.5
    assert first["verdict"] in ("goal", "floor", "below")
    assert Bench(goals=(4,), rounds=1, json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["figures"]["rows"][0]["goal_number"] == 4


def test_check_turns_a_missed_floor_into_an_exit_code(monkeypatch, capsys):
    bad = measure.Measurement(9.0, 9.0, 9.0, 9.0, 1.0, 1)
    monkeypatch.setattr(kernels, "inverse_over_forward", lambda *_: (bad, ""))
    assert Bench(goals=(3,)).run() == 0
    assert Bench(goals=(3,), check=True).run() == 1
    assert "below" in capsys.readouterr().out


def test_bad_options():
    with pytest.raises(ValueError, match="no goal 9"):
        Bench(goals=(9,)).run()
    with pytest.raises(ValueError, match="rounds"):
        Bench(rounds=0).run()


def test_info_names_the_kernel_and_why(capsys):
    assert Info().run() == 0
    printed = capsys.readouterr().out
    assert active_kernel() in printed
    assert torch.__version__ in printed
    assert Info(json=True).run() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"] == active_kernel()
    assert found["kernel_reason"]


def test_the_table_runner_is_measured_in_processes_of_its_own():
    config = replace(table.CONFIG, vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)))
    result, note = table.runner_over_one_at_a_time(2, config, stack=2, processes=2, seconds=0.1)
    assert result.rounds == 2
    assert result.ratio > 0
    assert "of 2 stacked models" in note


def test_a_training_process_that_dies_is_a_row_and_not_a_hang():
    bad = replace(table.CONFIG, vae=VAEConfig(latent_dims=(2, 3)))  # G1 has one latent: the model is refused there
    row = rows.measure_row("7", "runner", lambda: table.runner_over_one_at_a_time(1, bad))
    assert row.measurement is None
    assert "died" in row.note


def test_the_inverse_by_rows_is_measured_beside_the_active_kernels(monkeypatch):
    solved = []
    for solver in (CompiledSolver, FollowedSolver, RowSolver):
        original = solver.solve
        monkeypatch.setattr(solver, "solve", lambda self, *of, do=original: solved.append(type(self)) or do(self, *of))
    with use_kernel("torch"):
        measured, note = images.rows_over_compiled(1, 2, 4, 3)
    assert (note, set(solved)) == ("3 images, kernel torch", {RowSolver})
    assert measured.ratio > 0
    solved.clear()
    note = images.rows_over_compiled(1, 2, 4, 3)[1]
    assert note == f"3 images, kernel {active_kernel()}"
    assert set(solved) == ({RowSolver, CompiledSolver} if active_kernel() == "c" else {RowSolver})
    solved.clear()
    images.rows_over_compiled(1, 2, 4, 3, gradients=True)
    assert set(solved) == ({RowSolver, FollowedSolver} if active_kernel() == "c" else {RowSolver})
