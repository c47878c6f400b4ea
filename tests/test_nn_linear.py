# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.nn.BlockCirculantLinear against scipy.linalg.circulant, torch's own layers and gradcheck."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("torch")

import torch

from circ_overlay import circulant
from circ_overlay.nn import BlockCirculantLinear

CASES = [  # (in_features, out_features, block_size); most are not multiples of k
    (16, 8, 8),
    (8, 16, 4),
    (7, 5, 4),
    (5, 7, 3),
    (9, 10, 8),
    (3, 2, 16),
    (6, 6, 1),
    (5, 11, 5),
    (1, 1, 2),
    (40, 70, 48),  # above 32 the product takes its complex form
    (5, 3, 64),
]


def dense_oracle(layer: BlockCirculantLinear) -> torch.Tensor:
    """The layer's matrix by the definition, block by block, in float64."""
    w = layer.weight.detach().double().numpy()
    rows = [[scipy.linalg.circulant(block) for block in row] for row in w]
    return torch.from_numpy(np.block(rows)[: layer.out_features, : layer.in_features])


@pytest.mark.parametrize(("inn", "out", "k"), CASES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 2)])
def test_gradcheck(inn: int, out: int, k: int, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = BlockCirculantLinear(inn, out, k, dtype=torch.float64)
    assert layer.bias is not None
    x = torch.randn(*lead, inn, dtype=torch.float64, requires_grad=True)

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return y

    assert torch.autograd.gradcheck(apply, (x, layer.weight, layer.bias))


@pytest.mark.parametrize(("inn", "out", "k"), [*CASES, (784, 300, 16), (300, 10, 128), (200, 100, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)])
def test_equals_the_dense_layer(
    inn: int, out: int, k: int, dtype: torch.dtype, lead: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    layer = BlockCirculantLinear(inn, out, k, dtype=dtype)
    x = torch.randn(*lead, inn, dtype=dtype, requires_grad=True)
    dense, bias = dense_oracle(layer).requires_grad_(), layer.bias
    assert bias is not None
    y = layer(x)
    assert y.dtype == dtype
    wide = x.detach().double().requires_grad_()
    expected = torch.nn.functional.linear(wide, dense, bias.detach().double())
    tolerance = 5e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)

    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    expected.backward(grad_y.double())  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert wide.grad is not None
    assert layer.weight.grad is not None
    assert dense.grad is not None
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=tolerance, atol=4 * tolerance)
    # The weight's gradient sums the dense one along each wrapped diagonal: k times its block-wise mean.
    pulled = torch.zeros(layer.weight.shape, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(out), torch.arange(inn), indexing="ij")
    pulled.index_put_((rows // k, columns // k, (rows - columns) % k), dense.grad, accumulate=True)
    torch.testing.assert_close(layer.weight.grad.double(), pulled, rtol=tolerance, atol=40 * tolerance)


def test_agrees_with_the_numpy_reference() -> None:
    layer = BlockCirculantLinear(13, 21, 8, bias=False, dtype=torch.float64)
    x = torch.randn(5, 13, dtype=torch.float64)
    expected = circulant.matvec(layer.weight.detach().numpy(), x.numpy(), 21)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-14)


def test_only_the_gradients_asked_for() -> None:
    layer = BlockCirculantLinear(6, 5, 4)
    x = torch.randn(2, 6)
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(False)
    x.requires_grad_()
    layer.zero_grad()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize(("inn", "out", "k"), CASES)
def test_to_dense_and_project_invert_each_other(inn: int, out: int, k: int) -> None:
    layer = BlockCirculantLinear(inn, out, k)
    dense = layer.to_dense()
    assert not dense.requires_grad
    torch.testing.assert_close(dense.double(), dense_oracle(layer), rtol=0, atol=0)
    twin = BlockCirculantLinear(inn, out, k)
    parameter, bias = twin.weight, twin.bias
    assert bias is not None
    kept = bias.detach().clone()
    assert twin.project_(dense) is twin
    assert twin.weight is parameter  # in place: optimizers keep their hold of it
    torch.testing.assert_close(twin.to_dense(), dense)
    torch.testing.assert_close(bias.detach(), kept, rtol=0, atol=0)


def test_project_is_nearest() -> None:
    linear = torch.nn.Linear(10, 7)
    layer = BlockCirculantLinear(10, 7, 4).project_(linear.weight)
    best = (linear.weight - layer.to_dense()).norm()
    for _ in range(20):
        other = BlockCirculantLinear(10, 7, 4)
        with torch.no_grad():
            other.weight.copy_(layer.weight + 0.05 * torch.randn_like(layer.weight))
        assert (linear.weight - other.to_dense()).norm() > best


def test_state_dict_round_trip() -> None:
    one, two = BlockCirculantLinear(10, 7, 4), BlockCirculantLinear(10, 7, 4)
    assert list(one.state_dict()) == ["weight", "bias"]
    assert one.weight.shape == (2, 3, 4)
    assert one.bias is not None
    assert one.bias.shape == (7,)
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 10)
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)
    assert list(BlockCirculantLinear(10, 7, 4, bias=False).state_dict()) == ["weight"]


def test_initial_outputs_have_the_dense_layers_variance() -> None:
    torch.manual_seed(2)
    x = torch.randn(500, 512)
    ours, theirs = BlockCirculantLinear(512, 256, 16)(x), torch.nn.Linear(512, 256)(x)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_repr() -> None:
    layer = BlockCirculantLinear(784, 10, 8, bias=False)
    assert repr(layer) == "BlockCirculantLinear(in_features=784, out_features=10, block_size=8, bias=False)"


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"block_size is 129; allowed is 1 \(uncompressed\) to 128"):
        BlockCirculantLinear(10, 7, 129)
    with pytest.raises(ValueError, match=r"in_features is 0; a matrix needs at least 1"):
        BlockCirculantLinear(0, 7, 4)
    layer = BlockCirculantLinear(10, 7, 4)
    with pytest.raises(
        ValueError, match=r"x has shape \(3, 7\); this layer needs \(\.\.\., 10\): flatten or reshape"
    ):
        layer(torch.ones(3, 7))
    with pytest.raises(ValueError, match=r"dense_weight has shape \(10, 7\); this layer needs \(7, 10\)"):
        layer.project_(torch.ones(10, 7))


def test_import_without_torch_says_what_to_install(tmp_path: Path) -> None:
    # A fresh interpreter in which importing torch fails as if it were not there.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import circ_overlay.nn\n"
        "except ImportError as error:\n    print(error)\n"
    )
    root = Path(circulant.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "pip install circ-overlay[train]" in done.stdout
