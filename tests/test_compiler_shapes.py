# SPDX-License-Identifier: BSD-3-Clause
"""Modules that are legal and odd: what they compute is what their program computes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the modules are PyTorch's")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from circ_overlay import golden  # noqa: E402
from circ_overlay.compiler import CompileError, compile  # noqa: E402
from circ_overlay.compiler.quantise import snr_db  # noqa: E402
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear  # noqa: E402

C = nn.Conv2d
L = nn.Linear


class Net(nn.Module):
    def __init__(self, function, *layers):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x):
        return self.function(x, *self.layers)


def check(module, shape, threshold=40.0, count=40, **options):
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, -1.5, 1.5)
    x = torch.randn(count, *shape)
    program = compile(module, x.numpy(), **options)
    with torch.no_grad():
        expected = module.eval()(x.clone()).double().numpy()
    got = program.output.value(golden.run(program, program.input.quantise(x.numpy(), program.width)))
    assert snr_db(expected.reshape(got.shape), got) > threshold
    return program


def inplace(x, a, b):
    y = a(x)
    functional.relu(y, inplace=True)
    z = b(y)
    z += y
    return z


def twice(x, a, b):
    y = a(x)
    return b(y).relu() + torch.sigmoid(y) * y


ODD = {
    "shared module": (lambda x, a: a(a(x).relu()), [C(4, 4, 3, padding=1)], (4, 6, 6)),
    "residual from the input": (lambda x, a: a(x) + x, [C(4, 4, 3, padding=1)], (4, 6, 6)),
    "scaled input used twice": (lambda x, a: a(x * 0.25) + x, [C(4, 4, 3, padding=1)], (4, 6, 6)),
    "input used twice, later scaled": (lambda x, a: a(x) + x / 4, [C(4, 4, 3, padding=1)], (4, 6, 6)),
    "negative scale before a maximum": (lambda x, a: a(functional.max_pool2d(x * -1, 3, 2)), [C(4, 4, 1)], (4, 7, 7)),
    "output used twice": (twice, [C(4, 8, 3, padding=1), C(8, 8, 1)], (4, 6, 6)),
    "changed in place": (inplace, [C(4, 8, 3, padding=1), C(8, 8, 1)], (4, 6, 6)),
    "bn behind a pooling": (
        lambda x, a, n: n(functional.max_pool2d(a(x), 2)), [C(4, 6, 3), nn.BatchNorm2d(6)], (4, 8, 8)),
    "relu before bn": (lambda x, a, n: n(a(x).relu()), [C(4, 6, 3), nn.BatchNorm2d(6)], (4, 8, 8)),
    "bn alone": (lambda x, n: n(x), [nn.BatchNorm2d(5)], (5, 3, 4)),
    "pooling that does not divide": (lambda x, a: functional.max_pool2d(a(x).relu(), 3), [C(3, 5, 2)], (3, 9, 12)),
    "uneven pooling of a sum": (lambda x, a: functional.max_pool2d(a(x) + x, 2), [C(3, 3, 1)], (3, 7, 5)),
    "ceil_mode that changes nothing": (
        lambda x, a: functional.max_pool2d(a(x), 2, ceil_mode=True), [C(3, 5, 2)], (3, 9, 9)),
    "one row": (lambda x, a: a(x).relu(), [C(3, 5, (1, 4), padding=(0, 2))], (3, 1, 17)),
    "one channel": (lambda x, a, b: b(a(x).relu()), [C(1, 1, 3), C(1, 1, 1)], (1, 5, 6)),
    "flattened odd channels": (lambda x, a, b: b(a(x).flatten(1)), [C(2, 5, 3), L(5 * 4 * 3, 7)], (2, 6, 5)),
    "flattened input image": (
        lambda x, a, b: b(torch.relu(a(x.flatten(1)))), [BlockCirculantLinear(75, 16, 8), L(16, 3)], (3, 5, 5)),
    "activation behind flattening": (
        lambda x, a, b: b(torch.tanh(a(x).relu().flatten(1))), [C(2, 4, 3), L(48, 5)], (2, 6, 5)),
    "blocks on a channels-last flattening": (
        lambda x, a, b: b(a(x).permute(0, 2, 3, 1).flatten(1)),
        [C(2, 3, 3), BlockCirculantLinear(36, 16, 8)], (2, 6, 5)),
    "difference": (lambda x, a, b: (a(x) - b(x)).relu(), [C(3, 4, 1), C(3, 4, 3, padding=1)], (3, 5, 5)),
    "difference from the input": (lambda x, a: x - a(x), [C(3, 3, 1)], (3, 5, 5)),
    "one minus": (lambda x, a: 1 - torch.sigmoid(a(x)), [C(3, 4, 1)], (3, 5, 5)),
    "a map and itself": (lambda x, a: (lambda y: y * y + (y + y))(a(x)), [C(3, 4, 1)], (3, 5, 5)),
    "unused branch": (lambda x, a, b: (b(x), a(x))[1], [C(3, 4, 1), C(3, 9, 3)], (3, 5, 5)),
    "same padding": (lambda x, a: a(x), [C(3, 4, (2, 4), padding="same")], (3, 5, 6)),
    "padding of its own": (lambda x, a: a(functional.pad(x, (0, 1, 2, 0))), [C(3, 4, 3)], (3, 5, 6)),
    "output flattened": (lambda x, a: a(x).relu().flatten(1), [C(3, 5, 3)], (3, 5, 6)),
    "ragged blocks": (lambda x, a: a(x).relu(), [BlockCirculantConv2d(6, 10, 3, 8)], (6, 5, 5)),
    "view with the batch's size": (
        lambda x, a, b: b(a(x).relu().view(x.size(0), -1)), [C(2, 5, 3), L(60, 7)], (2, 6, 5)),
    "reshape with the shape's first": (
        lambda x, a, b: b(a(x).reshape((x.shape[0], 60)).relu()), [C(2, 5, 3), L(60, 7)], (2, 6, 5)),
    "size of a later map": (
        lambda x, a, b: (lambda y: b(y.view(y.size()[0], -1)))(a(x).relu()), [C(2, 5, 3), L(60, 7)], (2, 6, 5)),
    "negative": (lambda x, a: torch.relu(-a(x)) - torch.neg(a(x)), [C(3, 4, 1)], (3, 5, 5)),
    "vector made an image": (
        lambda x, a, b: b(a(x.flatten(1)).relu()).view(-1, 3, 5, 4), [L(60, 8), L(8, 60)], (3, 5, 4)),
    "unflattened": (lambda x, a: a(x.flatten(1)).unflatten(1, (1, 5, -1)), [L(60, 20)], (3, 5, 4)),
    "Unflatten": (lambda x, a, u: u(a(x.flatten(1))), [L(60, 60), nn.Unflatten(1, (15, 4))], (3, 5, 4)),
    "vectors made images": (lambda x, a: a(x.view(-1, 2, 5, 6)), [C(2, 4, 3)], (2, 5, 6)),
    "images without a channel, unsqueezed": (lambda x, a: a(x.unsqueeze(1)), [C(1, 4, 3)], (5, 6)),
    "images without a channel": (lambda x, a: a(x.view(x.size(0), 1, 5, 6)).relu(), [C(1, 4, 3)], (5, 6)),
    "flattened and back": (lambda x, a, b: b(a(x).flatten(1).view(-1, 4, 3, 4)), [C(2, 4, 3), C(4, 3, 2)], (2, 5, 6)),
    "zero scale": (lambda x, a: a(x) * 0 + 1, [C(3, 4, 1)], (3, 5, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_modules(name):
    function, layers, shape = ODD[name]
    torch.manual_seed(0)
    check(Net(function, *layers), shape)


@pytest.mark.parametrize("gain", [1e-6, 1e6])
def test_huge_and_small_weights(gain):
    torch.manual_seed(0)
    a, b = C(3, 8, 3), C(8, 4, 3)
    with torch.no_grad():
        a.weight *= gain
        a.bias *= gain
        b.weight /= gain
    check(Net(lambda x, a, b: b(a(x).relu()), a, b), (3, 8, 8))


def test_a_single_sample():
    torch.manual_seed(0)
    check(Net(lambda x, a: a(x).relu(), C(3, 8, 3)), (3, 8, 8), count=1)


def test_samples_with_channels_last():
    torch.manual_seed(0)
    net = Net(lambda x, a, b: b(a(x).relu().flatten(1)), C(3, 5, 3), L(5 * 4 * 3, 7)).eval()
    x = torch.randn(30, 3, 6, 5)
    program = compile(net, x.permute(0, 2, 3, 1).numpy(), channels_last=True)
    got = program.output.value(golden.run(program, program.input.quantise(x.permute(0, 2, 3, 1).numpy(), 12)))
    assert snr_db(net(x).detach().double().numpy(), got) > 40


def test_projection_of_a_module():
    torch.manual_seed(0)
    net = nn.Sequential(C(8, 16, 3), nn.ReLU(), nn.Flatten(), L(16 * 9, 24))
    x = np.random.default_rng(0).normal(size=(20, 8, 5, 5))
    assert [la.block_size for la in compile(net, x).layers] == [1, 1]
    assert [la.block_size for la in compile(net, x, block_size=8).layers] == [8, 8]
    assert [la.block_size for la in compile(net, x, block_size={"3": 4}).layers] == [1, 4]
    with pytest.raises(CompileError, match="are 0, 3"):
        compile(net, x, block_size={"last": 4})


@pytest.mark.parametrize(
    ("function", "layers", "message"),
    [
        (lambda x, a: torch.softmax(a(x), 1) * 2, [C(3, 4, 1)], "A softmax before another layer"),
        (lambda x, a: a(x).flatten(1) + x.permute(0, 2, 3, 1).flatten(1), [C(3, 3, 1)], "flattened in different ways"),
        (lambda x, a: a(x).permute(0, 2, 3, 1), [C(3, 4, 1)], "return the map itself"),
        (lambda x, a: functional.pad(a(x), (1, 1, 1, 1)).relu(), [C(3, 4, 1)], "give the padding to that layer"),
        (lambda x, a: functional.pad(a(x), (1, 1, 1, 1)), [C(3, 4, 1)], "give the padding to that layer"),
        (lambda x, a: a(x), [BlockCirculantConv2d(4, 4, 3, 4)], "A layer for 4 channels on 3"),
        (lambda x, a: a(x), [C(5, 4, 3)], "A layer for 5 channels on 3.*need channels_last"),
        (lambda x, a: functional.max_pool2d(a(x), 2, ceil_mode=True), [C(3, 4, 1)], "last window is cut"),
        (lambda x, a: a(x).view(x.size(1), -1), [C(3, 4, 1)], "only size.0., the batch"),
        (lambda x, a: torch.softmax(a(x).mean((2, 3)), 0), [C(3, 4, 1)], "A softmax over dimension 0"),
        (lambda x, a: torch.softmax(a(x), -1), [C(3, 4, 1)], "over a map's columns"),
        (lambda x, a: a(x).view(-1), [C(3, 4, 1)], "only flattening"),
        (lambda x, a, b: b(a(x.flatten(1)).view(-1, 3, 5, 5)), [L(75, 75), C(3, 4, 1)], "A reshape before another"),
        (lambda x, a: functional.avg_pool2d(a(x), 3, 1, 1, False, False), [C(3, 4, 1)], "does not count padding"),
        (lambda x, a: functional.avg_pool2d(a(x), 2, ceil_mode=True), [C(3, 4, 1)], "last window is cut"),
        (lambda x, a: functional.avg_pool2d(a(x), 2, divisor_override=3), [C(3, 4, 1)], "divisor_override=3"),
        (lambda x, a, p: p(a(x)), [C(3, 4, 1), nn.AvgPool2d(2, divisor_override=1)], "divisor_override=1"),
        (lambda x, a, p: p(a(x)), [C(3, 4, 1), nn.MaxPool2d(2, return_indices=True)], "returns indices"),
    ],
)  # fmt: skip
def test_refusals(function, layers, message):
    with pytest.raises(CompileError, match=message):
        compile(Net(function, *layers), np.random.default_rng(0).normal(size=(4, 3, 5, 5)))


def test_shapes_of_outputs_are_the_networks():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(20, 2, 6, 5))
    flat = compile(nn.Sequential(C(2, 5, 3), nn.Flatten()), x)
    assert flat.output.shape == (60,)
    decoder = nn.Sequential(nn.Flatten(), L(60, 30), nn.Unflatten(1, (1, 6, 5)))
    assert compile(decoder, x).output.shape == (1, 6, 5)
    assert compile(decoder, x.transpose(0, 2, 3, 1), channels_last=True).output.shape == (6, 5, 1)
    two = nn.Sequential(nn.Flatten(), L(60, 60), nn.Unflatten(1, (2, 6, 5)))
    with pytest.raises(CompileError, match="leave it to the host"):
        compile(two, x.transpose(0, 2, 3, 1), channels_last=True)


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        ("x.npz", {}, "of type str: expected an array"),
        (None, {}, "of type NoneType"),
        (np.zeros(5), {}, "of shape .5,.: expected an array"),
        ([np.zeros((3, 4)), np.zeros((2, 4))], {}, "samples of one shape"),
        (np.ones((2, 12)), {"block_size": 8.0}, "block_size=8.0: the core executes the integers 1, 4"),
        (np.ones((2, 12)), {"block_size": "8"}, "block_size='8'"),
        (np.ones((2, 12)), {"width": "12"}, "width='12'"),
        (np.ones((2, 12)), {"config": "Pynq-Z2"}, "config is a str"),
    ],
)
def test_wrong_arguments_are_named(sample, options, message):
    with pytest.raises(CompileError, match=message):
        compile(nn.Sequential(nn.Flatten(), L(12, 3)), sample, **options)


def test_a_module_with_its_report_is_refused():
    with pytest.raises(CompileError, match="a list with a Sequential was given"):
        compile((nn.Sequential(L(12, 3)), None), np.ones((2, 12)))


class Last(nn.Module):
    """A recurrent layer and a linear one on its last state."""

    def __init__(self, layer, state):
        super().__init__()
        self.layer, self.state, self.head = layer, state, L(8, 3)

    def forward(self, x):
        y, states = self.layer(x)
        return self.head(self.state(y, states))


@pytest.mark.parametrize(
    ("layer", "state"),
    [
        (nn.GRU(5, 8, batch_first=True), lambda y, h: h[-1]),
        (nn.GRU(5, 8, batch_first=True), lambda y, h: h.squeeze(0)),
        (nn.GRU(5, 8, num_layers=2, batch_first=True), lambda y, h: h[1]),
        (nn.LSTM(5, 8, batch_first=True), lambda y, hc: hc[0][-1]),
        (nn.LSTM(5, 8, batch_first=True), lambda y, hc: hc[0][0]),
    ],
)
def test_last_states(layer, state):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(n, 5)) for n in (7, 3, 11)]
    net = Last(layer, state).eval()
    program = compile(net, steps)
    starts = np.concatenate([np.arange(len(s)) == 0 for s in steps])
    outputs = golden.run(program, np.concatenate([program.input.quantise(s, 12) for s in steps]), starts=starts)
    ends = np.cumsum([len(s) for s in steps]) - 1
    with torch.no_grad():
        expected = [net(torch.tensor(s[None], dtype=torch.float32))[0].double().numpy() for s in steps]
    assert snr_db(np.array(expected), program.output.value(outputs)[ends]) > 35


@pytest.mark.parametrize(
    ("layer", "state", "message"),
    [
        (nn.LSTM(5, 8, batch_first=True), lambda y, hc: hc[1][-1], "Indexing"),
        (nn.GRU(5, 8, num_layers=2, batch_first=True), lambda y, h: h[0], "Indexing"),
        (nn.GRU(5, 8, num_layers=2, batch_first=True), lambda y, h: h.squeeze(0), "A squeeze"),
        (nn.GRU(5, 8), lambda y, h: y, "give it batch_first=True"),
        (nn.GRU(5, 8, batch_first=True), lambda y, h: h[:, -1], "Indexing"),
        (nn.RNN(5, 8, batch_first=True), lambda y, h: y, "with an LSTM or GRU"),
    ],
)
def test_states_that_are_refused(layer, state, message):
    with pytest.raises(CompileError, match=message):
        compile(Last(layer, state), [np.ones((4, 5)), np.ones((3, 5))])


@pytest.mark.parametrize("sample", [[], None, "x"])
def test_samples_that_are_no_sequences(sample):
    with pytest.raises(CompileError, match="sequences|steps"):
        compile(Last(nn.GRU(5, 8, batch_first=True), lambda y, h: y), sample)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_initial_states_are_refused(kind):
    class Started(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.first = kind(5, 8, batch_first=True), nn.Parameter(torch.ones(1, 1, 8))

        def forward(self, x):
            return self.layer(x, self.first if kind is nn.GRU else (self.first, self.first))[0]

    with pytest.raises(CompileError, match="initial states"):
        compile(Started(), [np.ones((4, 5))])
