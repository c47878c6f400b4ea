# SPDX-License-Identifier: BSD-3-Clause
"""What pip sees: the same metadata in both files, light imports, a package that works without a compiler."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import circ_overlay

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "circ_overlay"


def setup_arguments():
    """The keywords that setup.py passes to setup()."""
    import runpy
    from unittest import mock

    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    return setup.call_args.kwargs


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reading pyproject.toml needs tomllib of Python 3.11")
def test_both_metadata_agree():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    arguments = setup_arguments()
    assert project["name"] == arguments["name"]
    assert project["description"] == arguments["description"]
    assert project["requires-python"] == arguments["python_requires"]
    assert project["dependencies"] == arguments["install_requires"] == ["numpy>=1.21"]
    assert project["classifiers"] == arguments["classifiers"]
    assert project["optional-dependencies"] == arguments["extras_require"]
    assert arguments["version"] == circ_overlay.__version__
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    for group, lines in arguments["entry_points"].items():
        assert [f"{name} = {target}" for name, target in groups[group].items()] == lines


def test_importing_the_package_needs_numpy_alone():
    script = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in allowed and name.partition('.')[0] not in sys.stdlib_module_names:
            raise ImportError('blocked ' + name)
allowed = {'numpy', 'circ_overlay'}
sys.meta_path.insert(0, Block())
import circ_overlay, circ_overlay.golden, circ_overlay.compiler, circ_overlay.models, circ_overlay.datasets
import circ_overlay.circulant, circ_overlay.engines, circ_overlay.perf.cycles, circ_overlay.codegen
program = circ_overlay.models.load('digits-mlp')
print(circ_overlay.__version__, 'numpy' in sys.modules, len(program.layers))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [circ_overlay.__version__, "True", "3"], done.stderr


@pytest.mark.parametrize(("blocked", "module", "advice"), [
    ("pynq", "circ_overlay.driver", "pip install circ-overlay[pynq]"),
    ("torch", "circ_overlay.nn", "pip install circ-overlay[train]"),
    ("onnx", "circ_overlay.compiler.onnx_import", "pip install circ-overlay[onnx]"),
])  # fmt: skip
def test_missing_extras_are_named(blocked, module, advice):
    script = f"import sys; sys.modules[{blocked!r}] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert advice in done.stderr


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_import_rule():
    """Arrows point down: see docs/architecture.md."""
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        names = set(imports(path))
        tops = {name.partition(".")[0] for name in names}
        if "pynq" in tops:
            assert room in ("driver", "emulator"), path
        if "torch" in tops:
            runs_on_boards = path.name in ("__init__.py", "google.py", "preprocess.py", "speech.py")
            training = (room == "models" and not runs_on_boards) or path.name.startswith("torch_")
            assert room == "nn" or training, path
        if room in ("circulant.py", "fixedpoint.py"):
            assert not any(name.startswith((".", "circ_overlay")) for name in names), path
        if room == "spec":
            assert not any(name.startswith(("..", "circ_overlay")) for name in names), path


def test_modules_stay_readable():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, f"{path} would be easier to live in as two rooms"
    for path in (ROOT / "hls_src").glob("*.hpp"):
        if path.name != "circ_spec.hpp":
            assert len(path.read_text().splitlines()) <= 250, path


def test_every_source_has_its_licence_line():
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("hls_src/**/*.[ch]pp"),
             *ROOT.glob("benchmarks/*.py"), ROOT / "setup.py"]  # fmt: skip
    for path in files:
        assert "SPDX-License-Identifier: BSD-3-Clause" in path.read_text().split("\n", 2)[0], path


def test_no_print_in_the_library():
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"]  # fmt: skip
        assert not calls, path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Wheels built without isolation: with the compiler there is, and with none."""
    folder = tmp_path_factory.mktemp("wheels")
    pytest.importorskip("wheel" if sys.version_info < (3, 11) else "setuptools", reason="building needs setuptools")
    result = {}
    for kind, compiler in (("compiled", None), ("pure", "/nonexistent/g++")):
        environment = dict(os.environ)
        if compiler:
            environment |= {"CC": compiler, "CXX": compiler, "LDSHARED": compiler}
        source = folder / f"source-{kind}"
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if tracked.returncode:
            pytest.skip("not a git checkout: the wheel would hold what lies about here")
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).exists():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / name, follow_symlinks=False)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / kind), "."],
            cwd=source, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (result[kind],) = (folder / kind).glob("*.whl")
    return result


def test_wheel_holds_what_users_need(wheels):
    import zipfile

    for kind, wheel in wheels.items():
        names = zipfile.ZipFile(wheel).namelist()
        assert "circ_overlay/models/weights/mnist-mlp.circ" in names
        assert "circ_overlay/_notebooks/01_getting_started.ipynb" in names
        assert "circ_overlay/_bitstreams/README.md" in names
        assert "circ_overlay/py.typed" in names
        engines = [name for name in names if re.search(r"engines/_hls.*\.(so|pyd)$", name)]
        assert len(engines) == (1 if kind == "compiled" and has_compiler() else 0)
        assert not any(name.startswith(("tests/", "hls_src/")) for name in names)


def has_compiler():
    return shutil.which((sysconfig.get_config_var("CXX") or "g++").split()[0]) is not None


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """Folder into which pip has installed the wheel that was built without a compiler."""
    folder = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheels["pure"])],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_without_a_compiler_the_golden_engine_serves_and_says_so(installed):
    script = (
        "from circ_overlay.engines import available_engines, best_engine;"
        "print(best_engine()); print(available_engines()['hls'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=installed, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.stdout.startswith("golden\n"), done.stderr
    assert "C++17 compiler" in done.stdout


def test_links_stand_in_for_the_top_level_folders():
    """An editable install, which is what make sets up, finds bitstreams and notebooks through these."""
    for name in ("bitstreams", "notebooks"):
        assert (PACKAGE / f"_{name}").resolve() == (ROOT / name).resolve()
    script = "import circ_overlay._notebooks as n, os; print(sorted(os.listdir(list(n.__path__)[0]))[0])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "01_getting_started.ipynb", done.stderr


def test_entry_points_resolve(installed):
    """pynq.notebooks and pynq.overlays name folders that exist in the installed package."""
    script = """
import importlib.metadata as m, importlib, pathlib
for point in next(m.distributions(name='circ-overlay', path=['.'])).entry_points:
    if point.group in ('pynq.notebooks', 'pynq.overlays'):
        module = importlib.import_module(point.value)
        print(point.group, sorted(p.name for p in pathlib.Path(list(module.__path__)[0]).iterdir())[:2])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=installed, capture_output=True, text=True)
    assert "pynq.notebooks ['01_getting_started.ipynb'" in done.stdout, done.stderr
    assert "pynq.overlays ['README.md'" in done.stdout
