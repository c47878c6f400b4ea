# SPDX-License-Identifier: BSD-3-Clause
"""Build script. The metadata stands here and in pyproject.toml: the setuptools 59.6 of PYNQ images reads only this.

A test holds the two together. The C++ engine is optional: without a compiler the package installs all the same.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "circ_overlay" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

EXTRAS = {
    "cli": ["click>=8", "rich>=12", "tqdm>=4.60", "matplotlib>=3.5"],
    "data": ["pooch>=1.6", "scikit-learn>=1.1", "tqdm>=4.60"],
    "train": ["torch>=2.1", "scikit-learn>=1.1", "tqdm>=4.60"],
    "onnx": ["onnx>=1.14"],
    "explore": ["click>=8", "rich>=12", "optuna>=3,<7", "matplotlib>=3.5"],
    "notebooks": ["jupyter>=1.0", "nbclient>=0.6", "ipykernel>=6", "matplotlib>=3.5"],
    # What pynq itself needs and does not say: it breaks with NumPy 2, its 3.x also with newer pycparser, setuptools.
    "pynq": ["pynq>=3.0.1", "numpy<2", "pycparser<3", "setuptools<=80"],
}

engine = Extension(
    "circ_overlay.engines._hls",
    sources=[str(path.relative_to(HERE)) for path in sorted((HERE / "hls_src").glob("engine_*.cpp"))],
    include_dirs=["hls_src"],
    depends=[str(path.relative_to(HERE)) for path in sorted((HERE / "hls_src").glob("*.hpp"))],
    language="c++",
    # No -march: the sources are compiled for several x86-64 generations, of which one is chosen at run time.
    # Doubles hold integers: no NaN, no negative zero, and a product fused with a sum rounds no more than apart.
    extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-signed-zeros",
                        "-ffinite-math-only", "-fno-trapping-math", "-Wno-unknown-pragmas",
                        "-Wno-unused-label"],
    optional=True,
)

setup(
    name="circ-overlay",
    version=VERSION,
    description="Block-circulant FFT neural-network overlay for PYNQ boards, with an emulated board",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["circ_overlay", "circ_overlay.*"]),
        "circ_overlay._bitstreams",
        "circ_overlay._notebooks",
    ],
    # Symbolic links to the top-level folders, so that an editable install finds them too.
    package_data={
        "circ_overlay": ["py.typed"],
        "circ_overlay.models": ["weights/*.circ", "weights/*.npz"],
        "circ_overlay._bitstreams": ["*", "*/circ.bit", "*/circ.hwh", "*/circ.json"],
        "circ_overlay._notebooks": ["*.ipynb"],
    },
    ext_modules=[engine],
    install_requires=["numpy>=1.21"],
    extras_require={**EXTRAS, "all": sorted({item for items in EXTRAS.values() for item in items})},
    entry_points={
        "console_scripts": ["circ-overlay = circ_overlay.__main__:main"],
        "pynq.lib": ["circ-overlay = circ_overlay.driver"],
        "pynq.overlays": ["circ-overlay = circ_overlay._bitstreams"],
        "pynq.notebooks": ["circ-overlay = circ_overlay._notebooks"],
    },
    classifiers=[
        "License :: OSI Approved :: BSD License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Hardware",
    ],
)
