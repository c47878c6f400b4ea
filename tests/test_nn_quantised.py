# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn.qat: the numbers of Format, compiler and golden model; gradients; where values are stored."""

import copy
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from circ_overlay import golden, spec
from circ_overlay.compiler import Linear, compile
from circ_overlay.compiler.quantise import spectral_words
from circ_overlay.fixedpoint import Format, limits
from circ_overlay.nn import (
    BlockCirculantConv2d,
    BlockCirculantGRU,
    BlockCirculantLinear,
    BlockCirculantLSTM,
    BlockCirculantPatchConv2d,
)  # fmt: skip
from circ_overlay.nn.qat import (
    FakeQuantise,
    calibrate,
    fake_quantise,
    fake_quantise_weight,
    freeze_ranges,
    prepare_qat,
    ranges,
    strip_qat,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mixed(nn.Module):
    """A network with each kind of layer, a residual sum, and functions in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = BlockCirculantPatchConv2d(3, 16, 3, 8, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = BlockCirculantConv2d(16, 16, 3, 8, 2, 1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = BlockCirculantConv2d(16, 16, 3, 8, 1, 1), nn.BatchNorm2d(16)
        self.down = nn.Sequential(BlockCirculantConv2d(16, 16, 1, 8, 2), nn.BatchNorm2d(16))
        self.conv3 = BlockCirculantConv2d(16, 16, 3, 4, padding=1)
        self.relu = nn.ReLU()
        self.lstm = BlockCirculantLSTM(16, 16, 8, 2, proj_size=8)
        self.gru = BlockCirculantGRU(8, 8, 4)
        self.hidden, self.head = BlockCirculantLinear(8, 12, 4), BlockCirculantLinear(12, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, 3, 8, 8)
        x = self.relu(self.norm0(self.stem(x)))
        y = functional.dropout(torch.relu(self.norm1(self.conv1(x))), 0.1, self.training)
        y = self.norm2(self.conv2(y))
        y = self.relu(y + self.down(x))
        y = (y + self.relu(self.conv3(y))) * 0.5
        y = functional.adaptive_avg_pool2d(functional.max_pool2d(y, 2), (2, 1)).flatten(2).transpose(1, 2)
        y = self.gru(self.lstm(y)[0])[0][:, -1]
        return self.head(torch.sigmoid(self.hidden(y)))


def mlp(sizes, k, activation=nn.ReLU, norm=True):
    layers = []
    for n, (inn, out) in enumerate(pairwise(sizes)):
        layers.append(BlockCirculantLinear(inn, out, k))
        if n < len(sizes) - 2:
            layers += [nn.BatchNorm1d(out), activation()] if norm else [activation()]
    return nn.Sequential(*layers)


# ---- rounding -------------------------------------------------------------------------------------------
FORMATS = st.builds(Format, st.integers(2, 16), st.integers(-20, 30))


@st.composite
def values_near(draw, fmt):
    """Values on the grid, half-way between, one float beside, anywhere, and beyond the format's ends."""
    low, high = limits(fmt.width)
    n = draw(st.integers(2 * low - 8, 2 * high + 8)) / 2 + draw(st.sampled_from([0, 0, 0.25, 1e-7, -1e-7, 1e-16]))
    x = draw(st.sampled_from([n * fmt.step, np.nextafter(n * fmt.step, np.inf), np.nextafter(n * fmt.step, -np.inf)]))
    return draw(st.one_of(st.just(x), st.floats(-4 * high * fmt.step, 4 * high * fmt.step)))


@settings(max_examples=300, deadline=None)
@given(st.data(), FORMATS, st.sampled_from([torch.float32, torch.float64]))
def test_fake_quantise_is_the_format_bit_for_bit(data, fmt, dtype) -> None:
    x = torch.tensor(data.draw(st.lists(values_near(fmt), min_size=1, max_size=8)), dtype=dtype, requires_grad=True)
    y = fake_quantise(x, fmt)
    integers = fmt.quantise(x.detach().numpy())
    assert y.dtype == dtype
    assert np.array_equal(y.detach().double().numpy(), fmt.value(integers))
    assert torch.equal(fake_quantise(y, fmt), y)
    # The gradient: 1 where the nearest integer is one of the format's, 0 beyond.
    y.backward(torch.full_like(y, 3))
    wide = Format(40, fmt.frac).quantise(x.detach().numpy())
    assert np.array_equal(x.grad.numpy(), np.where(wide == integers, 3, 0))


def test_a_float_just_below_a_half_is_rounded_down() -> None:
    x = torch.tensor([0.5, np.nextafter(np.float32(0.5), np.float32(0)), -0.5, -0.50000006, -1e-30])
    assert fake_quantise(x, Format(8, 0)).tolist() == [1, 0, 0, -1, 0]


def test_no_nan_is_hidden() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert torch.equal(fake_quantise(x, Format(8, 0))[1:], torch.tensor([127.0, -128]))
    assert fake_quantise(x, Format(8, 0))[0].isnan()


SHAPES = st.sampled_from([(1, 1), (3, 2), (2, 3, 3, 2), (2, 1, 1, 5)])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, *spec.BLOCK_SIZES]), st.integers(2, 16), st.integers(0, 99))
def test_weights_are_rounded_in_the_spectrum_by_rows_of_blocks(shape, k, width, seed) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(*shape, k)) * rng.uniform(1e-3, 1e3, (shape[0], *[1] * len(shape)))
    w[-1] *= seed % 7 > 0  # a row of zeros at times
    y = fake_quantise_weight(torch.from_numpy(w), width).numpy()

    def words(w):
        return (spectral_words(w.reshape(shape[0], -1, k)) if k > 1 else w).reshape(shape[0], -1)

    peaks = np.abs(words(w)).max(1, keepdims=True)
    gain = limits(width)[1] / np.where(peaks > 0, peaks, 1)
    expected = np.floor(words(w) * gain + 0.5)
    np.testing.assert_allclose(words(y) * gain, expected, atol=1e-8)
    assert np.abs(expected).max() <= limits(width)[1]
    # Idempotent, and the same integers when it is held in float32.
    again = fake_quantise_weight(torch.from_numpy(y), width).numpy()
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-12 * np.abs(w).max())
    single = fake_quantise_weight(torch.from_numpy(y).float(), width).numpy()
    np.testing.assert_allclose(single, y, rtol=1e-5, atol=1e-6 * np.abs(w).max())


@pytest.mark.parametrize("width", [8, 12, 16])
def test_weights_are_the_compilers_integers(width) -> None:
    rng = np.random.default_rng(width)
    w = rng.normal(size=(3, 2, 16)) * [[[1]], [[0.01]], [[30]]]
    sample = rng.normal(size=(50, 32))
    rounded = fake_quantise_weight(torch.from_numpy(w), width).numpy()
    of_w, of_rounded = (
        compile([Linear(weight=each)], sample, width=width).layers[0].weights for each in (w, rounded)
    )
    assert np.array_equal(of_w, of_rounded)
    gain = limits(width)[1] / np.abs(spectral_words(w)).max((1, 2, 3))
    np.testing.assert_allclose(spectral_words(rounded) * gain[:, None, None, None], of_w, atol=1e-8)


def test_the_weights_gradient_passes() -> None:
    w = torch.randn(2, 3, 8, requires_grad=True)
    g = torch.randn(2, 3, 8)
    fake_quantise_weight(w, 4).backward(g)
    assert torch.equal(w.grad, g)


# ---- against the integer program -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("activation", "width", "tolerance"),
    [(nn.ReLU, 8, 3), (nn.ReLU, 12, 3), (nn.ReLU, 16, 6), (nn.Sigmoid, 8, 2), (nn.Sigmoid, 12, 2), (nn.Tanh, 8, 3),
     (nn.Tanh, 12, 3), (nn.Identity, 8, 3)],
)  # fmt: skip
@pytest.mark.parametrize("norm", [False, True])
def test_forward_is_the_compiled_programs_within_a_few_steps(activation, width, tolerance, norm) -> None:
    torch.manual_seed(0)
    model = mlp([40, 48, 30, 10], 8, activation, norm)
    x = torch.randn(400, 40)
    model(x)  # batch-norm's statistics
    prepared = prepare_qat(model.eval(), width, x)
    plain = strip_qat(prepared)
    program = compile(plain, x.numpy(), width=width)
    found = ranges(prepared)
    names = [name for name, m in model.named_modules() if isinstance(m, BlockCirculantLinear)]
    assert list(found) == ["(input)", *names]
    assert found["(input)"].format.frac == program.input.frac
    assert [found[name].format.frac for name in names] == [layer.out_frac for layer in program.layers]
    expected = golden.run(program, program.input.quantise(x.numpy(), width))
    ours = found[names[-1]].format.quantise(prepared(x).detach().numpy())
    difference = np.abs(ours - expected)
    assert difference.max() <= tolerance
    assert difference.mean() < 0.25 * tolerance


def test_bytes_are_exact_above_8_bits() -> None:
    model = mlp([16, 8, 4], 4)
    sample = np.random.default_rng(0).integers(0, 256, (64, 16)).astype(np.uint8)
    assert "(input)" not in ranges(prepare_qat(model, 12, sample))
    assert "(input)" not in ranges(prepare_qat(model, 12, torch.from_numpy(sample)))
    assert ranges(prepare_qat(model, 8, sample))["(input)"].format == Format.for_range(8, 255)
    assert ranges(prepare_qat(model, 12, sample / 255))["(input)"].format.frac == 10
    assert "(input)" not in ranges(prepare_qat(model, 12, sample / 255, quantise_input=False))


def test_training_at_few_bits_gains_what_rounding_lost() -> None:
    """4 bits, so that there is something to gain: the integer program loses nothing at 8 on so small a task."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, labels = torch.tensor(images, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)

    def train(net, epochs, rate):
        optimiser = torch.optim.Adam(net.parameters(), rate)
        net.train()
        for _ in range(epochs):
            for batch in torch.randperm(1200, generator=generator).split(100):
                optimiser.zero_grad()
                functional.cross_entropy(net(x[batch]), labels[batch]).backward()
                optimiser.step()
        return net.eval()

    def score(net):
        return (net(x[1200:]).argmax(1) == labels[1200:]).float().mean().item()

    torch.manual_seed(1)
    model = train(mlp([64, 32, 32, 10], 8), 20, 1e-2)
    before = prepare_qat(model, 4, x[:300])
    after = train(prepare_qat(model, 4, x[:300]), 20, 1e-2)
    assert score(model) > 0.88
    assert score(after) > score(before) + 0.03
    assert all(p.grad is not None and p.grad.isfinite().all() for p in after.parameters())
    assert isinstance(after.model[1], nn.BatchNorm1d)
    assert not torch.equal(after.model[1].running_mean, model[1].running_mean)


# ---- where values are stored, and the way there and back ---------------------------------------------------
def test_every_stored_value_has_a_range_by_name() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    prepared = prepare_qat(Mixed(), 8, x)
    found = ranges(prepared)
    assert set(found) == {
        "(input)", "stem", "conv1", "conv2", "down.0", "conv3", "add_1", "adaptive_avg_pool2d", "lstm.h.0", "lstm.h.1",
        "lstm.c.0", "lstm.c.1", "gru.h.0", "hidden", "head",
    }  # fmt: skip
    assert found["gru.h.0"].format == found["hidden"].format == Format(8, 7)
    assert found["hidden"].largest is None
    for name in ("stem", "conv2", "down.0"):
        assert found[name].format == Format.for_range(8, 1.125 * found[name].largest)
    # The values are what the ranges say: after the activation, and after the sum.
    seen = {}
    for name in ("stem", "conv2", "down.0", "add_1"):
        key = name.replace(".", "/")
        prepared.quantisers[key].register_forward_hook(lambda m, a, y, name=name: seen.update({name: (a[0], y)}))
    with torch.no_grad():
        prepared.eval()(x)
    assert seen["stem"][0].min() == 0 == seen["down.0"][0].min()
    assert seen["conv2"][0].min() < 0
    for name, (before, after) in seen.items():
        assert before.abs().max() == pytest.approx(found[name].largest)
        assert torch.equal(after, fake_quantise(before, found[name].format))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.a(x), ["a"]),
        (lambda m, x: torch.tanh(m.norm(m.a(x / 255)) * 2 + 1), ["a*"]),
        (lambda m, x: m.b(m.drop(m.relu(m.a(x)))), ["a", "b"]),
        (lambda m, x: m.relu(m.a(x).unflatten(1, (2, 4)).flatten(1)), ["a"]),
        (lambda m, x: functional.gelu(m.a(x)), ["a"]),  # not the core's: left alone
        (lambda m, x: torch.sigmoid(m.b(m.a(x)) + x), ["a", "b*"]),
        (lambda m, x: m.relu(m.a(x) + m.b(x)), ["a", "b"]),  # the later one takes in the sum
        (lambda m, x: m.relu(torch.add(m.b(x), m.a(x))), ["a", "b"]),
        (lambda m, x: m.relu(m.a(x)) + m.relu(m.b(x)), ["a", "b", "add"]),
        (lambda m, x: torch.cat([m.a(x), m.b(x)], 1), ["a", "b", "cat"]),
        (lambda m, x: m.a(x) + m.scale, ["a"]),
        (lambda m, x: (lambda y: m.b(y) + y.mean())(m.a(x)), ["a", "b", "mean"]),
        (lambda m, x: m.relu(m.relu(m.a(x))), ["a"]),
    ],
)
def test_where_values_are_stored(forward, expected) -> None:
    class Any(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = BlockCirculantLinear(8, 8, 4), BlockCirculantLinear(8, 8, 4)
            self.norm, self.relu, self.drop = nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return forward(self, x)

    torch.manual_seed(0)
    prepared = prepare_qat(Any(), 8, torch.randn(30, 8))
    found = {name: r.largest is None for name, r in ranges(prepared).items()}
    assert found.pop("(input)") is False
    assert sorted(name + "*" * fixed for name, fixed in found.items()) == sorted(expected)
    # Whatever was not rounded, the forward pass is the network's.
    x = torch.randn(4, 8)
    wide = prepare_qat(strip_qat(prepared).eval(), 16, torch.randn(500, 8))
    torch.testing.assert_close(wide(x), strip_qat(wide)(x), rtol=0, atol=5e-3)


def test_round_trip() -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(16, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(model, 8, x).train()
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    optimiser = torch.optim.SGD(prepared.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        prepared(x).square().sum().backward()
        optimiser.step()
    assert all(p.grad is not None for p in prepared.parameters())
    plain = strip_qat(prepared)
    assert type(plain) is Mixed
    assert plain.training
    assert list(plain.state_dict()) == list(before)
    changed = {name for name, value in plain.named_parameters() if not torch.equal(value, before[name])}
    assert changed >= {name for name in before if name.endswith("weight") and before[name].ndim > 1}
    # Again prepared, with its ranges, it is the same; so is a copy.
    again = prepare_qat(plain, 8)
    again.load_state_dict(prepared.state_dict())
    y = prepared.eval()(x)
    assert torch.equal(again.eval()(x), y)
    assert torch.equal(copy.deepcopy(prepared)(x), y)
    # 16 bits are nearly exact.
    torch.testing.assert_close(prepare_qat(plain.eval(), 16, x)(x), plain(x), rtol=0, atol=1e-3)


def test_a_layer_that_is_used_twice_has_two_ranges() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = BlockCirculantLinear(8, 8, 4), nn.ReLU()

        def forward(self, x):
            y = self.relu(self.layer(x))
            return self.relu(self.layer(3 * y)) + y

    found = ranges(prepare_qat(Twice(), 10, torch.randn(20, 8)))
    assert list(found) == ["(input)", "layer", "relu_1", "add"]
    assert found["layer"] != found["relu_1"]


def test_networks_that_place_their_quantisers() -> None:
    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = BlockCirculantLinear(8, 8, 4), BlockCirculantLinear(8, 4, 4)
            self.store = FakeQuantise()

        def forward(self, x):
            y = self.one(x) if x.sum() > 0 else self.one(-x)  # no graph without the data
            return self.two(self.store(torch.relu(y)))

    model, x = Wild(), torch.rand(10, 8)
    prepared = prepare_qat(model, 10, x)
    assert list(ranges(prepared)) == ["store"]
    assert ranges(prepared)["store"].format.width == 10
    assert prepared(x).shape == (10, 4)
    assert type(strip_qat(prepared).store) is nn.Identity
    model.store = nn.Identity()
    with pytest.raises(ValueError, match=r"Wild cannot be traced .*place circ_overlay\.nn\.qat\.FakeQuantise"):
        prepare_qat(model)


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_recurrent_layers_round_weights_and_states(build) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(build(6, 8, 4, 2))
    lengths = [5, 4, 2]
    x = torch.randn(3, 5, 6)
    prepared = prepare_qat(model, 8, quantise_input=False).train()
    y, state = prepared(x)
    assert torch.equal(y, fake_quantise(y, Format(8, 7)))
    assert torch.equal((state[1] if build is BlockCirculantGRU else state[0][1]), y[:, -1])
    (y.sum()).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    assert prepared(packed)[0].data.shape == (11, 8)
    wide = prepare_qat(model, 16, quantise_input=False).train()
    wide(x)
    torch.testing.assert_close(wide.eval()(x)[0], model(x)[0], rtol=0, atol=2e-3)
    found = ranges(wide)
    assert found["0.h.1"].format == Format(16, 15)
    if build is BlockCirculantLSTM:
        torch.manual_seed(0)
        reference = model(x)[1][1].abs().amax((1, 2))  # of the last step: the sequence's is no smaller
        assert found["0.c.1"].largest >= reference[1].item() * 0.99
    torch.testing.assert_close(strip_qat(wide)(x)[0], model(x)[0], rtol=0, atol=0)


# ---- ranges ------------------------------------------------------------------------------------------------
def test_a_range_follows_the_batches_until_it_is_frozen() -> None:
    q = FakeQuantise(8, momentum=0.25)
    q(torch.tensor([1.0, -4.0]))
    assert q.largest == 4
    q(torch.tensor([8.0]))
    assert q.largest == 5
    assert q.format == Format.for_range(8, 1.125 * 5)
    q.eval()(torch.tensor([100.0]))
    assert q.largest == 5
    torch.manual_seed(0)
    model = prepare_qat(mlp([8, 32, 4], 4), 8, torch.rand(10, 8)).train()
    held = ranges(model)
    freeze_ranges(model)
    model(100 * torch.rand(10, 8))
    assert ranges(model) == held
    freeze_ranges(model, False)
    model(100 * torch.rand(10, 8))
    assert ranges(model)["(input)"].largest > held["(input)"].largest
    held = ranges(model)
    with pytest.raises(ValueError, match=r"the sample brings only zeros to \(input\).*: give a sample of typical"):
        calibrate(model, torch.zeros(4, 8))
    assert ranges(model) == held
    calibrate(model, torch.rand(50, 8).clamp(0, 0.25))
    assert ranges(model)["(input)"].largest == 0.25
    assert model.training


def test_what_is_no_number_or_nothing_passes() -> None:
    q = FakeQuantise(8)
    indices = torch.arange(300)
    assert q(indices) is indices
    assert q(torch.zeros(0, 4)).shape == (0, 4)
    assert torch.equal(q(torch.zeros(3)), torch.zeros(3))
    assert repr(q) == "FakeQuantise(width=8)"
    assert "frac=7" in repr(FakeQuantise(8, 7))


def test_messages() -> None:
    model = mlp([8, 8, 4], 4)
    with pytest.raises(ValueError, match=r"width is 17; allowed are 8 to 16 bits"):
        prepare_qat(model, 17)
    with pytest.raises(ValueError, match=r"Linear has no block-circulant layer; compress\(\) makes one"):
        prepare_qat(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"a BlockCirculantLinear alone was given: put it into torch\.nn\.Sequential"):
        prepare_qat(model[0])
    with pytest.raises(ValueError, match=r"layer '0' has block size 5; the core executes 1 and \(4, 8"):
        prepare_qat(nn.Sequential(BlockCirculantLinear(5, 5, 5)))
    with pytest.raises(ValueError, match=r"blocks of 2; allowed are 1 and \(4"):
        fake_quantise_weight(torch.ones(1, 1, 2), 8)
    prepared = prepare_qat(model, 8)
    with pytest.raises(ValueError, match=r"layer 'model\.0' is prepared already: give the plain network"):
        prepare_qat(prepared, 8)
    with pytest.raises(ValueError, match=r"'\(input\)': this FakeQuantise has seen no values.*train a batch"):
        ranges(prepared)
    with pytest.raises(ValueError, match=r"has no width: give it one"):
        FakeQuantise()(torch.ones(3))
    with pytest.raises(ValueError, match=r"x has dtype torch\.float16 and the format 8 bits; allowed are float32"):
        fake_quantise(torch.ones(3, dtype=torch.float16), Format(8, 0))
    with pytest.raises(TypeError, match=r"argument 'input_?1?' is missing"):
        prepared()

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = BlockCirculantLinear(8, 8, 4), BlockCirculantLinear(8, 8, 4)

        def forward(self, x):
            return self.one(x) if self.training else self.two(x)

    with pytest.raises(ValueError, match=r"Moody stores other values in training than in evaluation: \['one', 'two'\]"):
        prepare_qat(Moody())
