# SPDX-License-Identifier: BSD-3-Clause
# make demo | test | check | bench: each sets up what it needs in .venv (and .venv-pynq4), from the package registries alone.

SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c
PYTHON ?= python3
PIP_FLAGS ?= -q --disable-pip-version-check
PYNQ3 = pynq==3.1.2
PYNQ4 = pynq==4.0.0
SOURCES = setup.py pyproject.toml $(wildcard hls_src/*.hpp hls_src/*.cpp)
BIN = .venv/bin

.PHONY: demo test test-slow check bench generate clean

# ---- environments: the stamp files say what has been installed ------------------------------------------------
.venv/stamp-demo: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) "$(PYNQ3)" -e ".[cli,data,pynq]"
	touch $@

.venv/stamp-test: .venv/stamp-demo requirements-dev.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) "$(PYNQ3)" -e ".[cli,data,pynq,notebooks]" -r requirements-dev.txt
	# Only for the vendor's number types, which its wheel carries as headers; the package itself is not used.
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps hls4ml==1.1.0
	touch $@

.venv-pynq4/stamp: .venv/stamp-demo
	test -x .venv-pynq4/bin/python || $(PYTHON) -m venv .venv-pynq4
	.venv-pynq4/bin/python -m pip install $(PIP_FLAGS) "$(PYNQ4)" -e ".[cli,data,pynq]" pytest hypothesis
	touch $@

# ---- what people call -----------------------------------------------------------------------------------------
demo: .venv/stamp-demo
	@mkdir -p demo
	$(BIN)/circ-overlay run digits-mlp --picture demo/digits-mlp.png | tee demo/digits-mlp.txt
	@if $(BIN)/circ-overlay data mnist; then \
	  $(BIN)/circ-overlay run mnist-mlp --picture demo/mnist-mlp.png | tee demo/mnist-mlp.txt; \
	else echo "mnist-mlp was not run: MNIST is neither here nor to be downloaded (see the line above)"; fi

test: .venv/stamp-test .venv-pynq4/stamp
	$(BIN)/python -m pytest
	.venv-pynq4/bin/python -m pytest tests/test_emulated_board.py tests/test_driver*.py tests/test_cli.py

check: .venv/stamp-test
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m circ_overlay.codegen --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) -C hls_src format-check

bench: .venv/stamp-test
	$(BIN)/python benchmarks/bench_engine.py
	$(BIN)/python benchmarks/bench_driver.py
	$(BIN)/python benchmarks/bench_nn.py

generate: .venv/stamp-test
	$(BIN)/python -m circ_overlay.codegen
	$(BIN)/python tests/vectors/generate.py

clean:
	rm -rf .venv .venv-pynq4 build demo *.egg-info circ_overlay/engines/_hls*.so
	$(MAKE) -C hls_src clean
