# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn.BlockCirculantConv2d against scipy.linalg.circulant, torch's own and gradcheck."""

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("torch")

import torch
from torch.nn import functional

from circ_overlay import circulant
from circ_overlay.nn import BlockCirculantConv2d

CASES = [  # (in_channels, out_channels, kernel_size, block_size, stride, padding)
    (8, 4, 3, 4, 1, 1),
    (3, 5, (2, 3), 2, (2, 1), (0, 1)),
    (7, 6, 1, 4, 1, 0),
    (4, 7, 3, 5, 2, 1),
    (5, 3, (1, 2), 8, 1, (1, 0)),
    (3, 2, 3, 1, 1, 2),
    (4, 4, (3, 2), 3, (1, 3), 1),
    (2, 3, 2, 40, 2, 0),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense_oracle(layer: BlockCirculantConv2d) -> torch.Tensor:
    """The layer's kernel by the definition, tap by tap and block by block, in float64."""
    w = layer.weight.detach().double().numpy()
    _, _, r, s, _ = w.shape
    kernel = np.empty((layer.out_channels, layer.in_channels, r, s))
    for row in range(r):
        for column in range(s):
            blocks = [[scipy.linalg.circulant(block[row, column]) for block in line] for line in w]
            kernel[:, :, row, column] = np.block(blocks)[: layer.out_channels, : layer.in_channels]
    return torch.from_numpy(kernel)


@pytest.mark.parametrize(("inn", "out", "size", "k", "stride", "padding"), CASES)
def test_gradcheck(inn, out, size, k, stride, padding) -> None:
    torch.manual_seed(0)
    layer = BlockCirculantConv2d(inn, out, size, k, stride, padding, dtype=torch.float64)
    x = torch.randn(2, inn, 4, 3, dtype=torch.float64, requires_grad=True)

    def apply(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(apply, (x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("inn", "out", "size", "k", "stride", "padding"), [*CASES, (70, 130, 3, 16, 1, 1), (130, 64, 3, 64, 2, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(2,), (), (0,)])
def test_equals_the_dense_layer(inn, out, size, k, stride, padding, dtype, lead) -> None:
    torch.manual_seed(1)
    layer = BlockCirculantConv2d(inn, out, size, k, stride, padding, dtype=dtype)
    x = torch.randn(*lead, inn, 6, 5, dtype=dtype, requires_grad=True)
    dense = dense_oracle(layer).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y = layer(x)
    expected = functional.conv2d(wide, dense, layer.bias.detach().double(), stride, padding)
    assert y.dtype == dtype
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)

    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    expected.backward(grad_y.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=tolerance, atol=4 * tolerance)
    # The weight's gradient sums the dense one along each wrapped diagonal.
    pulled = torch.zeros(layer.weight.shape, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(out), torch.arange(inn), indexing="ij")
    of_tap = pulled.movedim((2, 3), (-2, -1))
    of_tap.index_put_((rows // k, columns // k, (rows - columns) % k), dense.grad, accumulate=True)
    torch.testing.assert_close(layer.weight.grad.double(), pulled, rtol=tolerance, atol=100 * tolerance)


def test_agrees_with_the_numpy_reference() -> None:
    layer = BlockCirculantConv2d(13, 21, 3, 8, stride=2, padding=1, bias=False, dtype=torch.float64)
    x = torch.randn(2, 13, 7, 6, dtype=torch.float64)
    expected = circulant.conv2d(layer.weight.detach().numpy(), x.numpy(), 21, 2, 1)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-13)


def test_takes_any_memory_layout() -> None:
    layer = BlockCirculantConv2d(8, 6, 3, 4)
    x = torch.randn(2, 8, 5, 5)
    strided = torch.randn(2, 8, 10, 5)[:, :, ::2].copy_(x)
    for other in (x.to(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(layer(other), layer(x))


def test_only_the_gradients_asked_for() -> None:
    layer = BlockCirculantConv2d(6, 5, 3, 4)
    x = torch.randn(2, 6, 4, 4)
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.zero_grad()
    layer.weight.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_layer_first_used_for_inference_can_be_trained() -> None:
    # 25 is used nowhere else: its constants are made here.
    layer = BlockCirculantConv2d(6, 5, 3, 25)
    with torch.inference_mode():
        layer(torch.randn(1, 6, 4, 4))
    layer(torch.randn(1, 6, 4, 4)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(("inn", "out", "size", "k", "stride", "padding"), CASES)
def test_to_dense_and_project_invert_each_other(inn, out, size, k, stride, padding) -> None:
    layer = BlockCirculantConv2d(inn, out, size, k, stride, padding)
    dense = layer.to_dense()
    assert not dense.requires_grad
    torch.testing.assert_close(dense.double(), dense_oracle(layer), rtol=0, atol=0)
    twin = BlockCirculantConv2d(inn, out, size, k, stride, padding)
    parameter, kept = twin.weight, twin.bias.detach().clone()
    assert twin.project_(dense) is twin
    assert twin.weight is parameter
    torch.testing.assert_close(twin.to_dense(), dense)
    torch.testing.assert_close(twin.bias.detach(), kept, rtol=0, atol=0)


def test_state_dict_round_trip() -> None:
    one, two = BlockCirculantConv2d(10, 7, 3, 4), BlockCirculantConv2d(10, 7, 3, 4)
    assert {name: tuple(v.shape) for name, v in one.state_dict().items()} == {
        "weight": (2, 3, 3, 3, 4),
        "bias": (7,),
    }
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 10, 5, 5)
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)
    assert list(BlockCirculantConv2d(10, 7, 3, 4, bias=False).state_dict()) == ["weight"]


def test_initial_outputs_have_the_dense_layers_variance() -> None:
    torch.manual_seed(2)
    x = torch.randn(4, 128, 10, 10)
    ours, theirs = BlockCirculantConv2d(128, 64, 3, 16)(x), torch.nn.Conv2d(128, 64, 3)(x)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_repr() -> None:
    assert repr(BlockCirculantConv2d(64, 32, 3, 8, 2, 1)) == (
        "BlockCirculantConv2d(in_channels=64, out_channels=32, kernel_size=(3, 3), block_size=8, "
        "stride=(2, 2), padding=(1, 1), bias=True)"
    )


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"block_size is 129; allowed is 1"):
        BlockCirculantConv2d(10, 7, 3, 129)
    with pytest.raises(ValueError, match=r"kernel_size is 0; allowed is an integer of at least 1, or a pair"):
        BlockCirculantConv2d(10, 7, 0, 4)
    with pytest.raises(ValueError, match=r"stride is \(1, 0\); allowed"):
        BlockCirculantConv2d(10, 7, 3, 4, stride=(1, 0))
    with pytest.raises(ValueError, match=r"padding is -1; allowed is an integer of at least 0"):
        BlockCirculantConv2d(10, 7, 3, 4, padding=-1)
    with pytest.raises(ValueError, match=r"padding is 'same'; allowed"):
        BlockCirculantConv2d(10, 7, 3, 4, padding="same")
    layer = BlockCirculantConv2d(10, 7, 3, 4)
    with pytest.raises(ValueError, match=r"x has shape \(1, 7, 5, 5\); this layer needs \(batch, 10, height"):
        layer(torch.ones(1, 7, 5, 5))
    with pytest.raises(ValueError, match=r"x has 2 x 5 pixels, 2 x 5 when padded; this layer has 3 x 3 taps"):
        layer(torch.ones(1, 10, 2, 5))
    with pytest.raises(ValueError, match=r"x has dtype torch\.float64 and the layer's weight torch\.float32"):
        layer(torch.ones(1, 10, 5, 5, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"dense_weight has shape \(7, 10\); this layer needs \(7, 10, 3, 3\)"
    ):
        layer.project_(torch.ones(7, 10))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"under torch\.autocast"),
    ):
        layer(torch.ones(1, 10, 5, 5))
