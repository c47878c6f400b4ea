# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn's LSTM and GRU against torch's own, scipy.linalg.circulant, a plain loop, gradcheck."""

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from circ_overlay.nn import BlockCirculantGRU, BlockCirculantLSTM

LENGTHS = [2, 5, 1, 5]  # of sequences; not sorted
CASES = [  # (input_size, hidden_size, block_size, proj_size)
    (8, 4, 4, 0),
    (3, 5, 2, 3),
    (5, 7, 3, 2),
    (6, 3, 8, 0),
    (4, 6, 1, 4),
    (3, 5, 40, 2),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw_states(layer, batch, dtype=torch.float64):
    widths = [layer.output_size, layer.hidden_size][: 1 if isinstance(layer, BlockCirculantGRU) else 2]
    states = tuple(torch.randn(layer.num_layers, batch, n, dtype=dtype) for n in widths)
    return states if len(states) == 2 else states[0]


def check_gradients(layer, packed: bool) -> None:
    x = torch.randn(4, 5, layer.input_size, dtype=torch.float64, requires_grad=True)
    state = draw_states(layer, 4)
    states = state if isinstance(state, tuple) else (state,)
    names = [name for name, _ in layer.named_parameters()]

    def apply(x, *rest):
        given = dict(zip(names, rest))
        states = rest[len(names) :]
        inputs = pack_padded_sequence(x, LENGTHS, True, enforce_sorted=False) if packed else x
        y, end = torch.func.functional_call(layer, given, (inputs, states if len(states) > 1 else states[0]))
        return (y.data if packed else y, *(end if isinstance(end, tuple) else (end,)))

    wanted = (x, *layer.parameters(), *(s.requires_grad_() for s in states))
    assert torch.autograd.gradcheck(apply, wanted, fast_mode=True)


@pytest.mark.parametrize(("inn", "hidden", "k", "proj"), CASES)
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_lstm_gradcheck(inn, hidden, k, proj, peephole, packed) -> None:
    torch.manual_seed(0)
    check_gradients(
        BlockCirculantLSTM(inn, hidden, k, 2, peephole=peephole, proj_size=proj, dtype=torch.float64), packed
    )


@pytest.mark.parametrize(("inn", "hidden", "k"), [case[:3] for case in CASES])
@pytest.mark.parametrize("packed", [False, True])
def test_gru_gradcheck(inn, hidden, k, packed) -> None:
    torch.manual_seed(0)
    check_gradients(BlockCirculantGRU(inn, hidden, k, 2, dtype=torch.float64), packed)


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_gradcheck_entry_by_entry(build) -> None:
    torch.manual_seed(0)
    layer = build(3, 5, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def apply(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))[0]

    assert torch.autograd.gradcheck(apply, (x, *layer.parameters()))


def dense_twin(layer, dtype=torch.float64):
    sizes = (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first)
    if isinstance(layer, BlockCirculantGRU):
        twin = nn.GRU(*sizes, dtype=dtype)
    else:
        twin = nn.LSTM(*sizes, proj_size=layer.proj_size, dtype=dtype)
    twin.load_state_dict(layer.to_dense())
    return twin


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
@pytest.mark.parametrize(("inn", "hidden", "k", "proj"), [*CASES, (40, 70, 16, 33), (70, 100, 64, 0)])
@pytest.mark.parametrize(
    ("layers", "bias", "batch_first"), [(1, True, True), (2, False, True), (3, True, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_dense_layer(build, inn, hidden, k, proj, layers, bias, batch_first, dtype) -> None:
    torch.manual_seed(1)
    more = {"proj_size": proj} if build is BlockCirculantLSTM else {}
    layer = build(inn, hidden, k, layers, bias=bias, batch_first=batch_first, dtype=dtype, **more)
    twin = dense_twin(layer, dtype).double()
    wide = torch.randn(4, 5, inn, dtype=torch.float64)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    near = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    state = draw_states(layer, 4, torch.float64)
    cast = tuple(s.to(dtype) for s in state) if isinstance(state, tuple) else state.to(dtype)

    x = wide if batch_first else wide.transpose(0, 1)
    torch.testing.assert_close(layer(x.to(dtype)), twin(x), **near)
    torch.testing.assert_close(layer(x.to(dtype), cast), twin(x, state), **near)
    torch.testing.assert_close(layer(wide[0].to(dtype)), twin(wide[0]), **near)
    for lengths, is_sorted in ((LENGTHS, False), (sorted(LENGTHS, reverse=True), True)):
        packed = pack_padded_sequence(wide, lengths, True, enforce_sorted=is_sorted)
        y, end = layer(packed.to(dtype), cast)
        expected, expected_end = twin(packed, state)
        assert isinstance(y, PackedSequence)
        torch.testing.assert_close(end, expected_end, **near)
        torch.testing.assert_close(pad_packed_sequence(y), pad_packed_sequence(expected), **near)


def circulant_matrix(weight, groups, rows, columns):
    parts = []
    for part in np.split(weight.detach().numpy(), groups):
        blocks = [[scipy.linalg.circulant(block) for block in line] for line in part]
        parts.append(np.block(blocks)[:rows, :columns])
    return np.concatenate(parts)


@pytest.mark.parametrize(("inn", "hidden", "k", "proj"), CASES)
def test_lstm_with_peephole_by_the_definition(inn, hidden, k, proj) -> None:
    torch.manual_seed(2)
    layer = BlockCirculantLSTM(inn, hidden, k, peephole=True, proj_size=proj, dtype=torch.float64)
    x = torch.randn(5, inn, dtype=torch.float64)
    width = proj or hidden
    w_x = circulant_matrix(layer.weight_ih_l0, 4, hidden, inn)
    w_h = circulant_matrix(layer.weight_hh_l0, 4, hidden, width)
    down = circulant_matrix(layer.weight_hr_l0, 1, proj, hidden) if proj else np.eye(hidden)
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().numpy()
    v_i, v_f, v_o = layer.peephole_l0.detach().numpy()

    def logistic(a):
        return 1 / (1 + np.exp(-a))

    h, c, outputs = np.zeros(width), np.zeros(hidden), []
    for step in x.numpy():
        i, f, g, o = np.split(w_x @ step + w_h @ h + bias, 4)
        new = logistic(f + v_f * c) * c + logistic(i + v_i * c) * np.tanh(g)
        h, c = down @ (logistic(o + v_o * new) * np.tanh(new)), new
        outputs.append(h)
    y, (h_n, c_n) = layer(x)
    np.testing.assert_allclose(y.detach().numpy(), outputs, atol=1e-13)
    np.testing.assert_allclose(h_n[0].detach().numpy(), h, atol=1e-13)
    np.testing.assert_allclose(c_n[0].detach().numpy(), c, atol=1e-13)
    dense = layer.to_dense()
    np.testing.assert_array_equal(dense["weight_ih_l0"].numpy(), w_x)
    np.testing.assert_array_equal(dense["weight_hh_l0"].numpy(), w_h)


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_a_packed_sequence_is_its_sequences_one_by_one(build) -> None:
    layer = build(6, 9, 4, num_layers=2, dtype=torch.float64)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    y, lengths = pad_packed_sequence(
        layer(pack_padded_sequence(x, LENGTHS, True, False))[0], batch_first=True
    )
    assert lengths.tolist() == LENGTHS
    for row, sequence, length in zip(y, x, LENGTHS):
        torch.testing.assert_close(row[:length], layer(sequence[:length])[0])
        assert not row[length:].any()


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_empty_batch(build) -> None:
    for k in (4, 64):
        layer = build(6, 9, k)
        x = torch.randn(0, 5, 6, requires_grad=True)
        y, _ = layer(x)
        assert y.shape == (0, 5, 9)
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert not layer.weight_ih_l0.grad.any()


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_gradients_equal_the_dense_layers(build) -> None:
    torch.manual_seed(3)
    layer = build(12, 16, 4, num_layers=2, dtype=torch.float64)
    twin = dense_twin(layer)
    x = torch.randn(3, 6, 12, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    layer(x)[0].square().sum().backward()
    twin(other)[0].square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.bias_hh_l1.grad, twin.bias_hh_l1.grad)


@pytest.mark.parametrize("build", [BlockCirculantLSTM, BlockCirculantGRU])
def test_to_dense_project_and_state_dict(build) -> None:
    one, two = build(10, 7, 4, num_layers=2), build(10, 7, 4, num_layers=2)
    parameter, kept = two.weight_hh_l1, two.bias_hh_l0.detach().clone()
    assert two.project_(one.to_dense()) is two
    assert two.weight_hh_l1 is parameter
    torch.testing.assert_close(two.weight_hh_l1, one.weight_hh_l1)
    torch.testing.assert_close(two.bias_hh_l0.detach(), kept, rtol=0, atol=0)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 10)
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)
    assert [*one.state_dict()] == [
        *(nn.LSTM if build is BlockCirculantLSTM else nn.GRU)(10, 7, 2).state_dict()
    ]


def test_dropout_is_between_layers_and_for_training() -> None:
    torch.manual_seed(4)
    layer = BlockCirculantLSTM(6, 8, 4, num_layers=2, dropout=0.5)
    x = torch.randn(2, 3, 6)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)
    one = BlockCirculantLSTM(6, 8, 4, dropout=0.5)
    torch.testing.assert_close(one(x), one(x), rtol=0, atol=0)


def test_repr() -> None:
    assert repr(BlockCirculantLSTM(153, 1024, 8, 2, peephole=True, proj_size=512)) == (
        "BlockCirculantLSTM(153, 1024, block_size=8, num_layers=2, peephole=True, proj_size=512)"
    )
    assert repr(BlockCirculantGRU(39, 64, 8, batch_first=False)) == (
        "BlockCirculantGRU(39, 64, block_size=8, batch_first=False)"
    )


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"block_size is 200; allowed is 1"):
        BlockCirculantLSTM(10, 7, 200)
    with pytest.raises(ValueError, match=r"num_layers is 0; a recurrent layer needs at least 1"):
        BlockCirculantGRU(10, 7, 4, num_layers=0)
    with pytest.raises(
        ValueError, match=r"proj_size is 7; allowed is 0 \(no projection\) to hidden_size - 1 = 6"
    ):
        BlockCirculantLSTM(10, 7, 4, proj_size=7)
    with pytest.raises(ValueError, match=r"dropout is 1; allowed is a probability"):
        BlockCirculantLSTM(10, 7, 4, dropout=1)
    layer = BlockCirculantLSTM(10, 7, 4)
    for shape in [(2, 3, 7), (2, 0, 10), (0, 10), (10,), (1, 2, 3, 10), (2, 3, 0)]:
        with pytest.raises(
            ValueError, match=rf"x is a tensor of shape \({shape[0]},.*this layer needs \(batch, steps, 10\)"
        ):
            layer(torch.ones(shape))
    with pytest.raises(ValueError, match=r"PackedSequence with data of shape \(4, 7\).*check batch_first"):
        layer(pack_padded_sequence(torch.ones(2, 2, 7), [2, 2], True))
    with pytest.raises(
        ValueError, match=r"an initial state has shape \(1, 3, 7\); this layer needs \(1, 2, 7\)"
    ):
        layer(torch.ones(2, 3, 10), (torch.ones(1, 3, 7), torch.ones(1, 3, 7)))
    with pytest.raises(ValueError, match=r"x has dtype torch\.float16"):
        layer(torch.ones(2, 3, 10, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"weight_ih_l0 is missing; this layer needs \(28, 10\)"):
        layer.project_({})
    with pytest.raises(ValueError, match=r"weight_hh_l0 has shape \(21, 7\); this layer needs \(28, 7\)"):
        layer.project_({"weight_ih_l0": torch.ones(28, 10), "weight_hh_l0": torch.ones(21, 7)})
