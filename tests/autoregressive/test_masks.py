"""What sees what: Jacobians by autograd, in float64 at random parameters."""

import pytest
import torch
import torch.nn.functional as F

from tests.autoregressive.cases import BINARY, IMAGE, MODELS, build, jacobian, past
from vi_flows.autoregressive import MADE, Categorical, DiagonalPixelRNN, GatedPixelCNN, PixelCNN, RowPixelRNN, WaveNet
from vi_flows.autoregressive.config import PIXEL_MODELS, PixelConfig, pixel_config
from vi_flows.nn import CausalConv1d, DiagonalBiLSTM, MaskedConv2d, MaskedLinear
from vi_flows.nn.autoregressive_mlp import AutoregressiveMLP
from vi_flows.nn.diagonal_lstm import diagonals
from vi_flows.nn.masked import spread_degrees
from vi_flows.settings import SettingsError


def random_parameters(model):
    torch.manual_seed(1)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_().mul_(0.3)
    return model


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("wavenet")])
def test_the_future_is_exactly_zero_and_the_whole_past_is_reached(name):
    model = build(name)
    seen, before = jacobian(model), past(model)
    assert (seen[~before] == 0).all()
    assert (seen[before] > 0).all()


def test_degrees_of_a_layer_narrower_than_the_input_reach_to_its_end():
    """Counting up from 1 instead, 5 units would hide the entries 6 to 11 from every hidden unit."""
    assert spread_degrees(5, 12).tolist() == [1, 4, 6, 8, 11]
    assert spread_degrees(7, 5).tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert spread_degrees(3, 1).tolist() == [1, 1, 1]
    for model in (MADE((12,), BINARY, (5,), "tanh"), MADE((12,), BINARY, (5, 30, 7), "tanh")):
        seen = jacobian(random_parameters(model), 3)
        assert (seen[-1, :-1] > 0).all()
        assert (seen[~past(model)] == 0).all()
        assert [int((row > 0).sum()) for row in seen[[1, 5, 8]]] == [1, 4, 8]
    network = random_parameters(AutoregressiveMLP(12, 1, (5,)))
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[:, -1, 0].sum(), x)
    assert (gradient[:, :-1] != 0).all()
    assert (gradient[:, -1] == 0).all()


def test_drawn_orders_differ_and_stay_autoregressive():
    model = MADE(IMAGE, BINARY, (64,), direct=True)
    orders = set()
    for seed in range(5):
        model.resample_masks(seed)
        random_parameters(model)
        orders.add(tuple(model.order.tolist()))
        seen, before = jacobian(model, 2), past(model)
        assert (seen[~before] == 0).all()
        assert (seen[before] > 0).all()
    assert len(orders) == 5
    model.resample_masks(0)
    first = [layer.mask.clone() for layer in model._layers()]
    model.resample_masks(1)
    assert any((a != layer.mask).any() for a, layer in zip(first, model._layers(), strict=True))
    model.resample_masks(0)
    assert all((a == layer.mask).all() for a, layer in zip(first, model._layers(), strict=True))


def test_the_gated_model_sees_its_whole_window_and_the_plain_one_has_a_blind_spot():
    shape = (1, 6, 6)
    gated = random_parameters(GatedPixelCNN(shape, BINARY, 6, 4, first_kernel=3))
    seen, before = jacobian(gated) > 0, past(gated)
    assert torch.equal(seen, before)
    plain = random_parameters(PixelCNN(shape, BINARY, 8, 4, first_kernel=3))
    seen, before = jacobian(plain) > 0, past(plain)
    assert not seen[~before].any()
    # A step right of a kernel's middle costs a row: (r, c) sees (r−a, c+b) only if b ≤ a.
    row, column = torch.arange(36) // 6, torch.arange(36) % 6
    up, right = row[:, None] - row, column - column[:, None]
    assert torch.equal(seen, before & (right <= up))


def test_the_diagonal_model_sees_all_pixels_before_and_the_row_model_a_triangle():
    """With one layer and a first kernel that sees the left neighbour and three pixels above alone."""
    shape = (1, 4, 5)
    diagonal = random_parameters(DiagonalPixelRNN(shape, BINARY, 8, 1, first_kernel=3))
    assert torch.equal(jacobian(diagonal) > 0, past(diagonal))
    row_model = random_parameters(RowPixelRNN((1, 4, 9), BINARY, 8, 1, first_kernel=3))
    row, column = torch.arange(36) // 9, torch.arange(36) % 9
    up, right = row[:, None] - row, column - column[:, None]
    # A row costs a column at either side; the input's kernels add one up and right, and two to the left.
    before = past(row_model)
    expected = before & ((up == 0) & (right >= -2) | (up > 0) & (right <= up) & (right >= -up - 2))
    seen = jacobian(row_model, 20) > 0
    assert not (seen & ~expected).any()
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (1, 4), (4, 1), (1, 1)])
def test_the_diagonal_lstm_is_its_recurrence(shape):
    """Pixel by pixel, from the paper's equation 3, in both directions."""
    torch.manual_seed(0)
    layer = random_parameters(DiagonalBiLSTM(2, 3, 1, 2))
    x, context = torch.randn(2, 2, *shape, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    expected = torch.zeros(2, 3, *shape, dtype=torch.float64)
    for direction, columns in enumerate([range(shape[1]), range(shape[1] - 1, -1, -1)]):
        gates = layer.input_to_state[direction](x, context)
        zero, states, step = torch.zeros(2, 3, dtype=torch.float64), {}, (1, -1)[direction]
        for r in range(shape[0]):
            for c in columns:
                (h_left, c_left), (h_above, _) = (states.get(p, (zero, zero)) for p in ((r, c - step), (r - 1, c)))
                u_left, u_above = layer.state_to_state[direction]
                i, f, o, g = (gates[r, c] + h_left @ u_left + h_above @ u_above).chunk(4, -1)
                cell = f.sigmoid() * c_left + i.sigmoid() * g.tanh()
                states[r, c] = o.sigmoid() * cell.tanh(), cell
        for (r, c), (h, _) in states.items():
            down = r + direction
            if down < shape[0]:
                expected[:, :, down, c] += h
    assert torch.allclose(layer(x, context), expected, atol=1e-12)


def test_the_diagonals_of_an_image_are_made_once():
    found = diagonals(2, 3, torch.device("cpu"))
    assert found.order.tolist() == [0, 1, 3, 2, 4, 5]
    assert found.order[found.places].tolist() == list(range(6))
    assert found.ranges == [(0, 1), (0, 2), (0, 2), (1, 2)]
    assert diagonals(2, 3, torch.device("cpu")) is found


def test_the_forget_gates_start_open():
    bias = DiagonalBiLSTM(4, 4, 2, 0).input_to_state[0].conv.bias.reshape(2, 4, 2)
    assert (bias[:, 1] == 1).all()
    assert (bias[:, [0, 2, 3]].abs() < 1).all()


def test_a_gated_window_ends_where_the_docstring_says():
    model = random_parameters(GatedPixelCNN((1, 6, 6), BINARY, 6, 1, first_kernel=3))
    row, column = torch.arange(36) // 6, torch.arange(36) % 6
    up, aside = row[:, None] - row, (column - column[:, None]).abs()
    assert torch.equal(jacobian(model) > 0, past(model) & (up <= 2) & (aside <= 2))


@pytest.mark.parametrize(("kernel_size", "dilations", "field"), [(2, (1, 2, 4), 9), (3, (1, 3), 11), (2, (1,), 3)])
def test_wavenet_sees_exactly_its_receptive_field(kernel_size, dilations, field):
    model = random_parameters(WaveNet(16, Categorical(5), 6, 6, dilations, kernel_size))
    assert model.receptive_field == field
    age = torch.arange(16)[:, None] - torch.arange(16)
    assert torch.equal(jacobian(model) > 0, (age >= 1) & (age <= field))


def test_a_masked_weight_that_is_not_finite_does_not_leak():
    layer = MaskedLinear(2, 1)
    layer.set_mask(torch.tensor([[True, False]]))
    with torch.no_grad():
        layer.weight[0, 1] = float("inf")
    assert layer(torch.zeros(2)).isfinite().all()
    with pytest.raises(ValueError, match="shape"):
        layer.set_mask(torch.ones(2, 1, dtype=torch.bool))


def test_channel_masks_literally():
    at_pixel = {t: MaskedConv2d(3, 6, (3, 3), t, 3).mask[:, :, 1, 1].int().tolist() for t in "AB"}
    assert at_pixel["A"] == [[0, 0, 0]] * 2 + [[1, 0, 0]] * 2 + [[1, 1, 0]] * 2
    assert at_pixel["B"] == [[1, 0, 0]] * 2 + [[1, 1, 0]] * 2 + [[1, 1, 1]] * 2
    spatial = MaskedConv2d(1, 1, (3, 3), "A").mask[0, 0].int().tolist()
    assert spatial == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    rows = {t: MaskedConv2d(1, 1, (3, 3), t, region="rows").mask[0, 0].int().tolist() for t in "AB"}
    assert rows == {"A": [[1, 1, 1], [0, 0, 0], [0, 0, 0]], "B": [[1, 1, 1], [1, 1, 1], [0, 0, 0]]}


@pytest.mark.parametrize(("kernel", "mask_type", "region", "box"), [
    ((3, 5), "A", "raster", (2, 5)), ((3, 5), "A", "rows", (1, 5)), ((3, 5), "B", "rows", (2, 5)),
    ((1, 5), "A", "raster", (1, 2)), ((1, 5), "B", "raster", (1, 3)), ((1, 1), "B", "raster", (1, 1)),
])  # fmt: skip
def test_only_the_live_part_of_a_kernel_is_computed_and_the_output_is_that_of_the_whole(kernel, mask_type, region, box):
    torch.manual_seed(0)
    conv = MaskedConv2d(1, 4, kernel, mask_type, region=region).double()
    assert conv.live_weight().shape[2:] == box
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    whole = F.conv2d(x, conv.weight * conv.mask, conv.bias, padding=(kernel[0] // 2, kernel[1] // 2))
    assert torch.allclose(conv(x), whole, atol=1e-12)


def test_causal_convolution_by_its_formula():
    torch.manual_seed(0)
    conv, x = CausalConv1d(1, 1, 3, 2).double(), torch.randn(1, 1, 9, dtype=torch.float64)
    w, b = conv.weight.flatten(), conv.bias
    at = lambda t: x[0, 0, t] if t >= 0 else 0.0  # noqa: E731
    expected = torch.stack([(b + sum(w[i] * at(t - (2 - i) * 2) for i in range(3)))[0] for t in range(9)])
    assert torch.allclose(conv(x)[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedConv2d(1, 1, (2, 3), "A"), "odd"),
        (lambda: MaskedConv2d(1, 1, (3, 3), "C"), "mask type"),
        (lambda: MaskedConv2d(1, 1, (3, 3), "A", region="columns"), "region"),
        (lambda: MaskedConv2d(3, 4, (3, 3), "A", 3), "equal groups"),
        (lambda: PixelCNN((9,), BINARY), r"\(C, H, W\)"),
        (lambda: PixelCNN((3, 3, 3), BINARY, 9), "twice the 3 channels"),
        (lambda: GatedPixelCNN((3, 3, 3), BINARY, 8), "multiple of the 3 channels"),
        (lambda: DiagonalPixelRNN((3, 3, 3), BINARY, 9), "twice the 3 channels"),
        (lambda: RowPixelRNN((1, 3, 3), BINARY, num_layers=-1), "num_layers"),
        (lambda: MADE((4,), BINARY, ()), "direct=True"),
        (lambda: MADE((4,), BINARY, (0,)), "hidden_dims"),
        (lambda: MADE((4,), BINARY, activation="step"), "unknown activation"),
        (lambda: MADE((), BINARY), "event_shape"),
        (lambda: WaveNet(4, BINARY, dilations=()), "needs layers"),
        (lambda: Categorical(1), "num_bins"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", [name for name in PIXEL_MODELS if name != "made"])
def test_a_first_kernel_of_one_is_for_decoders_alone(name):
    """Type A leaves out the pixel itself, which is all that a kernel of one sees."""
    alone = PIXEL_MODELS[name](width=8, first_kernel=1)
    model = random_parameters(alone.build((1, 4, 4), BINARY))
    assert (jacobian(model) == 0).all()
    with pytest.raises(SettingsError, match=f"first_kernel must be at least 3 in a {name} of its own"):
        PixelConfig(alone)
    seeing = pixel_config(name, width=8, first_kernel=3).model
    assert (jacobian(random_parameters(seeing.build((1, 4, 4), BINARY))) > 0).any()
