# SPDX-License-Identifier: BSD-3-Clause
"""What the block-circulant recurrent layers share: parameters, layers, sequences; `recurrent` has the cells.

All that a cell needs of input and state comes from ONE block-circulant product per step, of the two side by
side with the gates' matrices stacked, whose spectrum is taken once per sequence. A product of the inputs of
all steps in advance would transform every gate back twice, of which there are four to one input (measured:
docs/training_layers.md).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from circ_overlay.circulant import block_grid, project
from circ_overlay.nn.spectral import Rounding, check_dtype, dense_blocks, product, spectrum

if TYPE_CHECKING:
    from circ_overlay.nn.qat.fake import RecurrentQuantiser

__all__ = ["Recurrent", "States"]

States = tuple[Tensor, ...]
"""A layer's state between steps: (h,) or (h, c), each (batch, features)."""

_BATCH_FIRST = "(batch, steps, {0})"
_STEPS_FIRST = "(steps, batch, {0})"


class Recurrent(nn.Module):
    """A stack of recurrent layers over sequences; a subclass has the cell."""

    gates: int  # matrices stacked in weight_ih, and in weight_hh

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        block_size: int,
        num_layers: int,
        peephole: bool,
        proj_size: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; a recurrent layer needs at least 1")
        if not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"proj_size is {proj_size}; allowed is 0 (no projection) to hidden_size - 1 = "
                f"{hidden_size - 1}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is a probability from 0 to below 1")
        self.input_size, self.hidden_size, self.block_size = input_size, hidden_size, block_size
        self.num_layers, self.peephole, self.proj_size = num_layers, peephole, proj_size
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.output_size = proj_size or hidden_size
        self.rounding: Rounding | None = None  # of the weights; see circ_overlay.nn.qat
        self.quantiser: RecurrentQuantiser | None = None  # of the states, likewise

        def add(name: str, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(*shape, device=device, dtype=dtype)))

        for layer in range(num_layers):
            for name, (groups, rows, columns) in self._matrices(layer).items():
                p, q = block_grid(rows, columns, block_size)
                add(name, groups * p, q, block_size)
            if bias:
                add(f"bias_ih_l{layer}", self.gates * hidden_size)
                add(f"bias_hh_l{layer}", self.gates * hidden_size)
            if peephole:
                add(f"peephole_l{layer}", 3, hidden_size)
        self.reset_parameters()

    def _matrices(self, layer: int) -> dict[str, tuple[int, int, int]]:
        """Name of each matrix of a layer: (how many are stacked, rows of each, columns)."""
        inputs = self.output_size if layer else self.input_size
        found = {
            f"weight_ih_l{layer}": (self.gates, self.hidden_size, inputs),
            f"weight_hh_l{layer}": (self.gates, self.hidden_size, self.output_size),
        }
        if self.proj_size:
            found[f"weight_hr_l{layer}"] = (1, self.proj_size, self.hidden_size)
        return found

    def _all_matrices(self) -> dict[str, tuple[int, int, int]]:
        return {k: v for layer in range(self.num_layers) for k, v in self._matrices(layer).items()}

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as torch's layers do."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _stacked(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Return what makes a step's gates: first columns (4 p, q, k), and a bias (4 hidden_size,)."""
        raise NotImplementedError

    def _cell(self, layer: int) -> Callable[[Tensor, States], States]:
        """Return the function of gates (n, 4 * hidden_size) and state that gives the next state."""
        raise NotImplementedError

    def _rounded(self, weight: Tensor) -> Tensor:
        return weight if self.rounding is None else self.rounding(weight)

    def _run_layer(self, layer: int, rows: Tensor, sizes: list[int], state: States) -> tuple[Tensor, States]:
        """Run a layer over packed rows (sum(sizes), features), sizes[t] sequences being alive at step t."""
        k = self.block_size
        rows = functional.pad(rows, (0, -rows.shape[1] % k))  # the state begins with a block of its own
        weight, bias = self._stacked(layer)
        bins, cell = spectrum(self._rounded(weight)), self._cell(layer)
        outputs: list[Tensor] = []
        ended: list[States] = []
        for now in torch.split(rows, sizes):
            if len(now) < len(state[0]):
                ended.append(tuple(s[len(now) :] for s in state))
                state = tuple(s[: len(now)] for s in state)
            gates = product(torch.cat([now, state[0]], dim=1), bins, k, self.hidden_size, groups=4)
            state = cell(gates if bias is None else gates + bias, state)
            if self.quantiser is not None:
                state = self.quantiser.states(layer, state)
            outputs.append(state[0])
        ended.append(state)
        if self.quantiser is not None:
            self.quantiser.end()
        final = tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))
        return torch.cat(outputs), final

    def _run(
        self, x: Tensor | PackedSequence, initial: Sequence[Tensor] | None, widths: Sequence[int]
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run all layers; `widths` are the features of each state (num_layers, batch, features)."""
        rows, sizes, single = self._rows(x)
        states = self._initial(rows, sizes[0], initial, widths, single)
        order = x.sorted_indices if isinstance(x, PackedSequence) else None
        if order is not None:
            states = tuple(s.index_select(1, order) for s in states)
        finals: list[States] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                rows = functional.dropout(rows, self.dropout, self.training)
            rows, final = self._run_layer(layer, rows, sizes, tuple(s[layer] for s in states))
            finals.append(final)
        ends = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if isinstance(x, PackedSequence):
            if x.unsorted_indices is not None:
                ends = tuple(s.index_select(1, x.unsorted_indices) for s in ends)
            return PackedSequence(rows, x.batch_sizes, x.sorted_indices, x.unsorted_indices), ends
        y = rows.reshape(len(sizes), sizes[0], self.output_size)
        if single:
            return y[:, 0], tuple(s[:, 0] for s in ends)
        return y.transpose(0, 1) if self.batch_first else y, ends

    def _rows(self, x: Tensor | PackedSequence) -> tuple[Tensor, list[int], bool]:
        """Return rows in order of steps, how many of each step, and whether x was one sequence alone."""
        if isinstance(x, PackedSequence):
            data, sizes, single = x.data, x.batch_sizes.tolist(), False
        else:
            single = x.ndim == 2
            steps = x.unsqueeze(1) if single else x.transpose(0, 1) if self.batch_first and x.ndim == 3 else x
            data = steps.reshape(-1, x.shape[-1]) if x.ndim in (2, 3) and x.shape[-1] else x
            sizes = [steps.shape[1]] * len(steps) if steps.ndim == 3 else []
        if data.ndim != 2 or data.shape[1] != self.input_size or not sizes:
            what = "x is a PackedSequence with data" if isinstance(x, PackedSequence) else "x is a tensor"
            needed = (_BATCH_FIRST if self.batch_first else _STEPS_FIRST).format(self.input_size)
            shape = tuple(x.data.shape if isinstance(x, PackedSequence) else x.shape)
            raise ValueError(
                f"{what} of shape {shape}; this layer needs {needed}, (steps, {self.input_size}) or a "
                f"PackedSequence of {self.input_size} features, and at least one step: check batch_first"
            )
        check_dtype(data, self.get_parameter("weight_hh_l0"))
        return data, sizes, single

    def _initial(
        self, rows: Tensor, batch: int, given: Sequence[Tensor] | None, widths: Sequence[int], single: bool
    ) -> States:
        """Return the states to begin with, zeros unless given, as (num_layers, batch, features)."""
        if given is None:
            return tuple(rows.new_zeros(self.num_layers, batch, width) for width in widths)
        for state, width in zip(given, widths, strict=True):
            expected = (self.num_layers, width) if single else (self.num_layers, batch, width)
            if tuple(state.shape) != expected:
                raise ValueError(
                    f"an initial state has shape {tuple(state.shape)}; this layer needs {expected} for "
                    "this input: (num_layers, batch, features), in h before c"
                )
            check_dtype(state, rows)
        return tuple(state.unsqueeze(1) if single else state for state in given)

    @torch.no_grad()
    def to_dense(self) -> dict[str, Tensor]:
        """Return all parameters, detached, by name, the matrices dense.

        Without peephole it is a state dict of torch's own layer of the same sizes: gates stacked by rows.
        """
        matrices = self._all_matrices()
        dense = {}
        for name, parameter in self.named_parameters():
            if name not in matrices:
                dense[name] = parameter.detach().clone()
                continue
            groups, rows, columns = matrices[name]
            dense[name] = torch.cat([dense_blocks(part, rows, columns) for part in parameter.chunk(groups)])
        return dense

    @torch.no_grad()
    def project_(self, dense: Mapping[str, Tensor]) -> "Recurrent":
        """Set the matrices, in place, to the block-circulant ones nearest to dense ones.

        Parameters
        ----------
        dense : mapping of str to torch.Tensor
            By name, as in the state dict of torch's own layer: ``weight_ih_l0`` (gates * hidden_size,
            input_size) and so on. Names that are no matrix of this layer are ignored: biases are left alone.

        Returns
        -------
        This layer.

        Raises
        ------
        ValueError
            If a matrix is missing or has another shape.
        """
        for name, (groups, rows, columns) in self._all_matrices().items():
            given = tuple(dense[name].shape) if name in dense else None
            if given != (groups * rows, columns):
                raise ValueError(
                    f"{name} "
                    + ("is missing" if given is None else f"has shape {given}")
                    + f"; this layer needs "
                    f"{(groups * rows, columns)}: give the state dict of a dense layer of its size"
                )
            parts = dense[name].detach().cpu().double().chunk(groups)
            nearest = [torch.from_numpy(project(part.numpy(), self.block_size)) for part in parts]
            self.get_parameter(name).copy_(torch.cat(nearest))
        return self

    def extra_repr(self) -> str:
        """Sizes shown by ``print(module)``."""
        shown = f"{self.input_size}, {self.hidden_size}, block_size={self.block_size}"
        standard: dict[str, Any] = {
            "num_layers": 1, "peephole": False, "proj_size": 0, "bias": True, "batch_first": True,
            "dropout": 0.0,
        }  # fmt: skip
        changed = {name: getattr(self, name) for name in standard if getattr(self, name) != standard[name]}
        return shown + "".join(f", {name}={value}" for name, value in changed.items())
