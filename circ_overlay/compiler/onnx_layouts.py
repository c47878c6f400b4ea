# SPDX-License-Identifier: BSD-3-Clause
"""ONNX operators that only change the layout, and recurrent layers, which give layouts of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .builder import Value
from .cells import columns, gru, lstm
from .onnx_node import Floats, Node, Steps, attributes

__all__ = ["Layouts"]


class Layouts(Node):
    """As :class:`.onnx_operators.Operators`."""

    time = ""  # the axis of the input along which recurrent layers go

    def flatten(self) -> Value | None:
        """Flatten from axis 1 on."""
        axis = self.option("axis")
        steps = self.steps()
        if steps is not None:
            self.refuse("Flatten of a sequence", "a step's vector is what layers take")
        if axis not in (None, 1, 1 - self.rank, -3, -1):
            self.refuse(f"Flatten with axis={axis}", "use axis=1")
        v = self.value()
        return self.builder.flatten(v, "chw")

    def reshape(self) -> Value | None:
        """Reshape to vectors."""
        wanted_shape = self.number(1)
        assert wanted_shape is not None
        shape = [int(n) for n in wanted_shape.ravel()]
        steps = self.steps()
        if steps is not None:
            size = steps.value.channels
            if shape[-1:] in ([size], [-1]) and len(shape) == len(steps.axes) and "d" not in steps.axes:
                self.passes()
                return None
            self.refuse(f"A Reshape of a sequence to {shape}", "leave steps and features as they are")
        v = self.value()
        batch = shape[:1] in ([0], [-1], [1], [self.batch])
        if batch and len(shape) == 2 and shape[1] in (-1, v.features):
            return self.builder.flatten(v, "chw")
        height, width, channels = v.shape
        image = [channels, height, width]
        fits = batch and len(shape) == 4 and all(n in (wanted, -1) for n, wanted in zip(shape[1:], image))
        if fits and v.flat in ("", "chw"):
            return replace(v, flat="")
        plain = self.rank == 2 or (self.rank == 3 and tuple(shape[1:]) == (1, height, width))
        if batch and plain and len(shape) == 4 and min(shape[1:]) > 0 and v.tensor == "input" and self.builder.alone:
            return self._image(shape[1], shape[2], shape[3])
        return self.refuse(f"A Reshape to {shape}", "only flattening, to (batch, -1), is understood")

    def _image(self, channels: int, height: int, width: int) -> Value:
        """The input as an image, where the model itself makes it one."""
        self.builder.input_shape = (height, width, channels)
        self.builder.channels_first = channels > 1 and height * width > 1
        return Value("input", self.builder.input_shape)

    def transpose(self) -> Value | None:
        """Transpose before flattening, or of a sequence."""
        perm = tuple(self.option("perm") or ())
        steps = self.steps()
        if steps is not None:
            perm = perm or tuple(reversed(range(len(steps.axes))))
            self.put(self.node.output[0], replace(steps, axes="".join(steps.axes[n] for n in perm)))
            return None
        v = self.value()
        if perm == (0, 2, 3, 1) and not v.flat and not any(v.pad):
            return replace(v, flat="" if v.shape[:2] == (1, 1) else "hwc")
        if perm == (0, 3, 1, 2) and (v.flat == "hwc" or v.shape[:2] == (1, 1)) and self.rank == 4:
            return replace(v, flat="")
        return self.refuse(f"A Transpose {perm}", "only (0, 2, 3, 1) before a flattening is understood")

    def squeeze(self) -> Value | None:
        """Squeeze of axes of one element."""
        steps, axes = self.steps(), self._axes()
        if steps is not None:
            gone = [steps.axes[a] for a in axes] if axes else ["d"] if "d" in steps.axes else []
            if gone != ["d"]:
                self.refuse(f"Squeeze of the axes {axes} of a sequence", "only the direction of an LSTM goes")
            self.put(self.node.output[0], replace(steps, axes=steps.axes.replace("d", "")))
            return None
        v = self.value()
        if v.shape[:2] != (1, 1) or any(a in (0, 1) for a in axes):
            self.refuse(f"Squeeze of the axes {axes}", "flatten instead")
        return v

    def unsqueeze(self) -> Value | None:
        """Unsqueeze, where it changes nothing or gives an image its channel."""
        steps, axes = self.steps(), self._axes()
        if steps is not None:
            self.refuse("Unsqueeze of a sequence", "leave steps and features as they are")
        v = self.value()
        if v.tensor == "input" and self.rank == 3 and v.flat and axes in ([1], [-3]) and not self.builder.records:
            return replace(v, flat="")
        if v.shape[:2] != (1, 1) or axes not in ([2, 3], [-2, -1], [2], [3]):
            self.refuse(f"Unsqueeze at the axes {axes}", "leave the layout to flattening and pooling")
        return v

    def _axes(self) -> list[int]:
        axes = self.option("axes", 1)
        return [] if axes is None else [int(a) for a in np.ravel(axes)]

    def gather(self) -> None:
        """The last step of a sequence: the core gives every step, the host takes the last one."""
        steps, index = self.steps(), self.number(1)
        axis = int(self.option("axis") or 0)
        if steps is None or steps.axes[axis] == "f" or index is None or index.size != 1:
            self.refuse("Gather", "only the last step of an LSTM's or GRU's outputs can be taken")
        taken = steps.axes[axis % len(steps.axes)]
        if (taken, int(index.ravel()[0])) in (("d", 0), (self.time, -1)):
            kept = [a for n, a in enumerate(steps.axes) if n != axis % len(steps.axes)]
            self.put(self.node.output[0], replace(steps, axes="".join(kept)))
            return
        self.refuse(f"Gather of step {int(index.ravel()[0])}", "only the last step, -1, can be taken")

    def recurrent(self) -> None:
        """LSTM or GRU."""
        kind, steps = self.node.op_type, self.steps()
        if steps is None or sorted(steps.axes) != ["0", "1", "f"] or steps.axes[2] != "f":
            self.refuse(f"{kind} on something other than a sequence", "feed it (steps, batch, features)")
        direction = self.option("direction") or b"forward"
        if direction not in (b"forward", "forward"):
            self.refuse(f"{kind} with direction={direction.decode()}", "steps come one by one: use the forward one")
        given = attributes(self.node)
        usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}[kind]
        chosen = [a.decode().lower() for a in given.get("activations", ())] or usual
        if chosen != usual or any(given.get(n) for n in ("activation_alpha", "activation_beta")):
            self.refuse(f"{kind} with the activations {chosen}", f"use the usual ones, {usual}")
        for name, default in (("clip", 0), ("input_forget", 0)):
            if given.get(name, default) != default:
                self.refuse(f"{kind} with {name}={given[name]}", "leave it out")
        if kind == "GRU" and not given.get("linear_before_reset", 0):
            self.refuse(
                "GRU with linear_before_reset=0",
                "it would multiply the state before the matrix: train with the reset gate behind the product, "
                "linear_before_reset=1, as PyTorch has it, or Keras with reset_after=True",
            )
        if len(self.node.input) > 4 and self.node.input[4]:
            self.refuse(f"{kind} with sequence_lens", "sequences come one by one, each as long as it is")
        for index in (5, 6) if kind == "LSTM" else (5,):
            begin = self.number(index)
            if begin is not None and np.any(begin):
                self.refuse(f"{kind} that begins with a state other than 0", "leave initial_h and initial_c out")
        layout = given.get("layout", 0)
        time, batch = steps.axes[0], steps.axes[1]
        if layout:
            time, batch = batch, time
        if self.time not in ("", time):
            self.refuse(f"{kind} along another axis than the one before", "use one layout")
        self.time = time
        h = self._cell(kind, steps.value)
        whole = f"{batch}{time}df" if layout else f"{time}d{batch}f"
        last = f"{batch}df" if layout else f"d{batch}f"
        names = [*self.node.output, "", ""]
        if len(names) > 2 and kind == "LSTM" and names[2] and self.readers.get(names[2]):
            self.refuse("The cell state of an LSTM as a result", "use its outputs")
        both = [name for name in names[:2] if name and self.readers.get(name)]
        for name, axes in ((names[0], whole), (names[1], last)):
            if name:
                self.put(name, Steps(self.builder.close(h) if len(both) > 1 else h, axes))

    def _cell(self, kind: str, v: Value) -> Value:
        gates = 4 if kind == "LSTM" else 3
        w, r, b = self.floats(1), self.floats(2), self.floats(3)
        assert w is not None
        assert r is not None
        order = (0, 2, 3, 1) if kind == "LSTM" else (1, 0, 2)  # to i, f, g, o; to r, z, n

        def ordered(a: Floats) -> Floats:
            parts = np.split(a, gates)
            return np.concatenate([parts[n] for n in order])

        hidden = r.shape[2]
        if v.channels != w.shape[2]:
            self.refuse(f"{kind} for {w.shape[2]} features on {v.channels}", "check what arrives")
        name = self.title()
        weights: dict[str, Floats] = columns(
            {"ih": ordered(w[0]), "hh": ordered(r[0])}, gates, self.builder.chosen(name)
        )
        both = np.zeros((2, gates * hidden)) if b is None else b.reshape(2, -1)
        bias = [ordered(part) for part in both]
        if kind == "GRU":
            return gru(self.builder, v, {**weights, "bias_ih": bias[0], "bias_hh": bias[1]}, name)
        weights["bias"] = bias[0] + bias[1]
        peephole = self.floats(7)
        if peephole is not None and np.any(peephole):
            i, o, f = np.split(peephole.ravel(), 3)
            weights["peephole"] = np.stack([i, f, o])
        return lstm(self.builder, v, weights, name)
