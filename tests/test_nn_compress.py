# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn.compress: what it replaces, what it leaves, that it is nearest, that the model stays."""

import copy
import re

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from circ_overlay.nn import (
    BlockCirculantConv2d,
    BlockCirculantGRU,
    BlockCirculantLinear,
    BlockCirculantLSTM,
    BlockCirculantPatchConv2d,
    compress,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Speech(nn.Module):
    """A network with each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.lstm = nn.LSTM(32, 24, 2, batch_first=True, dropout=0.1, proj_size=16)
        self.gru = nn.GRU(16, 12, bias=False)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, 4, steps, 8)
        y = self.conv(x)
        y = self.lstm(y.permute(0, 2, 1, 3).flatten(2))[0]
        return self.head(self.gru(y.transpose(0, 1))[0][-1])


def expand(module: nn.Module) -> torch.Tensor:
    return module.to_dense()["weight_ih_l0"] if hasattr(module, "weight_ih_l0") else module.to_dense()


@pytest.mark.parametrize("training", [False, True])
def test_every_kind_of_layer(training: bool) -> None:
    torch.manual_seed(0)
    model = Speech().train(training)
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    random = torch.get_rng_state()
    twin, report = compress(model, 4)
    assert torch.equal(torch.get_rng_state(), random)
    # The model is as it was, and shares nothing with its copy.
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, model.state_dict()[name]) for name, v in before.items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}

    kinds = [BlockCirculantConv2d, BlockCirculantLSTM, BlockCirculantGRU, BlockCirculantLinear]
    assert [type(m) for m in (twin.conv[0], twin.lstm, twin.gru, twin.head)] == kinds
    assert all(m.training is training for m in twin.modules())
    assert [p.requires_grad for p in twin.head.parameters()] == [False, True]
    assert [row.name for row in report.layers] == ["conv.0", "lstm", "gru", "head"]
    assert not report.left
    assert report.before == sum(p.numel() for p in model.parameters())
    assert report.after == sum(p.numel() for p in twin.parameters())
    assert report.before - report.after == sum(row.before - row.after for row in report.layers)
    head = report.layers[-1]
    assert (head.kind, head.shape, head.block_size, head.before, head.after) == (
        "Linear",
        (10, 12),
        4,
        130,
        46,
    )
    error = (twin.head.to_dense() - model.head.weight).norm() / model.head.weight.norm()
    assert head.error == pytest.approx(error.item(), rel=1e-5)
    torch.testing.assert_close(twin.lstm.bias_hh_l1, model.lstm.bias_hh_l1, rtol=0, atol=0)

    # It computes what the dense model does with the expanded matrices, and can be trained.
    dense = copy.deepcopy(model).eval()
    for name in ("conv.0", "head"):
        dense.get_submodule(name).weight.data = twin.get_submodule(name).to_dense()
    dense.lstm.load_state_dict(twin.lstm.to_dense())
    dense.gru.load_state_dict(twin.gru.to_dense())
    x = torch.randn(3, 4, 6, 8)
    torch.testing.assert_close(twin.eval()(x), dense(x), rtol=1e-5, atol=1e-6)
    twin.train()(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in twin.parameters())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_circulant_model_survives(data: st.DataObject) -> None:
    """A dense layer whose matrix is block-circulant already is compressed without error."""
    inn, out, k = (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), data.draw(st.integers(2, 9)))
    kind = data.draw(st.sampled_from(["linear", "conv", "lstm", "gru"]))
    bias = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    if kind == "linear":
        ours, dense = BlockCirculantLinear(inn, out, k, bias), nn.Linear(inn, out, bias)
        dense.weight.data = ours.to_dense()
        x = torch.randn(3, inn)
    elif kind == "conv":
        shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)))
        stride, padding = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
        build = BlockCirculantPatchConv2d if inn <= 4 and inn % k else BlockCirculantConv2d
        ours = build(inn, out, shape, k, stride, padding, bias)
        dense = nn.Conv2d(inn, out, shape, stride, padding, bias=bias)
        dense.weight.data = ours.to_dense()
        x = torch.randn(2, inn, 4, 5)
    else:
        build, theirs = (BlockCirculantLSTM, nn.LSTM) if kind == "lstm" else (BlockCirculantGRU, nn.GRU)
        ours, dense = build(inn, out, k, 2, bias=bias), theirs(inn, out, 2, bias=bias, batch_first=True)
        dense.load_state_dict(ours.to_dense())
        x = torch.randn(2, 3, inn)
    model, report = compress(dense, k)
    if not report.layers:  # blocks larger than a small matrix
        assert "parameters, and has" in report.left[""]
        assert model is not dense
        return
    assert report.layers[0].error < 1e-6
    assert report.layers[0].after < report.layers[0].before
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "k", "kind"),
    [(1, 8, BlockCirculantPatchConv2d), (3, 16, BlockCirculantPatchConv2d), (4, 8, BlockCirculantPatchConv2d),
     (4, 4, BlockCirculantConv2d), (2, 2, BlockCirculantConv2d), (5, 8, BlockCirculantConv2d)],
)  # fmt: skip
def test_convolutions_of_few_channels_have_blocks_over_the_patch(channels, k, kind) -> None:
    twin, report = compress(nn.Sequential(nn.Conv2d(channels, 16, 3, 2, padding="valid"), nn.ReLU()), k)
    assert type(twin[0]) is kind
    assert (twin[0].stride, twin[0].padding) == ((2, 2), (0, 0))
    assert report.layers[0].after == sum(p.numel() for p in twin.parameters())
    assert not compress(twin, k)[1].layers


def test_choice_by_name_by_function_and_skip() -> None:
    model = nn.Sequential(
        nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), nn.Linear(16, 8)
    )
    twin, report = compress(model, only={"0": 4, "1.1": 8})
    assert [(row.name, row.block_size) for row in report.layers] == [("0", 4), ("1.1", 8)]
    assert report.left == {"1.0": "not chosen by only", "2": "not chosen by only"}
    assert type(twin[2]) is nn.Linear
    _, report = compress(model, only=lambda name, layer: layer.out_features // 2 if name != "0" else None)
    assert [(row.name, row.block_size) for row in report.layers] == [("1.0", 8), ("1.1", 8), ("2", 4)]
    _, report = compress(model, 4, skip=["1", "2"])
    assert [row.name for row in report.layers] == ["0"]
    assert report.left == dict.fromkeys(("1.0", "1.1", "2"), "named in skip")


UNSUPPORTED = [
    (nn.Conv2d(8, 8, 3, groups=2), "has groups=2"),
    (nn.Conv2d(8, 8, 3, dilation=2), r"has dilation=\(2, 2\)"),
    (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "has padding_mode='circular'"),
    (nn.Conv2d(8, 8, 2, padding="same"), r"padding='same' with an even kernel_size=\(2, 2\)"),
    (nn.Conv1d(8, 8, 3), "Conv1d has no block-circulant counterpart"),
    (nn.Embedding(8, 8), "Embedding has no block-circulant counterpart"),
    (nn.LSTMCell(8, 8), "LSTMCell has no block-circulant counterpart"),
    (nn.LSTM(8, 8, bidirectional=True), "is bidirectional"),
    (nn.Linear(8, 8).bfloat16(), r"is torch\.bfloat16; allowed are float32 and float64"),
    (
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        "ParametrizedLinear has no block-circulant counter",
    ),
    (BlockCirculantLinear(8, 8, 2), "is block-circulant already"),
    (nn.Linear(2, 2), r"with k = 4 it would have 6 parameters, and has 6"),
]


@pytest.mark.parametrize(("layer", "reason"), UNSUPPORTED, ids=lambda value: str(value)[:30])
def test_unsupported_layers_are_left_alone_and_named(layer: nn.Module, reason: str) -> None:
    twin, report = compress(nn.Sequential(layer), 4)
    assert type(twin[0]) is type(layer)
    assert not report.layers
    assert re.search(reason, report.left["0"]), report.left
    assert "left alone: 0: " in str(report)


@pytest.mark.parametrize("training", [False, True])
def test_attention_keeps_working(training: bool) -> None:
    # In evaluation, torch's encoder layer reads the weights of its linear layers by itself.
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 8)).train(
        training
    )
    twin, report = compress(model, 4)
    assert [row.name for row in report.layers] == ["1"]
    assert report.left["0.linear1"] == "TransformerEncoderLayer, which holds it, reads its weight by itself"
    with torch.no_grad():
        assert twin(torch.randn(2, 3, 16)).shape == (2, 3, 8)


def test_shared_layers_stay_shared_and_shared_parameters_stay() -> None:
    layer = nn.Linear(8, 8)
    twin, report = compress(nn.Sequential(layer, nn.ReLU(), layer), 4)
    assert twin[0] is twin[2]
    assert type(twin[0]) is BlockCirculantLinear
    assert [row.name for row in report.layers] == ["0"]
    assert report.after == sum(p.numel() for p in twin.parameters())
    tied = nn.ModuleDict({"embed": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False)})
    tied["head"].weight = tied["embed"].weight
    twin, report = compress(tied, 4)
    assert twin["head"].weight is twin["embed"].weight
    assert report.left["head"] == "shares a parameter with another layer"


def test_layers_with_hooks_are_left() -> None:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda *_: None)
    assert compress(layer, 4)[1].left == {"": "has hooks, which may read its weight"}


def test_the_model_may_be_a_layer_and_is_float64() -> None:
    twin, report = compress(nn.Linear(8, 8).double(), 4)
    assert twin.weight.dtype == torch.float64
    assert report.layers[0].name == ""
    assert "(model)" in str(report)


def test_padding_by_name() -> None:
    for padding in ("same", "valid"):
        dense = nn.Conv2d(8, 8, (3, 5), padding=padding)
        twin, _ = compress(dense, 2)
        assert twin(torch.randn(1, 8, 6, 7)).shape == dense(torch.randn(1, 8, 6, 7)).shape


def test_code_that_packs_sequences_keeps_working() -> None:
    dense = nn.GRU(8, 8, batch_first=True)
    twin, _ = compress(dense, 4)
    packed = pack_padded_sequence(torch.randn(3, 4, 8), [4, 2, 1], batch_first=True)
    assert twin(packed)[0].data.shape == dense(packed)[0].data.shape


def test_report_is_a_table() -> None:
    _, report = compress(nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)), 16, skip=["2"])
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "k", "before", "after", "error"]
    assert lines[1].split()[:8] == ["0", "Linear", "128", "x", "256", "16", "32,896", "2,176"]
    assert lines[2].split() == ["parameters", "34,186", "3,466"]
    assert lines[3] == "left alone: 2: named in skip"


def test_messages() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"'head' is not in the model; its named_modules\(\) has .*0"):
        compress(model, only={"head": 4})
    with pytest.raises(ValueError, match=r"'1' is not in the model"):
        compress(model, 4, skip=["1"])
    with pytest.raises(ValueError, match=r"skip is '0'; allowed is a list of names: give \['0'\]"):
        compress(model, 4, skip="0")
    with pytest.raises(ValueError, match=r"neither block_size nor only is given"):
        compress(model)
    with pytest.raises(ValueError, match=r"block_size is 0; allowed is 1"):
        compress(model, 0)
    with pytest.raises(ValueError, match=r"block_size is 256; allowed is 1"):
        compress(model, only={"0": 256})
