"""The two-dimensional targets against published normalisers and closed forms, and fits of them."""

import json
import math
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch.distributions import AffineTransform, ExpTransform

from vi_flows.distributions.energies import TARGETS_2D, Energy2D, target_2d
from vi_flows.fit2d import Fit2D, Fit2DResult, fit_flow_2d, flow_log_density, make_flow_2d, train_flow_2d
from vi_flows.flows import MAF, ConvFlow, conv_flow
from vi_flows.objectives.path_gradient import inverse_with_detached_parameters
from vi_flows.records import RecordExistsError
from vi_flows.transforms import Chain, FromPyro, Revert


@pytest.mark.parametrize(
    ("name", "truncated", "log_z"),
    [
        ("u1", False, 1.8775),
        ("u2", True, 2.0821),
        ("u3", True, 2.6417),
        ("u4", True, 2.7107),
        ("funnel", False, math.log(2 * math.pi * 1.5)),
        ("banana", False, math.log(2 * math.pi * 2 * 0.5)),
    ],
)
def test_normalisers(name, truncated, log_z):
    assert abs(target_2d(name, truncated).log_normalizer() - log_z) < 1e-4


def test_wall_adds_two_half_gaussians():
    inside = target_2d("wave", truncated=True).log_normalizer()
    walls = 0.4 * math.sqrt(2 * math.pi) * 0.2 * math.sqrt(2 * math.pi)
    assert abs(target_2d("wave").log_normalizer() - math.log(math.exp(inside) + walls)) < 1e-5


@pytest.mark.parametrize("name", sorted(TARGETS_2D))
def test_boxes_hold_the_mass(name):
    target = TARGETS_2D[name]
    a, b, c, d = target.box
    edge = torch.linspace(0, 1, 400)
    border = torch.cat([
        torch.stack([torch.full_like(edge, a), c + (d - c) * edge], -1),
        torch.stack([torch.full_like(edge, b), c + (d - c) * edge], -1),
        torch.stack([a + (b - a) * edge, torch.full_like(edge, c)], -1),
        torch.stack([a + (b - a) * edge, torch.full_like(edge, d)], -1),
    ])  # fmt: skip
    assert target.log_prob(border).max() < -10
    assert target.log_prob(torch.zeros(3, 5, 2)).shape == (3, 5)


def test_draws_have_the_moments_of_the_target():
    torch.manual_seed(0)
    z = target_2d("banana").expand((3,)).sample((100_000,))
    assert z.shape == (100_000, 3, 2)
    assert z.dtype == torch.get_default_dtype()
    z = z.double()
    # z1 ~ N(0, 2²), z2 | z1 ~ N(z1²/4 − 1, ½²): E z2 = 0, Var z2 = ¼ + Var(z1²)/16 = 2.25, E z1² z2 = 12 − 4 = 8
    assert (z.mean(0)).abs().max() < 0.03
    assert (z.square().mean(0) - torch.tensor([4.0, 2.25])).abs().max() < 0.08
    assert ((z[..., 0].square() * z[..., 1]).mean(0) - 8).abs().max() < 0.5


def test_draws_of_a_truncated_target_stay_inside():
    z = target_2d("u3", truncated=True).sample((10_000,))
    assert z[:, 0].abs().max() <= 4
    assert z[:, 0].max() > 3.9


@pytest.mark.parametrize("name", sorted(TARGETS_2D))
def test_targets_can_be_pickled(name):
    target = TARGETS_2D[name]
    z = torch.randn(5, 2)
    copy = pickle.loads(pickle.dumps(target))
    assert torch.equal(copy.unnormalized_log_prob(z), target.unnormalized_log_prob(z))


def half_square(z1, z2):
    return 0.5 * (z1.square() + z2.square())


WIDE = (-8.0, 8.0, -8.0, 8.0)


@pytest.mark.parametrize(
    ("energy", "found"),
    [
        (lambda z1, z2: torch.zeros(()), r"gave a tensor of \(\)"),  # counted once for all cells
        (lambda z1, z2: half_square(z1, z2).sum(), r"gave a tensor of \(\)"),
        (lambda z1, z2: half_square(z1, z2)[..., None], r"gave a tensor of \(3, 1\) for points of shape \(3,\)"),
        (lambda z1, z2: 0.0, "gave float"),
    ],
)
def test_an_energy_gives_a_number_for_each_point(energy, found):
    with pytest.raises(ValueError, match=found):
        Energy2D("own", energy, WIDE).unnormalized_log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((8.0, -8.0, 8.0, -8.0), "min < max"),  # the area of its cells is positive
        ((-8.0, 8.0, -8.0), "four finite numbers"),
        ((-math.inf, math.inf, -8.0, 8.0), "four finite numbers"),
        (8.0, "four finite numbers"),
    ],
)
def test_a_box_has_an_inside(box, message):
    with pytest.raises(ValueError, match=message):
        Energy2D("own", half_square, box)


def test_a_box_that_cuts_the_density_off_is_refused():
    assert abs(Energy2D("own", half_square, WIDE).log_normalizer() - math.log(2 * math.pi)) < 1e-6
    small = Energy2D("own", half_square, (-1.0, 1.0, -8.0, 8.0))  # the same name as the one above
    with pytest.raises(ValueError, match="widen the box"):
        small.log_prob(torch.zeros(2))
    cut = Energy2D("own", half_square, (-1.0, 1.0, -8.0, 8.0), hard=True)
    assert abs(cut.log_normalizer() - math.log(2 * math.pi * math.erf(0.5**0.5))) < 1e-5
    square = Energy2D("square", lambda z1, z2: torch.zeros_like(z1), (0.0, 2.0, 0.0, 4.0), hard=True)
    assert abs(square.log_normalizer() - math.log(8)) < 1e-9
    with pytest.raises(ValueError, match="NaN or minus infinity somewhere"):
        Energy2D("log", lambda z1, z2: z1.log(), WIDE).log_prob(torch.ones(2))


def test_the_normalizer_is_that_of_the_present_box_and_one_for_all_rows():
    asked = []

    def counted(z1, z2):
        asked.append(z1.numel())
        return half_square(z1, z2)

    target = Energy2D("own", counted, (-1.0, 1.0, -1.0, 1.0), hard=True)
    target.log_normalizer()
    target.box = WIDE
    assert abs(target.log_normalizer() - math.log(2 * math.pi)) < 1e-6
    rows = target.expand((3,))
    assert rows.log_prob(torch.zeros(2)).tolist() == [target.log_prob(torch.zeros(2))] * 3
    assert rows.log_prob(torch.zeros(5, 1, 2)).shape == (5, 3)
    assert asked.count(2000**2) == 2


@pytest.mark.parametrize("name", sorted(TARGETS_2D))
def test_scores_at_the_origin_are_numbers(name):
    z = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(TARGETS_2D[name].log_prob(z), z)[0].isfinite().all()


@pytest.mark.parametrize("value", [torch.zeros(3), torch.tensor(1.0)])
def test_points_are_of_two_numbers(value):
    with pytest.raises(ValueError, match=r"density of points \(…, 2\)"):
        TARGETS_2D["u1"].log_prob(value)


def test_divergence_by_quadrature_of_known_densities():
    target = target_2d("banana")

    def shifted(z):
        return target.log_prob(z - torch.tensor([0.0, 0.5]))

    kl, mass = target.divergence_from(shifted)
    assert abs(mass - 1) < 1e-3
    assert abs(kl - 0.5) < 1e-2  # a shift by one sd of the conditional
    assert abs(target.divergence_from(target.log_prob)[0]) < 1e-9


def test_samples_and_quadrature_agree_on_the_divergence():
    flow = conv_flow(2, 2, activation="tanh", init_scale=0.3)
    result = fit_flow_2d(target_2d("u1"), flow, num_steps=60, batch_size=64, num_samples=50_000)
    assert abs(result.kl - result.kl_quadrature) < 5 * result.kl_se + 0.01
    assert result.num_parameters == 20
    x = torch.randn(5, 2)
    assert flow_log_density(flow)(x).shape == (5,)


def test_a_flow_of_any_type_that_the_target_does_not_hold():
    """In double precision, of single entries, onto a quarter of the plane; most of its mass beyond a small box."""
    torch.manual_seed(0)
    quarter = Chain([MAF(1, (4,)).build(2), FromPyro(ExpTransform())]).double()
    cell = (20.0 / 2000) ** 2
    mesh = torch.meshgrid(*[torch.linspace(-10, 10, 2001, dtype=torch.float64)[1:] - 0.005] * 2, indexing="ij")
    log_q = flow_log_density(quarter)(torch.stack(mesh, -1).reshape(-1, 2))
    assert log_q.dtype == torch.float64
    assert (log_q > -math.inf).sum() == 1000**2
    assert 0.95 < float(log_q.exp().sum() * cell) < 1
    result = fit_flow_2d(target_2d("banana"), quarter, num_steps=2, batch_size=8, num_samples=1000)
    assert math.isfinite(result.kl)
    scale = torch.nn.Parameter(torch.ones(2))
    shift = FromPyro(AffineTransform(0.0, scale))
    fit_flow_2d(Energy2D("own", half_square, WIDE), shift, num_steps=3, batch_size=8, num_samples=1000)
    assert (scale != 1).all()
    narrow = Energy2D("narrow", lambda z1, z2: 100 * half_square(z1, z2), (-1.0, 1.0, -1.0, 1.0))
    result = fit_flow_2d(narrow, conv_flow(2), num_steps=1, batch_size=8, num_samples=1000)
    assert result.kl > 50
    assert result.kl_quadrature is None  # the divergence of the half of its mass that the box holds is another number
    with pytest.raises(FloatingPointError, match="a wall there in place of hard=True"):
        fit_flow_2d(target_2d("u2", truncated=True), conv_flow(2), num_steps=9, batch_size=512)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("u1", conv_flow(2)), {}, "target must be of type Energy2D, got str"),
        ((TARGETS_2D["u1"], ConvFlow()), {}, r"flow must be of type Bijection, got ConvFlow: .* ConvFlow\(\).build"),
        ((TARGETS_2D["u1"], ConvFlow().build(2, 3)), {}, "got ConditionalConvFlow"),
        ((TARGETS_2D["u1"], Revert()), {}, "no parameters to train"),
        ((TARGETS_2D["u1"], conv_flow(2).requires_grad_(False)), {}, "no parameters to train"),
        ((TARGETS_2D["u1"], conv_flow(2)), {"anneal_steps": -3}, "anneal_steps must be at least 0"),
        ((TARGETS_2D["u1"], conv_flow(2)), {"start_beta": math.nan}, "start_beta must lie within 0 and 1"),
        ((TARGETS_2D["u1"], conv_flow(2)), {"start_beta": -3.0}, "start_beta must lie within 0 and 1"),
        ((TARGETS_2D["u1"], conv_flow(2)), {"num_samples": 1}, "num_samples must be at least 2"),
    ],
)
def test_what_can_not_be_fitted_is_named(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit_flow_2d(*arguments, num_steps=2, **options)


@pytest.mark.parametrize("num_samples", [70, 50_000, 60_000])
def test_a_divergence_is_of_as_many_draws_as_are_asked_for(num_samples):
    flow, drawn = make_flow_2d("planar", 1), []
    forward = flow.forward_and_ladj

    def counted(x):
        drawn.append(len(x))
        return forward(x)

    flow.forward_and_ladj = counted
    fit_flow_2d(target_2d("u1"), flow, num_steps=1, batch_size=8, num_samples=num_samples)
    assert sum(drawn[1:]) == num_samples


def test_training_lowers_the_divergence():
    flow = make_flow_2d("conv_flow", 2)
    before = fit_flow_2d(target_2d("banana"), flow, num_steps=1, learning_rate=1e-6, num_samples=20_000)
    after = fit_flow_2d(target_2d("banana"), flow, num_steps=300, batch_size=128, num_samples=20_000)
    assert after.kl < 0.5 * before.kl


@pytest.mark.parametrize("name", ["planar", "radial", "iaf", "spline"])
def test_others_have_no_fewer_parameters(name):
    flow = make_flow_2d(name, 3)
    count = sum(p.numel() for p in flow.parameters())
    assert count >= 30
    assert flow.forward_and_ladj(torch.zeros(2, 2))[0].shape == (2, 2)


@pytest.mark.parametrize("name", ["conv_flow", "planar", "iaf", "spline"])
def test_every_step_moves_the_parameters(name):
    flow = make_flow_2d(name, 1)
    start = [p.detach().clone() for p in flow.parameters()]
    train_flow_2d(target_2d("banana"), flow, num_steps=1, batch_size=16)
    once = [p.detach().clone() for p in flow.parameters()]
    train_flow_2d(target_2d("banana"), flow, num_steps=1, batch_size=16)
    assert any(not torch.equal(a, b) for a, b in zip(start, once, strict=True))
    # A path gradient that left frozen parameters behind (as torch.func does with shared modules) stops here.
    assert any(not torch.equal(a, b) for a, b in zip(once, flow.parameters(), strict=True))


@pytest.mark.parametrize("name", ["conv_flow", "iaf", "spline"])
def test_path_gradient_leaves_no_parameter_in_the_graph(name):
    flow = make_flow_2d(name, 1)
    y = torch.randn(4, 2, requires_grad=True)
    z, ladj = inverse_with_detached_parameters(flow, y)
    grads = torch.autograd.grad((z.sum() + ladj.sum()), [y, *flow.parameters()], allow_unused=True)
    assert grads[0] is not None
    assert all(g is None for g in grads[1:])


def test_search_keeps_the_best_finalist_by_the_training_objective():
    job = Fit2D(
        "u2", num_blocks=1, num_steps=30, batch_size=32, learning_rates=(1e-5, 0.05), restarts=2, probe_steps=20
    )
    _, result, trials = job.fit()
    assert len(trials) == 4
    assert trials[0]["learning_rate"] == 0.05
    assert trials[0]["objective"] == min(trial["objective"] for trial in trials)
    assert trials[0]["final_objective"] == result.objective
    _, best, trials = replace(job, finalists=4).fit()
    finals = [trial["final_objective"] for trial in trials]
    assert best.objective == finals[0] == min(finals)
    assert len(set(finals)) == 4


def test_command_writes_record_and_picture(tmp_path, capsys):
    job = Fit2D("u2", num_blocks=1, num_steps=5, batch_size=32, out=tmp_path)
    assert job.run() == 0
    assert "KL" in capsys.readouterr().out
    record = json.loads((tmp_path / "u2-conv_flow-1.json").read_text())
    assert record["settings"]["target"] == "u2"
    assert record["figures"]["result"]["num_steps"] == 5
    assert {"revision", "device", "torch"} <= set(record["provenance"])
    assert (tmp_path / "u2-conv_flow-1.png").stat().st_size > 1000
    with pytest.raises(RecordExistsError, match="give --overwrite"):
        replace(job, seed=3).run()
    assert json.loads((tmp_path / "u2-conv_flow-1.json").read_text()) == record
    assert replace(job, seed=3, overwrite=True).run() == 0
    assert json.loads((tmp_path / "u2-conv_flow-1.json").read_text())["settings"]["seed"] == 3


def test_the_key_of_a_fit_is_its_settings_alone(tmp_path):
    result = Fit2DResult(0.1, 0.01, None, 0.1, 1.0, 5, 5, 1.0, [])
    job = Fit2D("u2", num_blocks=1)
    key = job.record(result, []).key
    assert replace(job, overwrite=True, out=tmp_path).record(result, []).key == key
    assert replace(job, num_steps=7).record(result, []).key != key


def test_bad_requests():
    with pytest.raises(ValueError, match="unknown target"):
        target_2d("spiral")
    with pytest.raises(ValueError, match="proper"):
        target_2d("u1", truncated=True)
    with pytest.raises(ValueError, match="unknown flow"):
        make_flow_2d("glow", 2)
    with pytest.raises(ValueError, match="num_blocks must be a whole number"):
        make_flow_2d("planar", 1.5)
    with pytest.raises(ValueError, match="restarts"):
        Fit2D(restarts=0).fit()


@pytest.mark.slow
def test_eight_blocks_fit_the_papers_target_to_two_hundredths_of_a_nat():
    _, result, _ = Fit2D("wave", learning_rates=(0.03, 0.06), restarts=2, finalists=2).fit()
    assert result.kl < 0.02
    assert abs(result.kl - result.kl_quadrature) < 0.005


def test_an_energy_may_be_an_object_with_settings():
    """A dataclass has no hash; two of them with their own settings have their own log Z."""

    @dataclass
    class Bowl:
        width: float

        def __call__(self, z1, z2):
            return 0.5 * (z1**2 + z2**2) / self.width**2

    for width in (0.5, 1.0):
        target = Energy2D("bowl", Bowl(width), (-8.0, 8.0, -8.0, 8.0))
        assert target.log_normalizer() == pytest.approx(math.log(2 * math.pi * width**2), abs=1e-6)
        assert target.expand([3]).log_prob(torch.zeros(2)).shape == (3,)
