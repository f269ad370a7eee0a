# make demo, make test, make lint, make bench: each sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: demo test test-fast lint format bench clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.run: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/pip install --quiet --editable .
	@touch $@

# open_clip's wheel ships CLIP's vocabulary, so that the demo needs no network but a package index.
$(VENV)/.demo: $(VENV)/.run tests/requirements-oracles.txt
	$(BIN)/pip install --quiet --no-deps --requirement tests/requirements-oracles.txt
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)
	@test -f $(DEMO)/random_rn50.safetensors || { \
	  echo "Drawing random weights for a full-size RN50 model ..."; \
	  $(BIN)/python -m bench.random_model RN50 $(DEMO)/random_rn50.safetensors; }
	@test -f $(DEMO)/model/config.json || $(BIN)/clipvis convert --checkpoint $(DEMO)/random_rn50.safetensors \
	  --tokenizer "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("open_clip").submodule_search_locations[0])')/bpe_simple_vocab_16e6.txt.gz" \
	  --out $(DEMO)/model
	$(BIN)/clipvis predict demo/dog.mp4 --model $(DEMO)/model --classes "dog, puppy" person "potted plant" \
	  --top-k 6 --out $(DEMO)/out
	@echo "Weights are random here, so masks follow the picture but names mean nothing; see README for real weights."

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.run
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.vocabulary
	$(BIN)/python -m bench.memory

clean:
	rm -rf $(VENV) build *.egg-info
