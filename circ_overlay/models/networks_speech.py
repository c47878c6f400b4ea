# SPDX-License-Identifier: BSD-3-Clause
"""Recurrent networks of the zoo as torch modules: a classifier of sequences, and the Google LSTM of the literature."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from circ_overlay.nn import BlockCirculantLinear, BlockCirculantLSTM

__all__ = ["EveryStep", "SpeechClassifier", "google_lstm"]


class SpeechClassifier(nn.Module):
    """LSTM layers over a sequence and a fully connected layer on h of its last step.

    Parameters
    ----------
    features : int
        Inputs of a step.
    hidden : int
        Cells of each LSTM layer.
    classes : int
        Outputs.
    block_size : int
        k of all matrices.
    num_layers : int
        LSTM layers.
    dropout : float
        Probability, while training, that an element of h is 0, between layers and before the last one.

    Attributes
    ----------
    lstm : BlockCirculantLSTM
    fc : BlockCirculantLinear

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    def __init__(
        self, features: int, hidden: int, classes: int, block_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.lstm = BlockCirculantLSTM(features, hidden, block_size, num_layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.fc = BlockCirculantLinear(hidden, classes, block_size)
        with torch.no_grad():
            for layer in range(num_layers):
                # Forget gates begin open (F. Gers et al., Neural Computation 12, 2000), or long sequences fade.
                self.lstm.get_parameter(f"bias_hh_l{layer}")[hidden : 2 * hidden] += 1.0

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Classify a batch of sequences.

        Parameters
        ----------
        x : torch.Tensor
            (batch, steps, features) float; what follows a sequence's last step does not count.
        lengths : torch.Tensor
            (batch,) int64 on the CPU, steps of each sequence, 1 to steps.

        Returns
        -------
        torch.Tensor
            (batch, classes), before any softmax.
        """
        return self.outputs_and_cells(x, lengths)[0]

    def outputs_and_cells(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of `forward`, and c of all layers after each sequence's last step, (num_layers, batch, hidden)."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, c) = self.lstm(packed)
        logits: Tensor = self.fc(self.dropout(h[-1]))
        return logits, c

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The state dict as float32 arrays, by the same names."""
        return {name: tensor.detach().cpu().float().numpy() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "SpeechClassifier":
        """Make the network of arrays by the names of the state dict, `features` and `block_size`; others are ignored.

        Raises
        ------
        KeyError
            If one is missing.
        RuntimeError
            If shapes do not fit each other.
        """
        layers = sum(name.startswith("lstm.weight_hh_l") for name in arrays)
        hidden, k = len(arrays["lstm.bias_hh_l0"]) // 4, int(arrays["block_size"])
        network = cls(int(arrays["features"]), hidden, len(arrays["fc.bias"]), k, layers)
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in network.state_dict()})
        return network.eval()


class EveryStep(nn.Module):
    """A trained `SpeechClassifier`, whose layers it shares, as the compiler takes it: outputs after every step.

    A host that wants the answer for the whole recording takes the outputs of the last step.
    """

    def __init__(self, trained: SpeechClassifier) -> None:
        super().__init__()
        self.lstm, self.fc = trained.lstm, trained.fc

    def forward(self, x: Tensor) -> Tensor:
        """Classify beginnings of sequences: (batch, steps, features) to (batch, steps, classes)."""
        y, _ = self.lstm(x)
        logits: Tensor = self.fc(y)
        return logits


def google_lstm(block_size: int, seed: int = 0, num_layers: int = 1) -> BlockCirculantLSTM:
    """The Google LSTM that FPGA papers measure, with random weights: for counting cycles, not for recognising.

    153 inputs, 1024 cells with peephole, projected to 512: H. Sak et al. (Interspeech 2014) as in ESE (S. Han et al.,
    FPGA 2017, one layer) and C-LSTM (S. Wang et al., FPGA 2018, with k = 8 and 16).

    Parameters
    ----------
    block_size : int
        k, from 1 to 128.
    seed : int
        Of the weights, drawn as torch draws those of `torch.nn.LSTM`; torch's own generator is left as it was.
    num_layers : int
        Layers.

    Returns
    -------
    BlockCirculantLSTM
        In eval mode, float32.

    Raises
    ------
    ValueError
        If the block size is out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BlockCirculantLSTM(153, 1024, block_size, num_layers, peephole=True, proj_size=512)
    return network.eval()
