# SPDX-License-Identifier: BSD-3-Clause
""".circ files: the same bytes for the same program, and a clear refusal of everything else."""

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circ_overlay import Program, golden, spec
from circ_overlay.compiler import AvgPool2d, Conv2d, Linear, Network, Operation, compile
from circ_overlay.errors import ProgramError, ProgramFileError
from circ_overlay.files import atomic_write
from circ_overlay.program import Map, Slice, Span

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def program():
    rng = np.random.default_rng(0)
    layers = [
        Linear(weight=rng.normal(size=(3, 2, 8)), in_features=15, out_features=20, activation="relu"),
        Linear(weight=rng.normal(size=(1, 5, 4)), in_features=20, out_features=3, activation="tanh"),
    ]
    x = rng.integers(0, 256, (50, 3, 5)).astype(np.uint8)
    return compile(layers, x, name="small", labels=("a", "b", "c"), metadata={"note": "für Tests"})


@pytest.fixture(scope="module")
def content(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("circ") / "small.circ"
    program.save(path)
    return path.read_bytes()


def rewrite(content, tmp_path, change, *, sums=True):
    """The archive with `change` applied to its members, checksums made right again unless `sums` is False."""
    path = tmp_path / "changed.circ"
    (tmp_path / "in.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "in.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    if sums:
        members.pop("SHA256SUMS", None)
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items()]
        members["SHA256SUMS"] = "".join(lines).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edit_manifest(**values):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        manifest.update(values)
        members["manifest.json"] = json.dumps(manifest).encode()

    return change


def test_round_trip(program, content, tmp_path):
    path = tmp_path / "a.circ"
    path.write_bytes(content)
    back = Program.load(path)
    np.testing.assert_array_equal(back.image, program.image)
    assert (back.name, back.labels, back.metadata) == (program.name, program.labels, program.metadata)
    assert (back.input, back.output, back.width) == (program.input, program.output, program.width)
    assert [layer.name for layer in back.layers] == [layer.name for layer in program.layers]
    back.save(path)
    assert path.read_bytes() == content


def test_no_pickle_inside(content, tmp_path):
    path = tmp_path / "a.circ"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith(b"\x80"), name
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    np.lib.format.read_array(file, allow_pickle=False)


def test_pickled_array_is_refused(content, tmp_path):
    def change(members):
        members["arrays/00.00.weights.npy"] = pickle.dumps(np.zeros(3))

    with pytest.raises(ProgramFileError, match="malformed"):
        Program.load(rewrite(content, tmp_path, change))


@given(cut=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated(content, tmp_path, cut):
    path = tmp_path / "a.circ"
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(ProgramFileError, match=r"truncated or altered|not a \.circ file"):
        Program.load(path)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_altered_bytes_never_pass_unnoticed(program, content, tmp_path, changes):
    path = tmp_path / "a.circ"
    data = bytearray(content)
    for where, xor in changes:
        data[where % len(data)] ^= xor
    path.write_bytes(data)
    try:
        back = Program.load(path)
    except ProgramFileError as error:
        assert str(path) in str(error)
    else:  # dates and attributes in the zip's directory do not matter; everything that does is the same
        np.testing.assert_array_equal(back.image, program.image)
        assert back.metadata == program.metadata


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_refused(tmp_path, noise):
    path = tmp_path / "a.circ"
    path.write_bytes(noise)
    with pytest.raises(ProgramFileError):
        Program.load(path)


def test_missing_file_is_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Program.load(tmp_path / "none.circ")


def test_foreign_zip(tmp_path):
    path = tmp_path / "foreign.circ"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ProgramFileError, match=r"no circ-overlay program; give a file made by Program\.save"):
        Program.load(path)


def test_foreign_manifest(content, tmp_path):
    with pytest.raises(ProgramFileError, match="a foreign file: its manifest says 'other'"):
        Program.load(rewrite(content, tmp_path, edit_manifest(format="other")))


def test_future_format(content, tmp_path):
    with pytest.raises(ProgramFileError, match="file format 3 is newer than 2.*upgrade circ-overlay"):
        Program.load(rewrite(content, tmp_path, edit_manifest(format_version=3)))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (spec.SPEC_VERSION + 1, "the file is newer; upgrade circ-overlay"),
        (spec.SPEC_VERSION - 1, "the package is newer; compile the network again"),
        (spec.SPEC_VERSION, "one is a development version; compile the network again"),
    ],
)
def test_other_specification(content, tmp_path, version, message):
    change = edit_manifest(spec_version=version, spec_hash="0" * 64)
    with pytest.raises(ProgramFileError, match=message):
        Program.load(rewrite(content, tmp_path, change))


def test_wrong_checksum_names_the_member(content, tmp_path):
    def change(members):
        members["arrays/00.00.bias.npy"] = members["arrays/00.01.bias.npy"]

    with pytest.raises(ProgramFileError, match=r"checksum of arrays/00\.00\.bias\.npy is wrong"):
        Program.load(rewrite(content, tmp_path, change, sums=False))


def test_extra_member_is_noticed(content, tmp_path):
    with pytest.raises(ProgramFileError, match="members differ"):
        Program.load(rewrite(content, tmp_path, lambda m: m.update({"x": b"x"}), sums=False))


PORT = {"shape": [3, 5], "frac": 0, "storage": "uint8", "pixels": 1, "channels_first": False}


@pytest.mark.parametrize(
    "change",
    [
        edit_manifest(width="12"), edit_manifest(width=99), edit_manifest(width=True), edit_manifest(segments=[]),
        edit_manifest(segments=None), edit_manifest(input=[]), edit_manifest(labels=["one"]),
        edit_manifest(input={**PORT, "shape": [3, 4]}),
        edit_manifest(input={**PORT, "storage": "float"}),
        edit_manifest(output={**PORT, "shape": [3], "frac": 0.5, "storage": "int16"}),
        edit_manifest(input={**PORT, "shape": [64, 3, 3074457345618258603]}),
        edit_manifest(input={**PORT, "pixels": 2}), edit_manifest(tensors={"t": {"pixels": 1}}),
        edit_manifest(input={**PORT, "extra": 1}),
        edit_manifest(labels="abc"), edit_manifest(name=None), edit_manifest(name="a\x1b[2J"),
        edit_manifest(format_version=0), edit_manifest(format_version=True),
    ],
)  # fmt: skip
def test_manifest_values_are_checked(content, tmp_path, change):
    with pytest.raises(ProgramFileError, match=r"fetch or compile it again"):
        Program.load(rewrite(content, tmp_path, change))


def test_oversized_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.circ"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes((1 << 28) + 1))
    with pytest.raises(ProgramFileError, match="would unpack to more than"):
        Program.load(path)


def with_segments(program, *changes):
    """The program with its first segments changed."""
    changed = [dataclasses.replace(s, **c) for s, c in zip(program.segments, changes)]
    return dataclasses.replace(program, segments=(*changed, *program.segments[len(changed) :]))


def test_program_validation_messages(program):
    (segment,) = program.segments
    first, second = segment.layers
    with pytest.raises(ProgramError, match="weights exceed 8 bits"):
        dataclasses.replace(program, width=8, input=dataclasses.replace(program.input, storage="int16"))
    with pytest.raises(ProgramError, match="2 labels for 3 outputs"):
        dataclasses.replace(program, labels=("a", "b"))
    with pytest.raises(ProgramError, match="acc_shift=41"):
        with_segments(program, {"layers": (dataclasses.replace(first, acc_shift=41), second)})
    with pytest.raises(ProgramError, match="its target overlaps its source"):
        with_segments(program, {"layers": (dataclasses.replace(first, target=first.source), second)})
    for change, message in (
        ({"u8": False}, "u8=False, but the input port carries uint8"),
        ({"input": Span(words=3)}, "input of 3 words, but its tensors fill 4"),
        ({"layers": ()}, "0 layers"),
        ({"reads": (Slice(tensor="none", channels=1),)}, "there is no tensor 'none'"),
        ({"reads": (Slice(tensor="output", channels=3),)}, "reads of 'output' what no segment before has written"),
        ({"writes": (Slice(tensor="output", first=1, channels=3),)}, r"channels 1\.\.3 of output: it has 3"),
        ({"writes": (Slice(tensor="output", channels=2),)}, "do not write all"),
        ({"writes": (Slice(tensor="input", channels=3),)}, "writes 'input' twice"),
    ):
        with pytest.raises(ProgramError, match=message):
            with_segments(program, change)


def test_round_trip_of_segments_residuals_and_sequences(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 4, 3, 3, 4)) / 12
    network = Network(
        layers=(
            Conv2d(weight, padding=1, name="a", activation="relu", ceiling=6.0),
            Conv2d(weight, padding=1, name="b", residual="a", pool=(2, 2)),
            AvgPool2d(3, name="mean"),
        ),
        input_shape=(6, 6, 16),
    )  # fmt: skip
    images = rng.normal(size=(20, 6, 6, 16))
    cut = compile(network, images, config=spec.CoreConfig(weight_words=200, map_elements=1500))
    assert len(cut.segments) > 2
    h = Network(
        layers=(Operation(name="n", source=("input", "h"), weight=rng.normal(size=(2, 4, 1, 1, 4)) / 4,
                          out_channels=8, target="h", activation="tanh"),),
        input_shape=(1, 1, 8), states={"h": 8},
    )  # fmt: skip
    steps = rng.normal(size=(5, 8))
    for program, x in ((cut, images), (compile(h, [steps]), steps)):
        program.save(tmp_path / "a.circ")
        back = Program.load(tmp_path / "a.circ")
        assert back.tensors == program.tensors
        for a, b in zip(back.images, program.images, strict=True):
            np.testing.assert_array_equal(a, b)
        quantised = program.input.quantise(x, 12)
        np.testing.assert_array_equal(golden.run(back, quantised), golden.run(program, quantised))


def test_values_just_beyond_their_fields_are_refused(program):
    first = program.layers[0]

    def with_value(name, value):
        array = getattr(first, name).astype(np.int64)
        array.flat[3] = value
        return dataclasses.replace(first, **{name: array})

    for name, bits in (("weights", 12), ("scale", spec.SCALE_BITS), ("bias", spec.BIAS_BITS)):
        top = 1 << (bits - 1)
        for good in (-top, top - 1):
            with_value(name, good).validate(12)
        for bad in (-top - 1, top):
            with pytest.raises(ProgramError, match=rf"{name} exceeds? {bits} bits"):
                with_value(name, bad).validate(12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros((3, 3, 4, 2), np.int16)}, r"weights of shape \(3, 3, 4, 2\): expected \(3, 2, 4, 2\)"),
        ({"block_size": 6}, "block size 6"),
        ({"weights": np.zeros((3, 2, 4), np.int16)}, r"weights of shape \(3, 2, 4\)"),
        ({"gather": True}, "gather with k=8 and 15 channels"),
        ({"taps": (0, 1)}, r"taps=\(0, 1\)"), ({"padding": (0, 256)}, r"padding=\(0, 256\)"),
        ({"factor": Map(channels=20)}, "a second factor belongs to PRODUCT"),
        ({"residual": Map(channels=19)}, r"residual of shape \(1, 1, 19\)"),
        ({"ceiling": 0}, "ceiling=0"), ({"ceiling": 2048}, "ceiling=2048"), ({"add_shift": 29}, "add_shift=29"),
        ({"opcode": spec.Opcode.SUM}, "SUM of 15 channels into 20"),
        ({"source": Map(channels=15, pitch=3)}, "pitch=3: a pixel fills 4 words"),
        ({"source": Map(channels=15, base=-1)}, "base=-1"),
        ({"scale": np.zeros(19, np.int32)}, r"scale of shape \(19,\): expected \(20,\)"),
        ({"bias": np.zeros(20)}, "bias of dtype float64"),
        ({"out_frac": 65}, "out_frac=65"),
        ({"activation": spec.Activation.TANH, "out_frac": 8}, "a tanh gives 11 fraction bits"),
        ({"source": Map(channels=0, pitch=1)}, "source channels=0"),
        ({"name": "two\nlines"}, "expected text"),
    ],
)
def test_layer_validation_messages(program, change, message):
    with pytest.raises(ProgramError, match=message):
        dataclasses.replace(program.layers[0], **change).validate(12)


def test_quantised_inputs_are_checked(program):
    port = program.input
    with pytest.raises(ValueError, match=r"outside 0\.\.255"):
        port.check(np.full((1, 15), 256))
    with pytest.raises(ValueError, match=r"outside 0\.\.255"):
        port.check(np.full((1, 15), -1))
    with pytest.raises(ValueError, match="expected integers"):
        port.check(np.full((1, 15), 1.0))
    for bad in (np.nan, np.inf, -np.inf):
        x = np.zeros((2, 15))
        x[1, 7] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            port.quantise(x, 12)
    signed = dataclasses.replace(port, storage="int16", frac=4)
    assert signed.quantise(np.full((1, 15), np.float32(3e38)), 12).max() == 2047
    assert signed.quantise(np.full((1, 15), np.float32(0.49999997 / 16)), 12).max() == 0


def array_file(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "member",
    [
        array_file(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(118)),
        array_file(b"((((((((((((((((((((".ljust(118)),
        array_file(b"{'descr': '<i8', 'fortran_order': False, 'shape': (20,), }".ljust(118)) + bytes(161),
        b"",
    ],
)
def test_absurd_arrays_with_right_checksums(content, tmp_path, member):
    path = rewrite(content, tmp_path, lambda m: m.update({"arrays/00.00.bias.npy": member}))
    with pytest.raises(ProgramFileError):
        Program.load(path)


def test_members_that_belong_to_nothing(content, tmp_path):
    with pytest.raises(ProgramFileError, match="belong to nothing"):
        Program.load(rewrite(content, tmp_path, lambda m: m.update({"../evil": b"x"})))


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_killed_in_the_middle_of_writing(content, tmp_path):
    """SIGKILL at random moments of a loop that rewrites a file: it is always one whole program."""
    path = tmp_path / "net.circ"
    path.write_bytes(content)
    script = textwrap.dedent(
        """
        import sys
        from circ_overlay import Program
        p = Program.load(sys.argv[1])
        print("ready", flush=True)
        while True:
            p.save(sys.argv[1])
        """
    )
    for delay in (0.0, 0.003, 0.007, 0.011, 0.02):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_bytes() == content
