# SPDX-License-Identifier: BSD-3-Clause
"""LSTM and GRU layers whose weight matrices are block-circulant, for training with PyTorch.

Names, gates' order (i, f, g, o; r, z, n) and shapes of states are those of `torch.nn.LSTM` and
`torch.nn.GRU`, whose numbers the layers give on the dense expansion of their matrices.

Sequences of different lengths come, and go, as a `torch.nn.utils.rnn.PackedSequence`, as in torch's own
layers: a network whose layers are replaced keeps its code, and no step is computed for a sequence that has
ended.

Source of peephole and projection: H. Sak, A. Senior, F. Beaufays, "Long Short-Term Memory Recurrent Neural
Network Architectures for Large Scale Acoustic Modeling", Interspeech 2014, the network of ESE (FPGA 2017) and
C-LSTM (S. Wang et al., FPGA 2018), which made its matrices block-circulant.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from circ_overlay.nn.sequence import Recurrent, States
from circ_overlay.nn.spectral import product, spectrum

__all__ = ["BlockCirculantGRU", "BlockCirculantLSTM"]


class BlockCirculantLSTM(Recurrent):
    """A long short-term memory with block-circulant matrices, in place of `torch.nn.LSTM`.

    Of the cell's state c and the output h, with ``s`` the logistic function::

        i = s(W_i x + R_i h + b_i + v_i * c)
        f = s(W_f x + R_f h + b_f + v_f * c)
        c' = f * c + i * tanh(W_g x + R_g h + b_g)
        o = s(W_o x + R_o h + b_o + v_o * c')
        h' = P (o * tanh(c'))

    The peephole vectors v and the projection P are there if asked for.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of a step that goes in, and of the state c.
    block_size : int
        k, from 1 (an uncompressed layer) to 128.
    num_layers : int
        Layers, each fed with the one before.
    peephole : bool
        Whether the gates see c through learned vectors: peephole_l0 (3, hidden_size), for i, f and o.
    proj_size : int
        Features of h, fewer than hidden_size; 0 for no projection.
    bias : bool
        Whether bias_ih_l0 and bias_hh_l0, (4 * hidden_size,) each, are added.
    batch_first : bool
        Whether plain tensors are (batch, steps, features) rather than (steps, batch, features).
    dropout : float
        Probability, while training, that a feature between two layers is 0.
    device, dtype : optional
        As for every torch module; float32 or float64.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0 : torch.nn.Parameter
        (4 p, q, k): first columns of the gates' matrices, gate above gate, p = ceil(hidden_size / k).
    weight_hr_l0 : torch.nn.Parameter
        (p, q, k) of the projection.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        block_size: int,
        num_layers: int = 1,
        peephole: bool = False,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, block_size, num_layers, peephole, proj_size, bias, batch_first, dropout,
            device, dtype,
        )  # fmt: skip

    def forward(
        self, x: Tensor | PackedSequence, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run over sequences.

        Parameters
        ----------
        x : torch.Tensor or PackedSequence
            (batch, steps, input_size), or (steps, batch, input_size) if not batch_first; (steps, input_size)
            is one sequence; packed for sequences of different lengths.
        state : (torch.Tensor, torch.Tensor), optional
            h and c to begin with, (num_layers, batch, features), zeros if not given.

        Returns
        -------
        y : torch.Tensor or PackedSequence
            h of the last layer at every step, laid out as x.
        (h, c) : (torch.Tensor, torch.Tensor)
            After each sequence's last step, (num_layers, batch, features).

        Raises
        ------
        ValueError
            If x or a state has another shape or dtype, or there is no step.
        """
        return self._run(x, state, (self.output_size, self.hidden_size))

    def _stacked(self, layer: int) -> tuple[Tensor, Tensor | None]:
        weight = torch.cat([getattr(self, f"weight_{part}_l{layer}") for part in ("ih", "hh")], dim=1)
        bias = getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}") if self.bias else None
        return weight, bias

    def _cell(self, layer: int) -> Callable[[Tensor, States], States]:
        peephole = getattr(self, f"peephole_l{layer}") if self.peephole else None
        down = spectrum(self._rounded(getattr(self, f"weight_hr_l{layer}"))) if self.proj_size else None

        def step(gates: Tensor, state: States) -> States:
            c = state[1]
            i, f, g, o = gates.chunk(4, dim=1)
            if peephole is not None:
                i, f = i + peephole[0] * c, f + peephole[1] * c
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            if peephole is not None:
                o = o + peephole[2] * c
            h = torch.sigmoid(o) * torch.tanh(c)
            if down is not None:
                h = product(h, down, self.block_size, self.proj_size)
            return h, c

        return step


class BlockCirculantGRU(Recurrent):
    """A gated recurrent unit with block-circulant matrices, in place of `torch.nn.GRU`.

    With ``s`` the logistic function::

        r, z = s(W_r x + R_r h + b_r), s(W_z x + R_z h + b_z)
        h' = (1 - z) * tanh(W_n x + b_in + r * (R_n h + b_hn)) + z * h

    Parameters, attributes and errors are those of `BlockCirculantLSTM`, with 3 gates (r, z, n), and without
    peephole and projection.
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        block_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, block_size, num_layers, False, 0, bias, batch_first, dropout,
            device, dtype,
        )  # fmt: skip

    def forward(
        self, x: Tensor | PackedSequence, state: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over sequences, as `BlockCirculantLSTM.forward` does; the state is h alone."""
        y, (h,) = self._run(x, None if state is None else (state,), (self.hidden_size,))
        return y, h

    def _stacked(self, layer: int) -> tuple[Tensor, Tensor | None]:
        # r gates the state's part of n alone: the two parts are kept apart, as a fourth gate.
        of_x, of_h = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
        both = len(of_x) // 3 * 2  # block rows of r and z
        p = len(of_x) - both
        weight = torch.cat([
            torch.cat([of_x, of_x.new_zeros(p, *of_x.shape[1:])]),
            torch.cat([of_h[:both], of_h.new_zeros(p, *of_h.shape[1:]), of_h[both:]]),
        ], dim=1)  # fmt: skip
        if not self.bias:
            return weight, None
        b_x, b_h = getattr(self, f"bias_ih_l{layer}"), getattr(self, f"bias_hh_l{layer}")
        n = 2 * self.hidden_size
        return weight, torch.cat([b_x[:n] + b_h[:n], b_x[n:], b_h[n:]])

    def _cell(self, layer: int) -> Callable[[Tensor, States], States]:
        def step(gates: Tensor, state: States) -> States:
            r, z, of_x, of_h = gates.chunk(4, dim=1)
            candidate = torch.tanh(of_x + torch.sigmoid(r) * of_h)
            return (candidate + torch.sigmoid(z) * (state[0] - candidate),)

        return step
