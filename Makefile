# Two commands are enough: `make serve` and `make test`. Both make .venv first.
#
#   make serve                              the demo model on 127.0.0.1:8000
#   make serve MODEL=org/model              another model: a Hugging Face id, a folder, a .gguf
#   make serve ARGS='--port 9000'           arguments of `llmserve serve`
#   make test ARGS='-k stream -x'           arguments of pytest
#   make setup ENGINE=cpu PYTHON=python3.12 another engine (auto, cuda, cpu, none) or Python

PYTHON ?= python3
ENGINE ?= auto
MODEL ?= demo
ARGS ?=

BIN := .venv/bin
SETUP = @command -v $(PYTHON) >/dev/null || { \
	echo "set-up: FAILED: there is no $(PYTHON) here. llmserve needs Python 3.11 or newer" \
	"(Debian, Ubuntu: sudo apt-get install python3 python3-venv)." >&2; exit 1; }; \
	exec $(PYTHON) tools/setup_env.py --engine $(ENGINE)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve doctor test coverage lint format bench fuzz clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make .venv with the engine that fits this machine
	$(SETUP)

setup-dev: ## the same, with the tools for tests and checks
	$(SETUP) --dev

serve: setup ## serve MODEL (the demo model) with ARGS
	@exec $(BIN)/llmserve serve $(MODEL) $(ARGS)

doctor: setup ## what this machine can serve, and what is missing
	@exec $(BIN)/llmserve doctor $(ARGS)

test: setup-dev ## run the tests with ARGS, those without an engine beside those with one
	@exec $(BIN)/python -m pytest --numprocesses 2 --dist loadscope $(ARGS)

coverage: setup-dev ## the same, half as fast again, then print what they run through
	@$(BIN)/coverage run -m pytest $(ARGS); status=$$?; $(BIN)/coverage report; exit $$status

lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup-dev ## measure beside vllm serve, judge the goals, write docs/performance.md
	@exec $(BIN)/python -m bench $(ARGS)

fuzz: setup-dev ## feed the model file readers for a minute (needs atheris)
	@exec $(BIN)/python -m tests.fuzz.fuzz_modelfile $(ARGS)

clean: ## remove .venv and everything else that was made here
	rm -rf .venv build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
