# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn.BlockCirculantPatchConv2d against scipy.linalg.circulant, torch's own and gradcheck."""

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("torch")

import torch
from torch.nn import functional

from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d

CASES = [  # (in_channels, out_channels, kernel_size, block_size, stride, padding)
    (1, 8, 3, 4, 1, 1),
    (3, 5, (2, 3), 4, (2, 1), (0, 1)),
    (3, 8, 3, 8, 1, 1),
    (4, 7, 3, 5, 2, 1),
    (2, 3, (1, 2), 8, 1, (1, 0)),
    (3, 2, 3, 1, 1, 2),
    (1, 4, (3, 2), 3, (1, 3), 1),
    (2, 3, 2, 40, 2, 0),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense_oracle(layer: BlockCirculantPatchConv2d) -> torch.Tensor:
    """The layer's kernel by the definition, element by element of the patch, in float64."""
    w = layer.weight.detach().double().numpy()
    (r, s), channels = layer.kernel_size, layer.in_channels
    matrix = np.block([[scipy.linalg.circulant(block) for block in line] for line in w])
    kernel = np.empty((layer.out_channels, channels, r, s))
    for i in range(r):
        for j in range(s):
            for c in range(channels):
                kernel[:, c, i, j] = matrix[: layer.out_channels, (i * s + j) * channels + c]
    return torch.from_numpy(kernel)


@pytest.mark.parametrize("lead", [(2,), ()])
@pytest.mark.parametrize(("inn", "out", "size", "k", "stride", "padding"), CASES)
def test_gradcheck(inn, out, size, k, stride, padding, lead) -> None:
    torch.manual_seed(0)
    layer = BlockCirculantPatchConv2d(inn, out, size, k, stride, padding, dtype=torch.float64)
    x = torch.randn(*lead, inn, 4, 3, dtype=torch.float64, requires_grad=True)

    def apply(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(apply, (x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("inn", "out", "size", "k", "stride", "padding"), [*CASES, (3, 64, 7, 16, 2, 3), (4, 130, 5, 64, 1, 2)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(2,), (), (0,)])
def test_equals_the_dense_layer(inn, out, size, k, stride, padding, dtype, lead) -> None:
    torch.manual_seed(1)
    layer = BlockCirculantPatchConv2d(inn, out, size, k, stride, padding, dtype=dtype)
    x = torch.randn(*lead, inn, 8, 9, dtype=dtype)
    dense = dense_oracle(layer)
    torch.testing.assert_close(layer.to_dense().double(), dense, rtol=0, atol=0)
    expected = functional.conv2d(x.double(), dense, layer.bias.detach().double(), stride, padding)
    y = layer(x)
    assert y.dtype == dtype
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(y.detach().double(), expected, rtol=tolerance, atol=tolerance)


def test_is_a_linear_layer_on_patches_in_the_documented_order() -> None:
    """What the accelerator sees: bytes of a patch row by row, the channels of a pixel side by side."""
    layer = BlockCirculantPatchConv2d(3, 10, (2, 3), 8, dtype=torch.float64)
    linear = BlockCirculantLinear(18, 10, 8, dtype=torch.float64)
    linear.load_state_dict(layer.state_dict())
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    y = layer(x)
    for row in range(3):
        for column in range(3):
            patch = x[0, :, row : row + 2, column : column + 3].permute(1, 2, 0).reshape(-1)
            torch.testing.assert_close(linear(patch), y[0, :, row, column])


def test_is_the_layer_over_channels_where_k_divides_them() -> None:
    patch = BlockCirculantPatchConv2d(4, 6, (2, 3), 4, 1, 1, dtype=torch.float64)
    taps = BlockCirculantConv2d(4, 6, (2, 3), 4, 1, 1, dtype=torch.float64)
    taps.load_state_dict({"weight": patch.weight.view(2, 2, 3, 1, 4).permute(0, 3, 1, 2, 4), "bias": patch.bias})
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(taps(x), patch(x))


def test_only_the_gradients_asked_for() -> None:
    layer = BlockCirculantPatchConv2d(3, 5, 3, 4)
    x = torch.randn(2, 3, 4, 4)
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.zero_grad()
    layer.weight.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize(("inn", "out", "size", "k", "stride", "padding"), CASES)
def test_to_dense_and_project_invert_each_other(inn, out, size, k, stride, padding) -> None:
    layer = BlockCirculantPatchConv2d(inn, out, size, k, stride, padding)
    twin = BlockCirculantPatchConv2d(inn, out, size, k, stride, padding)
    parameter, kept = twin.weight, twin.bias.detach().clone()
    assert not layer.to_dense().requires_grad
    assert twin.project_(layer.to_dense()) is twin
    assert twin.weight is parameter
    torch.testing.assert_close(twin.to_dense(), layer.to_dense())
    torch.testing.assert_close(twin.bias.detach(), kept, rtol=0, atol=0)


def test_projection_is_the_nearest() -> None:
    """The error is orthogonal to every block-circulant kernel, which makes it the least in the Frobenius norm."""
    torch.manual_seed(3)
    dense = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    layer = BlockCirculantPatchConv2d(3, 6, 2, 5, dtype=torch.float64).project_(dense)
    other = BlockCirculantPatchConv2d(3, 6, 2, 5, dtype=torch.float64)
    error = dense - layer.to_dense()
    for index in range(other.weight.numel()):
        with torch.no_grad():
            other.weight.zero_().view(-1)[index] = 1
        assert abs((error * other.to_dense()).sum().item()) < 1e-12


def test_state_dict_and_initial_variance() -> None:
    torch.manual_seed(2)
    one = BlockCirculantPatchConv2d(3, 64, 3, 8)
    assert {name: tuple(v.shape) for name, v in one.state_dict().items()} == {"weight": (8, 4, 8), "bias": (64,)}
    assert list(BlockCirculantPatchConv2d(3, 7, 3, 4, bias=False).state_dict()) == ["weight"]
    x = torch.randn(8, 3, 20, 20)
    assert one(x).std().item() == pytest.approx(torch.nn.Conv2d(3, 64, 3)(x).std().item(), rel=0.1)


def test_repr() -> None:
    assert repr(BlockCirculantPatchConv2d(3, 32, 3, 8, 2, 1)) == (
        "BlockCirculantPatchConv2d(in_channels=3, out_channels=32, kernel_size=(3, 3), block_size=8, "
        "stride=(2, 2), padding=(1, 1), bias=True)"
    )


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"block_size is 129; allowed is 1"):
        BlockCirculantPatchConv2d(3, 7, 3, 129)
    with pytest.raises(ValueError, match=r"kernel_size is 0; allowed is an integer of at least 1, or a pair"):
        BlockCirculantPatchConv2d(3, 7, 0, 4)
    with pytest.raises(ValueError, match=r"padding is 'same'; allowed"):
        BlockCirculantPatchConv2d(3, 7, 3, 4, padding="same")
    layer = BlockCirculantPatchConv2d(3, 7, 3, 4)
    with pytest.raises(ValueError, match=r"x has shape \(1, 7, 5, 5\); this layer needs \(batch, 3, height"):
        layer(torch.ones(1, 7, 5, 5))
    with pytest.raises(ValueError, match=r"x has 2 x 5 pixels, 2 x 5 when padded; this layer has 3 x 3 taps"):
        layer(torch.ones(1, 3, 2, 5))
    with pytest.raises(ValueError, match=r"x has dtype torch\.float64 and the layer's weight torch\.float32"):
        layer(torch.ones(1, 3, 5, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"dense_weight has shape \(7, 27\); this layer needs \(7, 3, 3, 3\)"):
        layer.project_(torch.ones(7, 27))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"under torch\.autocast"),
    ):
        layer(torch.ones(1, 3, 5, 5))
