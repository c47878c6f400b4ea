# SPDX-License-Identifier: BSD-3-Clause
"""The compiler: plain descriptions and PyTorch modules, formats from samples, refusals with a way out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import circulant as dense_circulant

from circ_overlay import golden, spec
from circ_overlay.compiler import CompileError, Linear, Network, compile
from circ_overlay.compiler.quantise import snr_db


def outputs(program, x):
    return program.output.value(golden.run(program, program.input.quantise(x, program.width)))


def dense(w, out_features, in_features):
    p, q, _ = w.shape
    full = np.block([[dense_circulant(w[i, j]) for j in range(q)] for i in range(p)])
    return full[:out_features, :in_features]


def test_network_against_a_dense_one():
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(5, 4, 8)) / 6, rng.normal(size=(2, 3, 16)) / 6
    scale, shift = rng.uniform(0.5, 2, 37), rng.normal(size=37)
    x = rng.uniform(-2, 3, (400, 30))
    hidden = np.maximum(x @ dense(w1, 37, 30).T * scale + shift, 0)
    expected = 1 / (1 + np.exp(-(hidden @ dense(w2, 20, 37).T)))
    layers = [
        Linear(weight=w1, in_features=30, out_features=37, scale=scale, shift=shift, activation="relu"),
        Linear(weight=w2, in_features=37, out_features=20, activation="sigmoid"),
    ]
    np.testing.assert_allclose(Network(layers=tuple(layers)).forward(x), expected, atol=1e-12)
    program = compile(layers, x, name="two", labels=[str(n) for n in range(20)], metadata={"by": "me"})
    assert snr_db(expected, outputs(program, x)) > 50
    assert (program.name, program.metadata["by"], len(program.labels)) == ("two", "me", 20)
    assert len(program.metadata["snr_db"]) == 2


def test_dense_weights_are_projected():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 3, 4))
    exact = Linear(weight=dense(w, 8, 12), block_size=4)
    np.testing.assert_allclose(exact.weight[:, :, 0, 0], w, atol=1e-12)
    assert (exact.in_channels, exact.out_channels) == (12, 8)


def test_uint8_samples_make_a_byte_input():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (100, 6, 5)).astype(np.uint8)
    network = Network(layers=(Linear(weight=rng.normal(size=(1, 4, 8)), in_features=30),), input_scale=1 / 255)
    program = compile(network, x)
    assert (program.input.storage, program.input.shape, program.input.frac) == ("uint8", (6, 5), 0)
    assert program.input.quantise(x, 12).dtype == np.uint8
    assert snr_db(network.forward(x), outputs(program, x)) > 50
    narrow = compile(network, x, width=8)
    assert narrow.input.storage == "int16"
    assert snr_db(network.forward(x), outputs(narrow, x)) > 25


def test_bytes_pass_untouched_and_floats_are_rounded():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (50, 8)).astype(np.uint8)
    program = compile([Linear(weight=rng.normal(size=(1, 1, 8)))], x)
    assert program.input.quantise(x, 12) is x or np.shares_memory(program.input.quantise(x, 12), x)
    floats = program.input.quantise(np.array([[0.4, 0.5, 254.6, -3, 300, 1, 2, 3]]), 12)
    assert floats.tolist() == [[0, 1, 255, 0, 255, 1, 2, 3]]


@given(
    width=st.sampled_from(list(spec.WIDTHS)), k=st.sampled_from(spec.BLOCK_SIZES),
    gain=st.floats(1e-6, 1e6), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_scale_of_weights_and_outputs(width, k, gain, offset, seed):
    """Formats follow the numbers: a layer's SNR does not depend on the units the user trains in."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (200, 2 * k))
    shift = offset * gain / 1e3 * rng.uniform(-1, 1, k)
    layer = Linear(weight=gain * rng.normal(size=(1, 2, k)) / np.sqrt(2 * k), shift=shift)
    program = compile([layer], x, width=width)
    assert snr_db(layer.forward(x), outputs(program, x)) > 6.02 * width - 20


def test_channels_of_very_different_gain_keep_their_precision():
    rng = np.random.default_rng(0)
    scale = np.geomspace(0.02, 1, 32)
    layer = Linear(weight=rng.normal(size=(2, 2, 16)) / 6, scale=scale)
    x = rng.uniform(-1, 1, (500, 32))
    program = compile([layer], x, width=12)
    error = outputs(program, x) - layer.forward(x)
    # The quantisation step of the common output format is all that a small channel may suffer.
    assert np.abs(error).max() < 3 * 2.0**-program.output.frac


def test_zero_weights_compile():
    program = compile([Linear(weight=np.zeros((1, 1, 4)), shift=[1.0, -1, 0.5, 0])], np.ones((3, 4)))
    np.testing.assert_allclose(outputs(program, np.ones((1, 4))), [[1, -1, 0.5, 0]], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, float])
def test_sample_that_shows_nothing_is_refused(dtype):
    with pytest.raises(CompileError, match="typical inputs"):
        compile([Linear(weight=np.ones((1, 1, 4)))], np.zeros((3, 4), dtype))


def test_dead_channel_does_not_cost_the_others_their_precision():
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 4, 4)) / 4, rng.uniform(-1, 1, (400, 16))
    snr = []
    for dead in (0.0, -1e3, -1e6, -1e9):
        shift = rng.normal(size=20) / 4
        shift[7] = dead
        layer = Linear(weight=weight, shift=shift, activation="relu")
        got = outputs(compile([layer], x), x)
        if dead:
            assert not got[:, 7].any()
        rest = np.arange(20) != 7
        snr.append(snr_db(layer.forward(x)[:, rest], got[:, rest]))
    assert min(snr) > max(snr) - 2
    assert min(snr) > 50


def test_channel_that_the_common_format_drowns_is_told(caplog):
    rng = np.random.default_rng(0)
    scale = np.ones(8)
    scale[0] = 1e4
    program = compile([Linear(weight=rng.normal(size=(2, 2, 4)), scale=scale, name="odd")], rng.normal(size=(200, 8)))
    assert program.metadata["snr_db"][0] > 40
    assert program.metadata["worst_channel_snr_db"][0] < 10
    assert "a channel with a low SNR" in caplog.text and "'odd' (" in caplog.text


def test_calibration_follows_the_integers_not_the_float_network():
    """A first layer that saturates on part of the sample: the second one is fitted to what really arrives."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8)) * np.where(rng.random((2000, 1)) < 0.002, 40, 1)
    layers = (
        Linear(weight=rng.normal(size=(2, 2, 4)), activation="relu"),
        Linear(weight=rng.normal(size=(2, 2, 4))),
    )
    program = compile(layers, x, width=8)
    quantised = program.input.quantise(x, 8).astype(np.int64)
    first = golden.apply(program.layers[0], quantised[:, None, None], 8)
    second = golden.run(program, quantised)
    sums = golden.reduce(program.layers[1], first)
    peak = np.abs(sums).max() >> program.layers[1].acc_shift
    assert (1 << 15) <= peak <= (1 << 16) or program.layers[1].acc_shift == 0  # half of the 18 bits' range, by headroom
    assert np.abs(second).max() > 60


def test_output_headroom_for_what_the_sample_did_not_show():
    x = np.linspace(-0.99, 0.99, 400).reshape(100, 4)
    program = compile([Linear(weight=np.array([[[1.0, 0, 0, 0]]]))], x)
    assert program.input.frac == 11  # +-0.99 fits +-1 ...
    assert program.output.frac == 10  # ... but an output an eighth above the largest has to fit too
    roomy = compile([Linear(weight=np.array([[[1.0, 0, 0, 0]]]))], 0.8 * x)
    assert roomy.output.frac == 11


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((3, 4), "a"), "sample of dtype <U1: expected real numbers"),
        (np.ones((3, 4), complex), "expected real numbers"),
        (np.full((3, 4), 1e30), "largest magnitude is 1e\\+30"),
    ],
)
def test_samples_of_no_use(x, message):
    with pytest.raises(CompileError, match=message):
        compile([Linear(weight=np.ones((1, 1, 4)))], x)


def test_weights_of_absurd_size_are_refused():
    with pytest.raises(CompileError, match="spectral weights reach"):
        compile([Linear(weight=np.full((1, 1, 4), 1e-300))], np.ones((3, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": np.zeros((4, 4))}, "needs block_size=k"),
        ({"weight": np.zeros(4)}, r"expected \(p, q, k\) or \(out, in\)"),
        ({"weight": np.zeros((1, 1, 6))}, "block size 6: the core executes"),
        ({"weight": np.zeros((1, 1, 256))}, "block size 256"),
        ({"weight": np.zeros((4, 4)), "block_size": 3}, "block size 3: the core executes"),
        ({"weight": np.zeros((1, 2, 8)), "in_features": 17}, "do not make a matrix of 8 x 17"),
        ({"weight": np.zeros((1, 1, 8)), "block_size": 4}, "has blocks of 8"),
        ({"weight": np.zeros((1, 1, 8)), "activation": "swish"}, "activation 'swish': allowed are"),
        ({"weight": np.zeros((1, 1, 8)), "scale": np.ones(3)}, r"scale of shape \(3,\): expected \(\) or \(8,\)"),
        ({"weight": np.full((1, 1, 8), np.nan)}, "weight holds NaN"),
        ({"weight": np.zeros((4, 4)), "block_size": 4, "in_features": 5}, "differ from the dense weight"),
    ],
)
def test_layer_messages(arguments, message):
    with pytest.raises(CompileError, match=message):
        Linear(name="here", **arguments)


def test_network_messages():
    one, two = Linear(weight=np.ones((2, 1, 4)), name="one"), Linear(weight=np.ones((1, 1, 4)), name="two")
    with pytest.raises(CompileError, match="layer 'two': takes 4 channels, but 8 arrive"):
        Network(layers=(one, two))
    with pytest.raises(CompileError, match="has no layers"):
        Network(layers=())
    with pytest.raises(CompileError, match="input_scale=0"):
        Network(layers=(one,), input_scale=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 4)), "n > 0"),
        (np.zeros(4), "n > 0"),
        (np.zeros((3, 5)), r"sample of shape \(3, 5\): expected \(n, 4\)"),
        (np.full((3, 4), np.inf), "NaN or infinite"),
    ],
)
def test_sample_messages(x, message):
    with pytest.raises(CompileError, match=message):
        compile([Linear(weight=np.ones((1, 1, 4)))], x)


def test_width_message():
    with pytest.raises(CompileError, match=r"width=17: allowed are 8\.\.16"):
        compile([Linear(weight=np.ones((1, 1, 4)))], np.ones((2, 4)), width=17)


def test_extreme_ratio_of_scale_to_output_is_refused_or_right():
    layer = Linear(weight=np.ones((1, 1, 4)), scale=1e9, shift=-4e9, name="wild")
    x = np.ones((5, 4)) + np.linspace(0, 1e-9, 5)[:, None]
    try:
        program = compile([layer], x)
    except CompileError as error:
        assert "layer 'wild'" in str(error)
    else:
        assert np.isfinite(outputs(program, x)).all()


# ---- PyTorch -----------------------------------------------------------------------------------------------


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch", reason="the importer needs PyTorch")

    def trained(self, module, shape, steps=10):
        torch = self.torch
        torch.manual_seed(0)
        module.train()
        for _ in range(steps):
            module(torch.randn(64, *shape) + 0.5)
        return module.eval()

    def check(self, module, x, threshold=48):
        program = compile(module, x)
        with self.torch.no_grad():
            expected = module(self.torch.from_numpy(np.asarray(x, np.float32))).numpy()
        assert snr_db(expected.astype(float), outputs(program, x)) > threshold
        return program

    def test_sequential(self):
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        module = nn.Sequential(
            nn.Flatten(), BlockCirculantLinear(30, 50, 8, bias=False), nn.BatchNorm1d(50), nn.ReLU(), nn.Dropout(),
            nn.Sequential(BlockCirculantLinear(50, 33, 16), nn.BatchNorm1d(33), nn.Tanh()),
            nn.Identity(), BlockCirculantLinear(33, 7, 4),
        )  # fmt: skip
        x = np.random.default_rng(0).normal(0.5, 1, (300, 5, 6)).astype(np.float32)
        program = self.check(self.trained(module, (5, 6)), x)
        assert [layer.activation.name for layer in program.layers] == ["RELU", "TANH", "IDENTITY"]
        assert program.input.shape == (5, 6)

    def test_class_with_functions_and_scaling(self):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = BlockCirculantLinear(64, 40, 8), BlockCirculantLinear(40, 10, 4)
                self.norm = nn.BatchNorm1d(40)

            def forward(self, x):
                x = torch.flatten(x, 1) / 255
                return torch.sigmoid(self.b(nn.functional.relu(self.norm(self.a(x) * 2))))

        module = Net()
        module.train()
        for _ in range(10):
            module(255 * torch.rand(50, 8, 8))
        x = np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype(np.uint8)
        program = self.check(module.eval(), x)
        assert program.input.storage == "uint8"
        assert program.name == "net"

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda nn, L: [nn.Conv2d(1, 1, 3)], "a window of 3 x 3 on 1 x 1 pixels"),
            (lambda nn, L: [L(8, 8, 4), nn.Softmax(1), L(8, 8, 4)], "A softmax before another layer"),
            (lambda nn, L: [L(8, 8, 4), nn.GELU()], "Module '1' of type GELU.*supported are"),
            (lambda nn, L: [L(8, 8, 4), nn.Hardtanh()], r"A clamp to -1.0..1.0.*use clamp\(0, c\)"),
            (lambda nn, L: [nn.Flatten()], "holds no layer"),
            (lambda nn, L: [L(8, 8, 4), nn.BatchNorm1d(8, track_running_stats=False)], "running statistics"),
        ],
    )
    def test_refusals(self, build, message):
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        module = nn.Sequential(*build(nn, BlockCirculantLinear)).eval()
        with pytest.raises(CompileError, match=message):
            compile(module, np.ones((4, 8)))

    @pytest.mark.parametrize(
        "build",
        [
            lambda nn, L: [L(8, 8, 4), nn.ReLU(), nn.BatchNorm1d(8)],
            lambda nn, L: [nn.ReLU(), L(8, 8, 4)],
            lambda nn, L: [L(8, 8, 4), nn.Tanh(), nn.Sigmoid()],
            lambda nn, L: [nn.BatchNorm1d(8), nn.Linear(8, 5), nn.ReLU6(), L(5, 7, 4), nn.Softmax(1)],
        ],
    )
    def test_what_does_not_fold_becomes_a_layer_of_its_own(self, build):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        torch.manual_seed(0)
        layers = build(nn, BlockCirculantLinear)
        module = nn.Sequential(*layers)
        for _ in range(5):
            module(2 * torch.randn(50, 8) + 1)
        x = np.random.default_rng(0).normal(1, 2, (300, 8)).astype(np.float32)
        plain = nn.Sequential(*(m for m in layers if not isinstance(m, nn.Softmax))).eval()
        program = compile(module.eval(), x)
        with torch.no_grad():
            assert snr_db(plain(torch.from_numpy(x)).numpy(), outputs(program, x)) > 45

    def test_branches(self):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = (BlockCirculantLinear(8, 8, 4) for _ in range(3))

            def forward(self, x):
                y = self.a(x)
                z = torch.relu(self.b(y) + y)
                return (self.c(z) + x) * torch.sigmoid(y) + z

        x = np.random.default_rng(0).normal(0, 1, (300, 8)).astype(np.float32)
        module = Residual().eval()
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        assert snr_db(expected, outputs(compile(module, x), x)) > 45

    def test_data_dependent_control_flow_is_refused(self):
        from torch import nn

        class Wild(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        with pytest.raises(CompileError, match="Wild cannot be traced"):
            compile(Wild(), np.ones((4, 8)))

    def test_compiles_what_eval_mode_computes_and_leaves_the_module_alone(self):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Moody(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.drop = BlockCirculantLinear(16, 12, 4), nn.Dropout()
                self.bn = nn.BatchNorm1d(12)

            def forward(self, x):
                y = self.bn(self.a(x)) if not self.training else self.a(x)
                return nn.functional.dropout(self.drop(y), training=self.training)

        module = Moody().train()
        module.drop.eval()
        module.bn.running_mean.normal_()
        module.bn.running_var.fill_(1e-6)  # smaller than eps: the folded scale must contain it
        before = {k: v.clone() for k, v in module.state_dict().items()}
        x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
        program = compile(module, x)
        assert (module.training, module.drop.training, module.bn.training) == (True, False, True)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        with torch.no_grad():
            expected = module.eval()(torch.from_numpy(x)).numpy()
        assert snr_db(expected.astype(float), outputs(program, x)) > 45

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda t, y: y.div(2, rounding_mode="trunc"), "other than of a tensor and a number"),
            (lambda t, y: t.div(y, 2, rounding_mode="floor"), "other than of a tensor and a number"),
            (lambda t, y: 2 / y, "other than of a tensor and a number"),
            (lambda t, y: y / 0, "A division by 0"),
            (lambda t, y: t.nn.functional.dropout(y), "A dropout that is active in eval mode"),
            (lambda t, y: t.flatten(y), "A flatten that joins the batch"),
            (lambda t, y: t.flatten(y, 0), "A flatten that joins the batch"),
            (lambda t, y: t.cat([y, y], 1), "Operation cat"),
            (lambda t, y: y / (2 * y), "A quotient of maps"),
        ],
    )
    def test_look_alikes_are_refused(self, function, message):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = BlockCirculantLinear(8, 8, 4)

            def forward(self, x):
                return function(torch, self.a(x))

        with pytest.raises(CompileError, match=message):
            compile(Net(), np.ones((4, 8)))

    def test_numbers_on_either_side_of_a_product(self):
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = BlockCirculantLinear(16, 8, 4)

            def forward(self, x):
                return (0.5 * self.a(3 * x)).mul(2).flatten(start_dim=1)

        x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
        self.check(Net().eval(), x)

    def test_changed_modules_are_refused(self):
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear

        class Doubled(BlockCirculantLinear):
            def forward(self, x):
                return 2 * super().forward(x)

        with pytest.raises(CompileError, match="whose forward is not BlockCirculantLinear's"):
            compile(nn.Sequential(Doubled(8, 8, 4)), np.ones((4, 8)))
        hooked = nn.Sequential(BlockCirculantLinear(8, 8, 4))
        hooked[0].register_forward_hook(lambda m, i, o: 2 * o)
        with pytest.raises(CompileError, match="'0' with forward hooks"):
            compile(hooked, np.ones((4, 8)))

    def test_something_else_is_refused(self):
        with pytest.raises(CompileError, match="a dict was given"):
            compile({}, np.ones((4, 8)))
