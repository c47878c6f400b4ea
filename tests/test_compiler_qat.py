# SPDX-License-Identifier: BSD-3-Clause
"""A model in quantisation-aware training compiles to the integers that it was trained with."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantisation-aware training needs circ-overlay[train]")

import torch
from torch import nn

from circ_overlay import golden
from circ_overlay.compiler import compile
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantLSTM, BlockCirculantPatchConv2d
from circ_overlay.nn.qat import calibrate, prepare_qat, ranges


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = BlockCirculantPatchConv2d(3, 16, 3, 4, padding=1), nn.BatchNorm2d(16)
        self.conv = BlockCirculantConv2d(16, 16, 3, 8, padding=1)
        self.down = BlockCirculantConv2d(16, 16, 1, 4)
        self.classifier = BlockCirculantLinear(16, 10, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        x = torch.relu(self.conv(x) + self.down(x))
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("width", [8, 12])
def test_integers_are_those_of_the_training(width):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (64, 3, 8, 8))
    model = prepare_qat(Small(), width, sample=x)
    images = torch.from_numpy(x).float()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(3):
        model.train()
        loss = (model(images) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    calibrate(model, x)
    program = compile(model, x / 3, width=width)  # a sample from which alone other formats would follow
    learned = {name: found.format.frac for name, found in ranges(model).items()}
    shared = [layer for layer in program.layers if layer.name in learned]
    assert len(shared) >= 3
    assert all(layer.out_frac == learned[layer.name] for layer in shared)
    got = program.output.value(golden.run(program, program.input.quantise(x / 3, width)))
    with torch.no_grad():
        expected = model(images / 3).numpy()
    assert np.abs(got - expected).max() * 2**program.output.frac <= 4


def test_states_of_a_recurrent_network_keep_their_formats():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = BlockCirculantLSTM(12, 16, 4, num_layers=2), BlockCirculantLinear(16, 8, 4)

        def forward(self, x):
            y, _ = self.rnn(x)
            return self.fc(y)

    torch.manual_seed(0)
    sequence = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    model = prepare_qat(Net(), 12, sample=3 * sequence[None]).eval()
    program = compile(model, [sequence / 9])
    learned = {name: found.format.frac for name, found in ranges(model).items()}
    fracs = {layer.name: layer.out_frac for layer in program.layers}
    for layer in (0, 1):
        for state in "hc":
            assert fracs[f"rnn.{layer}.new_{state}"] == learned[f"rnn.{state}.{layer}"]
