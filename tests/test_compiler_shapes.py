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
        (lambda x, a: functional.max_pool2d(a(x), 2, ceil_mode=True), [C(3, 4, 1)], "last window is cut"),
    ],
)  # fmt: skip
def test_refusals(function, layers, message):
    with pytest.raises(CompileError, match=message):
        compile(Net(function, *layers), np.random.default_rng(0).normal(size=(4, 3, 5, 5)))
