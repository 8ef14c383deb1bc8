# The two that matter: make demo, make test. Everything happens in $(VENV).
VENV ?= .venv
PYTHON ?= python3
# The build that the rest was tested with. On Linux pip takes the CUDA build from PyPI; for the CPU build alone:
# make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
# Empty for a copy that does not follow the sources (what CI tests).
EDITABLE ?= -e
BIN := $(abspath $(VENV))/bin
TYPED := .build/typed

.PHONY: install demo test check bench wheel clean

install: $(VENV)/installed

# What is left out is a note of setuptools on how it makes an installation that follows the sources.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/pip install --quiet $(EDITABLE) ".[dev]"
	touch $@

# Train, distil, export, prove and measure the built-in example; then open out/demo/report.html. Then the shipped emoji model, proved in
# every runtime that there is here: out/parity/parity.html.
demo: install
	$(BIN)/edge-sd run demo -o out/demo
	$(BIN)/edge-sd export --target all --overwrite -o out/emoji64.edgesd
	$(BIN)/edge-sd parity out/emoji64.edgesd --overwrite -o out/parity
	$(BIN)/edge-sd sample out/emoji64.edgesd -n 16 --scale 2 --overwrite -o out/emoji64.png

# Files side by side, a process for each core; `$(BIN)/pytest tests/…` runs some of them alone.
test: install
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile --durations 25

# Types are checked on an installed copy: mypy cannot follow five folders into one package.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) build
	$(BIN)/pip install --quiet --no-deps --target $(TYPED) .
	cd $(TYPED) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p edge_sd

bench: install
	$(BIN)/python tests/benchmarks/denoiser.py
	$(BIN)/python tests/benchmarks/export.py
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/training.py latent16
	$(BIN)/python tests/benchmarks/quantization.py -o out/quantization

wheel: install
	rm -rf build
	$(BIN)/python -m build --wheel

clean:
	rm -rf .build build dist *.egg-info
