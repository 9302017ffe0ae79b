"""Image densities given a context: the masked networks' or the base's, and one mechanism for both."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from tests.transforms.case import randomise
from vi_flows.distributions import ConditionalImageDensity, ImageDensity
from vi_flows.distributions.image_checks import check_samples
from vi_flows.distributions.image_config import build_conditional_density, build_image_density, image_config
from vi_flows.flows.image import IMAGE_FLOWS
from vi_flows.transforms import Chain, ConditionalChain, ConditionalCheckpointed, Scaling
from vi_flows.transforms.image.reshaped import ConditionalReshaped
from vi_flows.transforms.vector.diagonal import DiagonalFamily
from vi_flows.transforms.vector.parametric import ConditionalParametric

MAF = image_config("maf", num_layers=2, hidden_dims=(12,), activation="tanh")
GLOW = image_config("glow", num_levels=1, num_steps=1, width=4)
BOTH = pytest.mark.parametrize("config", [MAF, GLOW, image_config("glow", num_levels=1, num_steps=1, pixel_spline=4)])


def made(config, shape=(2, 2, 2), context_dim=3):
    torch.manual_seed(0)
    density = build_conditional_density(config, shape, context_dim, 4)
    return randomise(density, 0.4).double().eval()


def images_and_contexts(shape=(2, 2, 2), number=5):
    torch.manual_seed(1)
    return torch.randint(0, 4, (number, *shape)), torch.randn(number, 3, dtype=torch.float64)


@BOTH
def test_a_batch_of_contexts_is_each_of_them(config):
    density = made(config)
    images, contexts = images_and_contexts()
    logits = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    together = density.condition(contexts).logit_distribution().log_prob(logits)
    apart = [density.condition(c).logit_distribution().log_prob(x) for c, x in zip(contexts, logits, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))
    assert (
        len({round(v, 6) for v in density.condition(contexts).logit_distribution().log_prob(logits[0]).tolist()}) == 5
    )
    every = density.condition(contexts[:, None]).logit_distribution().log_prob(logits)
    assert every.shape == (5, 5)
    torch.testing.assert_close(every.diagonal(), together)
    assert density.condition(contexts).log_prob(images, 2).shape == (5,)


@pytest.mark.parametrize("config", [MAF, image_config("maf", num_layers=1, hidden_dims=(6,), pixel_spline=5)])
def test_densities_given_a_context_integrate_to_one(config):
    density = made(config, (1, 1, 2))
    line = torch.linspace(-24, 24, 961, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2)
    for context in torch.eye(3, dtype=torch.float64):
        values = density.condition(context).logit_distribution().log_prob(grid).exp()
        assert values.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("base", ["normal", "logistic"])
def test_the_base_given_a_context_by_hand(base):
    """``μ = W c + a`` and ``ρ = 2 tanh((V c + b)/2)``, below a flow that doubles."""
    double = Scaling((1, 1, 1))
    with torch.no_grad():
        double.log_scale.fill_(math.log(2.0))
    below = ConditionalParametric(DiagonalFamily(1), 2)
    flow = ConditionalChain([ConditionalReshaped(below, (1,)), double])
    density = ConditionalImageDensity(flow, (1, 1, 1), 2, base=base).double()
    with torch.no_grad():
        below.map.weight.copy_(torch.tensor([[0.5, -1.0], [0.8, 60.0]]))
        below.map.bias.copy_(torch.tensor([0.25, 0.0]))
    for context, loc, log_scale in (([1.0, 0.0], 0.75, 2 * math.tanh(0.4)), ([0.0, 1.0], -0.75, 2.0)):
        given = density.condition(torch.tensor(context, dtype=torch.float64))
        x = torch.tensor(1.3, dtype=torch.float64).reshape(1, 1, 1)
        for temperature in (1.0, 0.25):
            family = {"normal": dist.Normal, "logistic": dist.Logistic}[base](loc, temperature * math.exp(log_scale))
            expected = family.log_prob(x.flatten() / 2) - math.log(2.0)
            assert given.logit_distribution(temperature).log_prob(x).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", IMAGE_FLOWS)
def test_every_flow_is_told_the_context_at_every_entry(name):
    """Each latent's derivative by the context, and a gradient of every parameter, in float64."""
    sizes = {"nice": {"hidden_dims": (8,)}, "maf": {"hidden_dims": (70,)}}.get(name, {"num_levels": 1, "width": 4})
    density = build_conditional_density(image_config(name, **sizes), (1, 8, 8), 3).double().eval()
    randomise(density, 0.1)
    logits, context = torch.randn(1, 8, 8, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[0]
    moved = torch.autograd.functional.jacobian(lambda c: density.flow.condition(c).inverse_and_ladj(logits)[0], context)
    assert (moved != 0).all()
    density.condition(context).log_prob(torch.randint(0, 256, (2, 1, 8, 8))).sum().backward()
    assert all(p.grad is not None for p in density.parameters())


def test_it_starts_alike_for_all_contexts():
    torch.manual_seed(0)
    plain = build_image_density(GLOW, (1, 4, 4)).eval()
    torch.manual_seed(0)
    density = build_conditional_density(GLOW, (1, 4, 4), 3).eval()
    images, logits = torch.randint(0, 256, (3, 1, 4, 4)), torch.randn(3, 1, 4, 4)
    expected = plain.logit_distribution().log_prob(logits)
    torch.testing.assert_close(density.condition(torch.eye(3)).logit_distribution().log_prob(logits), expected)
    assert torch.equal(density.condition(torch.eye(3)).decode(plain.encode(images)), images.to(torch.uint8))


@BOTH
def test_what_is_decoded_and_drawn_is_of_its_context(config):
    density = made(config)
    images, contexts = images_and_contexts()
    given = density.condition(contexts)
    assert torch.equal(given.decode(given.encode(images)), images.to(torch.uint8))
    assert (density.condition(contexts.flip(0)).encode(images) != given.encode(images)).any()
    assert given.sample(3).shape == (3, 5, 2, 2, 2)
    distribution = given.logit_distribution()
    drawn = distribution.sample((4,))
    torch.testing.assert_close(
        distribution.log_prob(drawn), density.condition(contexts).logit_distribution().log_prob(drawn.clone())
    )
    check = check_samples(given, 3)
    assert (check.num_samples, check.finite_images) == (15, 1.0)


@pytest.mark.parametrize("config", [MAF, GLOW])
def test_recomputing_steps_changes_no_gradient(config):
    found = []
    for checkpoint in (False, True):
        density = made(image_config(config.flow.name, checkpoint=checkpoint, **sizes_of(config)))
        images, contexts = images_and_contexts()
        torch.manual_seed(2)
        density.train().condition(contexts).log_prob(images).sum().backward()
        found.append([p.grad for p in density.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def sizes_of(config):
    return {"maf": {"num_layers": 2, "hidden_dims": (12,), "activation": "tanh"}}.get(
        config.flow.name, {"num_levels": 1, "num_steps": 1, "width": 4}
    )


@BOTH
def test_a_batch_starts_the_norms_and_the_mode_is_the_familys(config):
    density = build_conditional_density(config, (1, 4, 4), 3)
    before = {name: value.clone() for name, value in density.state_dict().items()}
    density.eval().condition(torch.eye(3)[torch.arange(64) % 3]).initialize(torch.randint(0, 256, (64, 1, 4, 4)))
    assert any((value != before[name]).any() for name, value in density.state_dict().items())
    assert not any(module.training for module in density.modules())
    assert not any(module.training for module in density.condition(torch.eye(3)).modules())


@pytest.mark.parametrize("wrap", [ConditionalReshaped, lambda family, _: ConditionalCheckpointed(family)])
def test_what_was_drawn_is_scored_anew_after_the_contexts_parameters_changed(wrap):
    family = ConditionalParametric(DiagonalFamily(2), 1).requires_grad_(False)
    bijection = wrap(family, (2,)).condition(torch.ones(1))
    x = torch.randn(1, 1, 2) if bijection.event_dim == 3 else torch.randn(2)
    y = bijection(x)
    assert bijection.log_abs_det_jacobian(x, y).item() == 0.0
    bijection.bijection.params.add_(1.0)
    assert bijection.log_abs_det_jacobian(x, y).item() == pytest.approx(2 * 2 * math.tanh(0.5))


def test_what_only_a_density_given_a_context_has_is_refused_by_name():
    density = made(MAF)
    for name in ("log_prob", "sample", "distribution", "encode", "bits_per_dim", "interpolate"):
        with pytest.raises(AttributeError, match=f"a context of size 3: {name} is that of condition"):
            getattr(density, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        density.nonsense


def test_integer_images_are_scored_in_the_densitys_own_type():
    x, contexts = images_and_contexts()
    given = made(MAF).condition(contexts)
    torch.manual_seed(1)
    expected = given.log_prob(x)
    torch.manual_seed(1)
    assert torch.equal(given.distribution().log_prob(x), expected)


def test_a_density_of_all_contexts_is_itself():
    density = ImageDensity(Chain([Scaling((1, 2, 2))]), (1, 2, 2))
    assert density.condition(torch.zeros(7, 0)) is density


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_conditional_density(GLOW, (1, 4, 4), 0), "context_dim must be at least 1"),
        (lambda: build_conditional_density(MAF, (1, 4, 4), 0), "context_dim must be at least 1, got 0"),
        (lambda: made(GLOW).condition(torch.zeros(4)), r"the context must have shape \(…, 3\), got \(4,\) .one-hot"),
        (
            lambda: made(GLOW).condition(torch.tensor([[0.0, 1.0, 0.0], [0.0, math.nan, math.inf], [0.0, 0.0, 1.0]])),
            "the context has NaN or infinite entries in 1 of its 3 rows",
        ),
        (lambda: made(MAF).condition(torch.tensor(1.0)), r"the context must have shape \(…, 3\), got \(\)"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("name", [GLOW, MAF])
def test_images_go_with_their_contexts(name):
    """Also where nothing is scored, and before PyTorch finds sizes that differ somewhere within."""
    density, x = made(name).condition(torch.eye(3)[:2]), torch.zeros(3, 2, 2, 2)
    for call in (density.log_prob, density.encode, density.decode):
        with pytest.raises(ValueError, match=r"has a batch of \(3,\).* \(2,\): one image is for each"):
            call(x)


def test_settings_are_refused_where_they_are_given():
    family = build_conditional_density(GLOW, (1, 4, 4), 3).flow
    for settings in ({"num_levels": 1}, {"alpha": 2.0}, {"base": "cauchy"}, {"image_shape": (4, 4)}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ConditionalImageDensity(family, **{"image_shape": (1, 4, 4), "context_dim": 3} | settings)


def test_only_a_density_given_a_context_is_called():
    with pytest.raises(TypeError, match=r"what is called is condition\(context\)"):
        made(GLOW)(torch.zeros(1, 1, 4, 4))
