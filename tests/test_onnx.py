# SPDX-License-Identifier: BSD-3-Clause
"""Import of ONNX models: against onnxruntime, round trips of block-circulant modules, refusals with a way out."""

import io
import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the importer needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the tests compare with onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from circ_overlay import golden  # noqa: E402
from circ_overlay.compiler import CompileError, compile  # noqa: E402
from circ_overlay.compiler.onnx_import import from_onnx  # noqa: E402
from circ_overlay.compiler.quantise import snr_db  # noqa: E402

RNG = np.random.default_rng


def model(nodes, weights, shape, *, out="y", dtype=TensorProto.FLOAT, opset=17, name="net"):
    """A model of one input "x" and one output."""
    graph = helper.make_graph(
        nodes, name, [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(w, w.dtype if w.dtype.kind in "iu" else np.float32), key)
         for key, w in ((k, np.asarray(v)) for k, v in weights.items())],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind, inputs, outputs="y", **attributes):
    given = inputs.split() if isinstance(inputs, str) else inputs
    return helper.make_node(kind, given, outputs.split(), **attributes)


def reference(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return session.run(None, {given.name: x})[0].astype(float)


def outputs(program, x):
    return program.output.value(golden.run(program, program.input.quantise(x, program.width)))


def check(proto, x, threshold=40.0, **options):
    program = compile(proto, x, **options)
    expected = reference(proto, x)
    got = outputs(program, x)
    assert snr_db(expected.reshape(got.shape), got) > threshold
    return program


def export(module, x, **options):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.from_numpy(x),), buffer, dynamo=False, input_names=["x"], output_names=["y"],
            **{"opset_version": 17, "dynamic_axes": {"x": {0: "batch"}}, **options},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def settle(module, *shape):
    """Give batch-norms running statistics."""
    import torch

    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
    module.train()
    for _ in range(5):
        module(torch.randn(16, *shape))
    return module.eval()


# ---- models made by hand ----------------------------------------------------------------------------------------
def test_mlp_with_constants_to_fold():
    rng = RNG(0)
    w = {"w1": rng.normal(size=(30, 40)) / 6, "b1": rng.normal(size=40), "w2": rng.normal(size=(40, 8)) / 6,
         "c": rng.normal(size=(1, 8)), "shape": np.array([8, 40]), "scale": np.array(0.5)}  # fmt: skip
    nodes = [
        node("Identity", "w1", "w1i"),
        node("MatMul", "x w1i", "a"), node("Add", "b1 a", "b"), node("Relu", "b", "r"), node("Dropout", "r", "d"),
        node("Transpose", "w2", "w2t"), node("Reshape", "w2t shape", "w2r"),
        node("Gemm", "d w2r c", "g", transB=1, alpha=0.5, beta=2.0), node("Mul", "g scale", "m"),
        node("Tanh", "m", "t"), node("Softmax", "t", "y"),
    ]  # fmt: skip
    x = rng.normal(size=(300, 30)).astype(np.float32)
    proto = model(nodes, w, ["batch", 30])
    program = compile(proto, x)
    assert program.metadata["host"] == "softmax"
    assert [la.activation.name for la in program.layers] == ["RELU", "TANH"]
    logits = outputs(program, x)
    exp = np.exp(logits)
    assert snr_db(reference(proto, x), exp / exp.sum(1, keepdims=True)) > 40


def test_cnn_with_every_pooling(tmp_path):
    rng = RNG(1)
    w = {"k1": rng.normal(size=(6, 1, 5, 5)) / 5, "b1": rng.normal(size=6) / 4,
         "k2": rng.normal(size=(8, 6, 3, 3)) / 7,
         "g": rng.uniform(0.5, 2, 8), "b": rng.normal(size=8) / 3, "mean": rng.normal(size=8) / 3,
         "var": rng.uniform(0.5, 2, 8), "w": rng.normal(size=(8 * 9, 10)) / 8, "c": rng.normal(size=10)}  # fmt: skip
    nodes = [
        node("Conv", "x k1 b1", "a", pads=[2, 2, 2, 2]), node("Sigmoid", "a", "s"),
        node("AveragePool", "s", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p k2", "e", auto_pad="SAME_LOWER", strides=[1, 1]),
        node("BatchNormalization", "e g b mean var", "n"), node("Relu", "n", "r"),
        node("MaxPool", "r", "q", kernel_shape=[3, 3], strides=[2, 2]),
        node("Flatten", "q", "f", axis=1), node("Gemm", "f w c", "y"),
    ]  # fmt: skip
    x = rng.normal(size=(60, 1, 15, 15)).astype(np.float32)
    proto = model(nodes, w, ["n", 1, 15, 15])
    program = check(proto, x)
    assert program.input.channels_first or program.input.channels == 1
    onnx.save(proto, tmp_path / "lenet.onnx")
    same = compile(tmp_path / "lenet.onnx", x)
    assert same.name == "lenet"
    for a, b in zip(program.images, same.images, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("opset", [7, 11])
def test_residual_network_with_a_projection_and_clips(opset):
    rng = RNG(2)
    w = {"k1": rng.normal(size=(8, 3, 3, 3)) / 5, "k2": rng.normal(size=(16, 8, 3, 3)) / 8,
         "b2": rng.normal(size=16),
         "k3": rng.normal(size=(16, 16, 3, 3)) / 12, "ks": rng.normal(size=(16, 8, 1, 1)) / 3,
         "b3": rng.normal(size=16),
         "low": np.array(0.0), "high": np.array(6.0), "w": rng.normal(size=(16, 5)) / 4,
         "c": rng.normal(size=5)}  # fmt: skip

    def clip(given, result):
        if opset == 7:
            return node("Clip", given, result, min=0.0, max=6.0)
        return node("Clip", f"{given} low high", result)

    nodes = [
        node("Conv", "x k1", "a", pads=[1, 1, 1, 1]), clip("a", "r"),
        node("Conv", "r k2 b2", "b", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "b", "br"),
        node("Conv", "br k3 b3", "d", pads=[1, 1, 1, 1]),
        node("Conv", "r ks", "s", strides=[2, 2]), node("Add", "d s", "sum"), clip("sum", "e"),
        node("Add", "e br", "again"),
        node("GlobalAveragePool", "again", "p"), node("Flatten", "p", "f"), node("Gemm", "f w c", "y"),
    ]  # fmt: skip
    if opset == 7:
        del w["low"], w["high"]
    x = rng.normal(size=(40, 3, 10, 12)).astype(np.float32)
    program = check(model(nodes, w, ["n", 3, 10, 12], opset=opset), x)
    assert sum(la.residual is not None for la in program.layers) == 2


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 1, 2, 3]}, {"pads": [2, 0, 1, 0], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, {"auto_pad": "VALID"},
    ],
)  # fmt: skip
def test_asymmetric_padding(attributes):
    rng = RNG(3)
    w = {"k": rng.normal(size=(5, 2, 4, 3)), "b": rng.normal(size=5)}
    x = rng.normal(size=(30, 2, 9, 8)).astype(np.float32)
    check(model([node("Conv", "x k b", "y", **attributes)], w, ["n", 2, 9, 8]), x)


def test_pad_operator_goes_into_the_convolution():
    rng = RNG(3)
    w = {"k": rng.normal(size=(5, 2, 3, 3)), "p": np.array([0, 0, 1, 0, 0, 0, 2, 1])}
    x = rng.normal(size=(30, 2, 9, 8)).astype(np.float32)
    proto = model([node("Pad", "x p", "a"), node("Conv", "a k", "y", pads=[0, 1, 0, 0])], w, ["n", 2, 9, 8])
    assert len(check(proto, x).layers) == 1
    with pytest.raises(CompileError, match="give the padding to that layer"):
        compile(model([node("Pad", "x p", "a"), node("Relu", "a", "y")], w, ["n", 2, 9, 8]), x)


def test_overlapping_and_padded_pools_and_arithmetic_of_maps():
    rng = RNG(4)
    w = {"k": rng.normal(size=(4, 2, 3, 3)), "s": rng.uniform(0.5, 2, (1, 4, 1, 1)), "t": rng.normal(size=(4, 1, 1)),
         "two": np.array([2.0])}  # fmt: skip
    nodes = [
        node("Conv", "x k", "a"), node("Mul", "a s", "b"), node("Sub", "t b", "c"),
        node("MaxPool", "c", "d", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 0]),
        node("AveragePool", "d", "e", kernel_shape=[2, 3], strides=[1, 1], pads=[1, 1, 0, 1], count_include_pad=1),
        node("Tanh", "e", "f"), node("Sub", "d f", "g"), node("Mul", "g f", "h"), node("Div", "h two", "i"),
        node("ReduceMean", "i", "y", axes=[2, 3], keepdims=0),
    ]  # fmt: skip
    x = rng.normal(size=(60, 2, 11, 11)).astype(np.float32)
    check(model(nodes, w, ["n", 2, 11, 11]), x)


def test_global_max_and_trivial_squeezes():
    rng = RNG(4)
    w = {"k": rng.normal(size=(6, 2, 3, 3)), "axes": np.array([2, 3]), "w": rng.normal(size=(6, 4))}
    nodes = [
        node("Conv", "x k", "a"), node("Relu", "a", "r"), node("GlobalMaxPool", "r", "g"),
        node("Squeeze", "g axes", "s"),
        node("Unsqueeze", "s axes", "u"), node("Flatten", "u", "f"), node("Cast", "f", "c", to=TensorProto.FLOAT),
        node("MatMul", "c w", "y"),
    ]  # fmt: skip
    x = rng.normal(size=(60, 2, 6, 7)).astype(np.float32)
    check(model(nodes, w, ["n", 2, 6, 7]), x)


def test_models_of_tensorflow_take_channels_last():
    rng = RNG(5)
    w = {"k": rng.normal(size=(8, 3, 3, 3)) / 5, "w": rng.normal(size=(8 * 16, 4)) / 8, "shape": np.array([-1, 128])}
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t k", "a"), node("Relu", "a", "r"),
        node("Transpose", "r", "u", perm=[0, 2, 3, 1]), node("Reshape", "u shape", "f"), node("MatMul", "f w", "y"),
    ]  # fmt: skip
    x = rng.normal(size=(40, 6, 6, 3)).astype(np.float32)
    program = check(model(nodes, w, ["n", 6, 6, 3]), x)
    assert program.input.shape == (6, 6, 3)
    assert not program.input.channels_first


def test_channels_last_samples_for_a_channels_first_model():
    rng = RNG(5)
    proto = model([node("Conv", "x k", "y")], {"k": rng.normal(size=(8, 3, 3, 3)) / 5}, ["n", 3, 6, 6])
    x = rng.integers(0, 256, (30, 6, 6, 3)).astype(np.uint8)
    program = compile(proto, x, channels_last=True)
    expected = reference(proto, x.transpose(0, 3, 1, 2).astype(np.float32)).transpose(0, 2, 3, 1)
    assert snr_db(expected, outputs(program, x)) > 45


def test_image_without_a_channel():
    rng = RNG(6)
    w = {"k": rng.normal(size=(4, 1, 3, 3)), "one": np.array([1])}
    x = rng.normal(size=(30, 7, 8)).astype(np.float32)
    program = check(model([node("Unsqueeze", "x one", "u"), node("Conv", "u k", "y")], w, ["n", 7, 8]), x)
    assert program.input.shape == (7, 8)
    flat = {"w": rng.normal(size=(56, 4)), "s": np.array([0, -1])}
    program = check(model([node("Reshape", "x s", "f"), node("MatMul", "f w", "y")], flat, ["n", 7, 8]), x)
    assert program.input.pixels == 1


def test_bytes_go_in_as_they_are():
    rng = RNG(6)
    w = {"w": rng.normal(size=(12, 4)) / 3, "c": np.array(255.0), "m": np.array(0.5)}
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Div", "f c", "d"), node("Sub", "d m", "s"),
             node("MatMul", "s w", "y")]  # fmt: skip
    x = rng.integers(0, 256, (300, 12)).astype(np.uint8)
    program = check(model(nodes, w, ["n", 12], dtype=TensorProto.UINT8), x)
    assert program.input.storage == "uint8"


# ---- recurrent ----------------------------------------------------------------------------------------------------
def sequences(rng, features, count=12):
    return [rng.normal(size=(int(n), features)).astype(np.float32) for n in rng.integers(5, 12, count)]


def check_sequences(proto, sample, axes, threshold=38.0):
    """`axes`: (batch, time) in the model's input."""
    program = compile(proto, sample)
    worst = []
    for s in sample[:4]:
        expected = reference(proto, np.expand_dims(s, axes[0])).reshape(-1, program.output.features)
        got = outputs(program, s)
        worst.append(snr_db(expected, got[-len(expected) :]))
    assert min(worst) > threshold
    return program


@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_by_hand(peephole):
    rng = RNG(7)
    f, h = 5, 12
    w = {"w": rng.normal(size=(1, 4 * h, f)) / 2, "r": rng.normal(size=(1, 4 * h, h)) / 4,
         "b": rng.normal(size=(1, 8 * h)) / 4, "p": rng.normal(size=(1, 3 * h)) / 2, "m": rng.normal(size=(h, 3)),
         "zero": np.zeros((1, 1, h)), "one": np.array([1])}  # fmt: skip
    inputs = ["x", "w", "r", "b", "", "zero", "zero", "p" if peephole else ""]
    nodes = [node("LSTM", inputs, "a", hidden_size=h), node("Squeeze", "a one", "s"), node("MatMul", "s m", "y")]
    program = check_sequences(model(nodes, w, ["steps", 1, f]), sequences(rng, f), (1, 0))
    assert program.sequence


def test_gru_by_hand():
    rng = RNG(8)
    f, h = 6, 10
    w = {"w": rng.normal(size=(1, 3 * h, f)) / 2, "r": rng.normal(size=(1, 3 * h, h)) / 3,
         "b": rng.normal(size=(1, 6 * h)) / 4}  # fmt: skip
    nodes = [helper.make_node("GRU", ["x", "w", "r", "b"], ["", "h"], hidden_size=h, linear_before_reset=1),
             node("Squeeze", ["h", "zero"], "y")]  # fmt: skip
    w["zero"] = np.array([0])
    check_sequences(model(nodes, w, ["steps", "n", f]), sequences(rng, f), (1, 0))
    nodes[0] = helper.make_node("GRU", ["x", "w", "r", "b"], ["", "h"], hidden_size=h)
    with pytest.raises(CompileError, match="reset gate behind the product"):
        from_onnx(model(nodes, w, ["steps", "n", f]))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_modules_of_pytorch(kind):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = getattr(torch.nn, kind)(5, 12, num_layers=2, batch_first=True)
            self.last = torch.nn.Linear(12, 3)

        def forward(self, x):
            y, _ = self.cell(x)
            return self.last(y[:, -1])

    torch.manual_seed(0)
    rng = RNG(9)
    proto = export(Net(), rng.normal(size=(1, 9, 5)).astype(np.float32), dynamic_axes={"x": {0: "batch", 1: "steps"}})
    check_sequences(proto, sequences(rng, 5), (0, 1))


# ---- from PyTorch, and back ------------------------------------------------------------------------------------
class TestRoundTrip:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch", reason="the round trip begins there")

    def both(self, module, x, sizes, **options):
        from circ_overlay.nn import to_dense

        straight = compile(module, x)
        plain = to_dense(module)
        assert not any(type(m).__name__.startswith("BlockCirculant") for m in plain.modules())
        given = x[0][None] if isinstance(x, list) else x[:2]
        around = compile(export(plain, given, **options), x)
        assert [la.block_size for la in straight.layers if la.weights.size] == sizes
        assert [(la.opcode, la.block_size, la.gather, la.target.shape) for la in straight.layers] == [
            (la.opcode, la.block_size, la.gather, la.target.shape) for la in around.layers
        ]
        first = x[0] if isinstance(x, list) else x
        assert snr_db(outputs(straight, first), outputs(around, first)) > 50
        return straight, around

    def test_linear(self):
        from torch import nn

        from circ_overlay.nn import BlockCirculantLinear as Linear

        whole = [Linear(32, 48, 8), nn.ReLU(), Linear(48, 32, 16), nn.Tanh(), Linear(32, 8, 4)]
        module = nn.Sequential(nn.Flatten(), *whole)
        x = RNG(0).normal(size=(200, 4, 8)).astype(np.float32)
        straight, around = self.both(module, x, [8, 16, 4])
        for a, b in zip(straight.images, around.images, strict=True):
            np.testing.assert_array_equal(a, b)  # whole blocks, nothing folded in between: not a bit differs
        ragged = nn.Sequential(Linear(30, 50, 8), nn.ReLU(), Linear(50, 33, 16), nn.Sigmoid(), Linear(33, 7, 4))
        self.both(ragged, RNG(0).normal(size=(200, 30)).astype(np.float32), [8, 16, 4])

    def test_convolutions_with_batch_norm_folded_into_them(self):
        from torch import nn

        from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d

        module = nn.Sequential(
            BlockCirculantPatchConv2d(3, 16, 3, 8, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            BlockCirculantConv2d(16, 24, 3, 8, stride=2), nn.BatchNorm2d(24), nn.ReLU6(),
            BlockCirculantConv2d(24, 20, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            BlockCirculantLinear(20, 10, 4),
        )  # fmt: skip
        settle(module, 3, 12, 12)
        x = RNG(1).normal(size=(32, 3, 12, 12)).astype(np.float32)
        _, around = self.both(module, x, [8, 8, 4, 4])
        assert around.layers[0].gather

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    @pytest.mark.parametrize("features", [1, 13])
    def test_recurrent(self, kind, features):
        from torch import nn

        from circ_overlay import nn as ours

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = getattr(ours, f"BlockCirculant{kind}")(features, 24, 8)

            def forward(self, x):
                return self.cell(x)[0]

        x = sequences(RNG(2), features)
        k = [8] * 4
        self.both(Net(), x, k, dynamic_axes={"x": {1: "steps"}})

    def test_peepholes_have_no_dense_layer(self):
        from circ_overlay.nn import BlockCirculantLSTM, to_dense

        with pytest.raises(ValueError, match="peepholes"):
            to_dense(BlockCirculantLSTM(4, 8, 4, peephole=True))

    def test_to_dense_leaves_the_model_alone_and_computes_the_same(self):
        import torch
        from torch import nn

        from circ_overlay.nn import BlockCirculantConv2d, to_dense

        conv = BlockCirculantConv2d(6, 10, 3, 4, padding=1).double().eval()
        shared = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(10, 6, 1).double(), conv)
        plain = to_dense(shared)
        assert shared[0] is conv
        assert plain[0] is plain[3]
        x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(plain(x), shared(x))
        assert isinstance(to_dense(conv), nn.Conv2d)

    def test_resnet_of_pytorch(self):
        import torch
        from torch import nn

        class Block(nn.Module):
            def __init__(self, a, b, stride):
                super().__init__()
                self.c1, self.n1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
                self.c2, self.n2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
                self.short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

            def forward(self, x):
                y = self.n2(self.c2(torch.relu(self.n1(self.c1(x)))))
                return torch.relu(y + self.short(x))

        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block(8, 8, 1), Block(8, 16, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip
        settle(module, 3, 14, 14)
        x = RNG(3).normal(size=(32, 3, 14, 14)).astype(np.float32)
        check(export(module, x[:2]), x)


def test_projection_of_dense_layers():
    rng = RNG(10)
    w = {"k.weight": rng.normal(size=(16, 3, 3, 3)), "l": rng.normal(size=(16, 10))}
    nodes = [node("Conv", ["x", "k.weight"], "a"), node("Relu", "a", "r"), node("GlobalAveragePool", "r", "p"),
             node("Flatten", "p", "f"), helper.make_node("MatMul", ["f", "l"], ["y"], name="/last/MatMul")]  # fmt: skip
    proto, x = model(nodes, w, ["n", 3, 8, 8]), rng.normal(size=(20, 3, 8, 8)).astype(np.float32)
    assert [la.block_size for la in compile(proto, x).layers] == [1, 1, 1]
    assert [la.block_size for la in compile(proto, x, block_size=4).layers] == [4, 1, 4]
    program = compile(proto, x, block_size={"last": 8})
    assert [la.block_size for la in program.layers] == [1, 1, 8]
    with pytest.raises(CompileError, match="block_size names nothing.*are k, last"):
        compile(proto, x, block_size={"nothing": 8})
    with pytest.raises(CompileError, match="block_size=5: the core executes"):
        compile(proto, x, block_size=5)


# ---- refusals ----------------------------------------------------------------------------------------------------
K = {"k": np.ones((4, 4, 3, 3)), "d": np.ones((4, 1, 3, 3)), "c": np.ones((4, 6, 1, 1)), "w": np.ones((4, 4)),
     "i": np.array([0]), "seven": np.ones(7)}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Concat", "x x", axis=1)], r"Operator Concat at 'y'.*add them"),
        ([helper.make_node("LeakyRelu", ["x"], ["y"], name="act")], "LeakyRelu at 'act'.*no slope"),
        ([node("Frob", "x")], "Operator Frob at 'y' cannot be compiled; supported are Conv"),
        ([helper.make_node("Conv", ["x", "k"], ["y"], domain="my.ops")], "my.ops.Conv"),
        ([node("Conv", "x d", group=4)], "group=4.*group=1"),
        ([node("Conv", "x k", dilations=[2, 2])], "dilation"),
        ([node("Conv", "x k", pads=[-1, 0, 0, 0])], "pads"),
        ([node("Conv", "x c")], "6 channels on 4"),
        ([node("Relu", "x", "a"), node("Conv", "x a", "y")], "'a' is not constant"),
        ([node("Clip", "x", min=-1.0, max=1.0)], "clips to 0..c"),
        ([node("MaxPool", "x", "y i2", kernel_shape=[2, 2]), node("Relu", "i2", "z")], "second output"),
        ([node("MaxPool", "x", kernel_shape=[2, 2], strides=[4, 4], ceil_mode=1)], "ceil_mode"),
        ([node("AveragePool", "x", kernel_shape=[2, 2], pads=[1, 1, 1, 1])], "count_include_pad"),
        ([node("ReduceMean", "x", axes=[1])], "rows and columns"),
        ([node("Transpose", "x", perm=[0, 1, 3, 2])], "Transpose"),
        ([node("MatMul", "w x")], "constant on the left"),
        ([node("MatMul", "x w")], "flatten or pool"),
        ([node("Add", "x seven")], r"operand of shape \(7,\)"),
        ([node("Div", "w x")], "division by a map"),
        ([node("GlobalAveragePool", "x", "p"), node("Softmax", "p", "s"), node("Relu", "s")], "A softmax before Relu"),
        ([node("Flatten", "x", axis=2)], "axis=2"),
        ([node("Gather", "x i", axis=1)], "Gather"),
        ([node("Cast", "x", to=TensorProto.INT32)], "Cast to INT32"),
        ([node("Identity", "x")], "no layer that the core could execute"),
        ([node("Identity", "w")], "nothing that depends on the input"),
    ],
)
def test_refusals(nodes, message):
    with pytest.raises(CompileError, match=message):
        compile(model(nodes, K, ["n", 4, 9, 9]), RNG(0).normal(size=(4, 4, 9, 9)))


def test_recurrent_refusals():
    h = 4
    w = {"w": np.ones((2, 4 * h, 3)), "r": np.ones((2, 4 * h, h)), "h0": np.ones((1, 1, h)), "lens": np.array([3])}

    def refused(message, inputs=("x", "w", "r"), **attributes):
        with pytest.raises(CompileError, match=message):
            from_onnx(model([helper.make_node("LSTM", list(inputs), ["y"], hidden_size=h, **attributes)], w, [9, 1, 3]))

    refused("direction=bidirectional", direction="bidirectional")
    refused("clip=", clip=3.0)
    refused("begins with a state", ("x", "w", "r", "", "", "h0"))
    refused("sequence_lens", ("x", "w", "r", "", "lens"))
    refused("activations", activations=["Relu", "Tanh", "Tanh"])


def test_inputs_that_are_not_understood(tmp_path):
    nodes, w = [node("Conv", "x k")], {"k": np.ones((4, 4, 3, 3))}
    with pytest.raises(CompileError, match=r"not 'height', 'width'.*make_dynamic_shape_fixed"):
        from_onnx(model(nodes, w, ["n", 4, "height", "width"]))
    with pytest.raises(CompileError, match="of type STRING"):
        from_onnx(model(nodes, w, ["n", 4, 9, 9], dtype=TensorProto.STRING))
    with pytest.raises(CompileError, match="5 dimensions"):
        from_onnx(model(nodes, w, ["n", 4, 9, 9, 9]))
    two = model(nodes, w, ["n", 4, 9, 9])
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(CompileError, match="2 inputs.*'x', 'z'"):
        from_onnx(two)
    (tmp_path / "noise.onnx").write_bytes(b"no model at all")
    with pytest.raises(CompileError, match="ONNX model"):
        from_onnx(tmp_path / "noise.onnx")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "missing.onnx")
