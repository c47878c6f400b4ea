# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.circulant against dense matrices that this file builds itself with scipy.linalg.circulant."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from circ_overlay import circulant as cc

Array = npt.NDArray[Any]

SIZES = st.integers(1, 40)
BLOCKS = st.one_of(st.integers(1, 20), st.sampled_from([32, 37, 64, 127, 128]))
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)


def dense_oracle(w: Array, out_features: int, in_features: int) -> Array:
    """The definition, block by block, in float64."""
    p, q, _ = w.shape
    rows = [[scipy.linalg.circulant(w[i, j].astype(np.float64)) for j in range(q)] for i in range(p)]
    return np.asarray(np.block(rows))[:out_features, :in_features]


def dense_oracle_conv(w: Array, out_channels: int, in_channels: int) -> Array:
    """`dense_oracle` for every tap: (out, in, r, s)."""
    r, s = w.shape[2:4]
    taps = [[dense_oracle(w[:, :, a, b], out_channels, in_channels) for b in range(s)] for a in range(r)]
    return np.moveaxis(np.array(taps), (0, 1), (2, 3))


def conv_oracle(kernel: Array, x: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Cross-correlation by scipy, one channel pair at a time."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    full = [
        [
            sum(scipy.signal.correlate(c, t, mode="valid") for c, t in zip(image, taps, strict=True))
            for taps in kernel
        ]
        for image in padded
    ]
    return np.array(full)[:, :, :: stride[0], :: stride[1]]


def random_weight(
    rng: np.random.Generator, out: int, inn: int, k: int, dtype: Any, taps: tuple[int, ...] = ()
) -> Array:
    return rng.standard_normal((-(-out // k), -(-inn // k), *taps, k)).astype(dtype)


def assert_close(actual: Array, expected: Array, dtype: Any) -> None:
    """Equal to a few units of the dtype's precision, relative to the largest entry; and of that dtype."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=100 * float(np.finfo(dtype).eps) * scale)


# --- matrices -----------------------------------------------------------------------------------------------


@given(out=SIZES, inn=SIZES, k=BLOCKS, dtype=DTYPES, seed=SEEDS)
def test_expand_is_scipys_circulant(out: int, inn: int, k: int, dtype: Any, seed: int) -> None:
    w = random_weight(np.random.default_rng(seed), out, inn, k, dtype)
    dense = cc.expand(w, out, inn)
    assert dense.dtype == dtype
    np.testing.assert_array_equal(dense, dense_oracle(w, out, inn))


@given(
    out=SIZES, inn=SIZES, k=BLOCKS, dtype=DTYPES, seed=SEEDS, lead=st.sampled_from([(), (3,), (2, 3), (0,)])
)
def test_matvec_is_the_dense_product(
    out: int, inn: int, k: int, dtype: Any, seed: int, lead: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    w, x = random_weight(rng, out, inn, k, dtype), rng.standard_normal((*lead, inn)).astype(dtype)
    assert_close(cc.matvec(w, x, out), x.astype(np.float64) @ dense_oracle(w, out, inn).T, dtype)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 16])
def test_first_row_convention_is_not_ours(k: int) -> None:
    rng = np.random.default_rng(k)
    w, x = rng.standard_normal((2, 3, k)), rng.standard_normal(3 * k)
    columns = np.block([[scipy.linalg.circulant(block) for block in row] for row in w])
    rows = np.block([[scipy.linalg.circulant(block).T for block in row] for row in w])
    y = cc.matvec(w, x, 2 * k)
    np.testing.assert_allclose(y, columns @ x, atol=1e-12)
    # For k = 1 and 2 every circulant block is symmetric, so that the conventions coincide.
    assert np.allclose(y, rows @ x) == (k <= 2)
    assert np.array_equal(cc.expand(w, 2 * k, 3 * k), rows) == (k <= 2)


@given(
    out=SIZES, inn=SIZES, k=BLOCKS, dtype=DTYPES, seed=SEEDS, lead=st.sampled_from([(), (3,), (2, 3), (0,)])
)
def test_matvec_grad_is_the_dense_formula(
    out: int, inn: int, k: int, dtype: Any, seed: int, lead: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    w, x = random_weight(rng, out, inn, k, dtype), rng.standard_normal((*lead, inn)).astype(dtype)
    grad_y = rng.standard_normal((*lead, out)).astype(dtype)
    grad_w, grad_x = cc.matvec_grad(w, x, grad_y)
    g, v = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (grad_y, x))
    assert_close(grad_x, grad_y.astype(np.float64) @ dense_oracle(w, out, inn), dtype)
    assert_close(grad_w, onto_diagonals(g.T @ v, k), dtype)


def onto_diagonals(dense: Array, k: int) -> Array:
    """Sum a matrix over the wrapped diagonals of its blocks, entry by entry: the expansion's adjoint."""
    sums = np.zeros((-(-dense.shape[0] // k), -(-dense.shape[1] // k), k))
    for row, column in np.ndindex(dense.shape):
        sums[row // k, column // k, (row - column) % k] += dense[row, column]
    return sums


@pytest.mark.parametrize(
    ("out", "inn", "k"), [(4, 4, 4), (7, 5, 4), (3, 9, 8), (6, 6, 5), (2, 3, 1), (5, 3, 128)]
)
def test_matvec_grad_by_finite_differences(out: int, inn: int, k: int) -> None:
    rng = np.random.default_rng(0)
    w, x = random_weight(rng, out, inn, k, np.float64), rng.standard_normal((2, inn))
    grad_y = rng.standard_normal((2, out))
    grad_w, grad_x = cc.matvec_grad(w, x, grad_y)
    np.testing.assert_allclose(grad_w, slopes(lambda v: np.sum(cc.matvec(v, x, out) * grad_y), w), atol=1e-8)
    np.testing.assert_allclose(grad_x, slopes(lambda v: np.sum(cc.matvec(w, v, out) * grad_y), x), atol=1e-8)


def slopes(loss: Callable[[Array], Any], at: Array, step: float = 1e-3) -> Array:
    """Central finite differences of a scalar function; exact, but for rounding, because ours is linear."""
    result = np.empty_like(at)
    for index in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[index] = step
        result[index] = (loss(at + change) - loss(at - change)) / (2 * step)
    return result


# --- projection ---------------------------------------------------------------------------------------------


@given(out=SIZES, inn=SIZES, k=BLOCKS, dtype=DTYPES, seed=SEEDS)
def test_projection_residual_is_orthogonal_to_the_subspace(
    out: int, inn: int, k: int, dtype: Any, seed: int
) -> None:
    dense = np.random.default_rng(seed).standard_normal((out, inn)).astype(dtype)
    w = cc.project(dense, k)
    assert w.dtype == dtype
    residual = dense - dense_oracle(w, out, inn)
    # The sum over a wrapped diagonal is the inner product with that basis direction.
    np.testing.assert_allclose(onto_diagonals(residual, k), 0, atol=1e3 * float(np.finfo(dtype).eps))


@given(out=SIZES, inn=SIZES, k=BLOCKS, dtype=DTYPES, seed=SEEDS)
def test_projection_keeps_block_circulant_matrices(out: int, inn: int, k: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = dense_oracle(random_weight(rng, out, inn, k, dtype), out, inn).astype(dtype)
    once = cc.project(dense, k)
    # Not bit for bit: the mean of three equal numbers need not be that number in the last place.
    np.testing.assert_allclose(cc.expand(once, out, inn), dense, rtol=32 * float(np.finfo(dtype).eps))
    support = onto_diagonals(np.ones((out, inn)), k)
    np.testing.assert_array_equal(once[support == 0], 0)


@given(out=SIZES, inn=SIZES, k=BLOCKS, seed=SEEDS)
def test_no_other_block_circulant_matrix_is_nearer(out: int, inn: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((out, inn))
    w = cc.project(dense, k)
    best = np.linalg.norm(dense - dense_oracle(w, out, inn))
    for size in (1e-3, 0.1, 1.0):
        other = w + size * rng.standard_normal(w.shape)
        assert np.linalg.norm(dense - dense_oracle(other, out, inn)) >= best - 1e-12


@given(out=SIZES, inn=SIZES, k=BLOCKS, seed=SEEDS)
def test_projection_is_linear(out: int, inn: int, k: int, seed: int) -> None:
    a, b = np.random.default_rng(seed).standard_normal((2, out, inn))
    np.testing.assert_allclose(cc.project(2 * a - b, k), 2 * cc.project(a, k) - cc.project(b, k), atol=1e-12)


def test_projection_by_hand() -> None:
    # 3 x 3 with k = 2: one whole block, two that the edge cuts in half, one of a single entry.
    dense = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    expected = [[[3.0, 3.0], [3.0, 6.0]], [[7.0, 8.0], [9.0, 0.0]]]
    np.testing.assert_array_equal(cc.project(dense, 2), expected)


# --- convolutions -------------------------------------------------------------------------------------------

CONV = st.fixed_dictionaries(
    {
        "out": st.integers(1, 12),
        "inn": st.integers(1, 12),
        "k": st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
        "taps": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "extra": st.tuples(st.integers(0, 4), st.integers(0, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "batch": st.integers(1, 3),
        "dtype": DTYPES,
        "seed": SEEDS,
    }
)


def conv_case(case: dict[str, Any]) -> tuple[Array, Array, np.random.Generator]:
    rng = np.random.default_rng(case["seed"])
    w = random_weight(rng, case["out"], case["inn"], case["k"], case["dtype"], case["taps"])
    size = (t + e for t, e in zip(case["taps"], case["extra"], strict=True))
    return w, rng.standard_normal((case["batch"], case["inn"], *size)).astype(case["dtype"]), rng


@given(case=CONV)
def test_conv2d_is_scipys_correlation(case: dict[str, Any]) -> None:
    w, x, _ = conv_case(case)
    kernel = dense_oracle_conv(w, case["out"], case["inn"])
    np.testing.assert_array_equal(cc.expand_conv2d(w, case["out"], case["inn"]), kernel)
    y = cc.conv2d(w, x, case["out"], case["stride"], case["padding"])
    assert_close(y, conv_oracle(kernel, x, case["stride"], case["padding"]), case["dtype"])


@settings(deadline=None)
@given(case=CONV)
def test_conv2d_grad_is_autograds(case: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    w, x, rng = conv_case(case)
    kernel = torch.from_numpy(dense_oracle_conv(w, case["out"], case["inn"])).requires_grad_()
    image = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    y = torch.nn.functional.conv2d(image, kernel, stride=case["stride"], padding=case["padding"])
    grad_y = rng.standard_normal(tuple(y.shape)).astype(case["dtype"])
    y.backward(torch.from_numpy(grad_y.astype(np.float64)))
    grad_w, grad_x = cc.conv2d_grad(w, x, grad_y, case["stride"], case["padding"])
    assert_close(grad_x, image.grad.numpy(), case["dtype"])
    per_tap = [
        onto_diagonals(tap, case["k"])
        for tap in np.moveaxis(kernel.grad.numpy(), (2, 3), (0, 1)).reshape(-1, case["out"], case["inn"])
    ]
    expected = np.stack(per_tap, axis=2).reshape(w.shape)
    assert_close(grad_w, expected, case["dtype"])


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((2, 1), (0, 2)), (3, 2)])
def test_conv2d_grad_by_finite_differences(stride: cc.Pair, padding: cc.Pair) -> None:
    rng = np.random.default_rng(1)
    w, x = random_weight(rng, 5, 3, 4, np.float64, (2, 3)), rng.standard_normal((2, 3, 4, 5))
    y = cc.conv2d(w, x, 5, stride, padding)
    grad_y = rng.standard_normal(y.shape)
    grad_w, grad_x = cc.conv2d_grad(w, x, grad_y, stride, padding)
    for grad, at, loss in (
        (grad_w, w, lambda v: np.sum(cc.conv2d(v, x, 5, stride, padding) * grad_y)),
        (grad_x, x, lambda v: np.sum(cc.conv2d(w, v, 5, stride, padding) * grad_y)),
    ):
        np.testing.assert_allclose(grad, slopes(loss, at), atol=1e-8)


@given(out=st.integers(1, 12), inn=st.integers(1, 12), k=st.integers(1, 9), dtype=DTYPES, seed=SEEDS)
def test_project_conv2d_projects_every_tap(out: int, inn: int, k: int, dtype: Any, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((out, inn, 2, 3)).astype(dtype)
    w = cc.project_conv2d(kernel, k)
    for a, b in itertools.product(range(2), range(3)):
        # Not bit for bit: another memory layout may sum in another order.
        assert_close(w[:, :, a, b], cc.project(kernel[:, :, a, b], k), dtype)


def test_one_transform_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoupling: q forward transforms and p inverse ones a vector, besides the weight's."""
    counts = {"rfft": 0, "irfft": 0}
    real = {"rfft": np.fft.rfft, "irfft": np.fft.irfft}

    def counted(name: str) -> Callable[..., Any]:
        def transform(a: Array, *args: Any, **kwargs: Any) -> Any:
            counts[name] += a[..., 0].size
            return real[name](a, *args, **kwargs)

        return transform

    for name in counts:
        monkeypatch.setattr(np.fft, name, counted(name))
    p, q, batch = 3, 5, 7
    cc.matvec(np.ones((p, q, 4)), np.ones((batch, 4 * q)), 4 * p)
    assert counts == {"rfft": p * q + batch * q, "irfft": batch * p}


# --- types and messages -------------------------------------------------------------------------------------


def test_mixed_precision_takes_the_wider() -> None:
    w, x = np.ones((1, 1, 4), np.float32), np.ones(4)
    assert cc.matvec(w, x, 4).dtype == np.float64
    assert cc.matvec(w, x.astype(np.float32), 4).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cc.block_grid(0, 4, 4), r"out_features is 0; a matrix needs at least 1"),
        (lambda: cc.block_grid(4, -1, 4), r"in_features is -1; a matrix needs at least 1"),
        (lambda: cc.block_grid(4, 4, 0), r"block_size is 0; allowed is 1 \(uncompressed\) to 128"),
        (lambda: cc.block_grid(4, 4, 129), r"block_size is 129; allowed is 1 \(uncompressed\) to 128"),
        (
            lambda: cc.expand(np.ones((2, 1, 4)), 4, 4),
            r"w has a grid of \(2, 1\) blocks of size 4; .* = \(1, 1\)",
        ),
        (lambda: cc.expand(np.ones((2, 4)), 4, 4), r"w has shape \(2, 4\); allowed is \(p, q, k\)"),
        (
            lambda: cc.matvec(np.ones((1, 1, 4)), np.ones(5), 4),
            r"4 outputs and 5 inputs need \(p, q\) = \(1, 2\)",
        ),
        (
            lambda: cc.matvec(np.ones((1, 1, 4)), np.array(1.0), 4),
            r"x has shape \(\); allowed is \(\.\.\., features\)",
        ),
        (
            lambda: cc.matvec(np.ones((1, 1, 4), int), np.ones(4), 4),
            r"w has dtype int64; allowed are float32 and",
        ),
        (
            lambda: cc.matvec(np.ones((1, 1, 4)), np.ones(4, np.float16), 4),
            r"x has dtype float16; allowed are",
        ),
        (
            lambda: cc.project(np.ones((2, 2, 2)), 2),
            r"dense has shape \(2, 2, 2\); allowed is \(out_features, in_f",
        ),
        (
            lambda: cc.project_conv2d(np.ones((2, 2)), 2),
            r"dense has shape \(2, 2\); allowed is \(out_channels, in_c",
        ),
        (
            lambda: cc.matvec_grad(np.ones((1, 1, 4)), np.ones((2, 4)), np.ones((3, 4))),
            r"x has shape \(2, 4\) and grad_y \(3, 4\); all dimensions but the last must be equal",
        ),
        (
            lambda: cc.conv2d(np.ones((1, 1, 3, 3, 4)), np.ones((1, 4, 2, 5)), 4),
            r"w has 3 x 3 taps, more than the padded image's 2 x 5 pixels",
        ),
        (
            lambda: cc.conv2d(np.ones((1, 1, 1, 1, 4)), np.ones((1, 4, 2, 2)), 4, stride=0),
            r"stride is 0; allowed is an integer of at least 1",
        ),
        (
            lambda: cc.conv2d(np.ones((1, 1, 1, 1, 4)), np.ones((1, 4, 2, 2)), 4, padding=(0, -1)),
            r"padding is \(0, -1\); allowed is an integer of at least 0",
        ),
        (
            lambda: cc.conv2d_grad(np.ones((1, 1, 1, 1, 4)), np.ones((1, 4, 2, 2)), np.ones((1, 4, 2, 1))),
            r"grad_y has shape \(1, 4, 2, 1\); allowed is \(1, 4, 2, 2\)",
        ),
    ],
)
def test_messages(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_projection_of_float32_is_summed_in_float64() -> None:
    """A large mean under small differences: summed in float32, the mean of 128 entries would lose them."""
    dense = (1e3 + np.random.default_rng(0).normal(size=(128, 128))).astype(np.float32)
    exact = cc.project(dense.astype(np.float64), 128)
    assert np.abs(cc.project(dense, 128) - exact).max() <= np.spacing(np.float32(1e3)) / 2 * 1.01
