# make demo, test, lint, bench, ablation, small-model, experiment, bundle: each sets up what it needs in .venv;
# make test-latest, test-oldest: the tests that need no torch, on the newest Python and on the oldest versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Compiling, which tests mostly do, keeps one core busy. A test file needs up to 7 GB.
TEST_WORKERS ?= 2
PYTEST := -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-latest test-oldest lint format bench ablation small-model experiment bundle clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.run: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/pip install --quiet --editable .
	@touch $@

# The oracles come without their dependencies: torch's would be gigabytes.
$(VENV)/.test: $(VENV)/.run tests/requirements-oracles.txt
	$(BIN)/pip install --quiet --no-deps --requirement tests/requirements-oracles.txt
	$(BIN)/pip install --quiet --editable '.[test,parity]'
	@touch $@

demo: $(VENV)/.run
	$(BIN)/clipvis demo --out $(DEMO)

test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

test-fast: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "not slow"

# Environments of other versions, without torch: what tests/parity compares with is not there.
NEWEST = $(shell .ci/newest_python)
.venv-latest/.test: pyproject.toml requirements.txt tests/requirements-oracles.txt
	$(NEWEST) -m venv --clear .venv-latest
	.venv-latest/bin/pip install --quiet --no-deps --requirement tests/requirements-oracles.txt
	.venv-latest/bin/pip install --quiet --editable '.[test]'
	@touch $@

# uv chooses the lowest versions that requirements.txt allows, pip installs them.
.venv-oldest/.test: $(BIN)/python pyproject.toml requirements.txt tests/requirements-oracles.txt
	$(BIN)/python -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --output-file .venv-oldest/lowest.txt \
	  requirements.txt pyproject.toml --extra test
	.venv-oldest/bin/pip install --quiet --no-deps --requirement tests/requirements-oracles.txt
	.venv-oldest/bin/pip install --quiet --requirement .venv-oldest/lowest.txt --editable '.[test]'
	@touch $@

TESTED := -m "not slow"
test-latest test-oldest: test-%: .venv-%/.test
	.venv-$*/bin/python $(PYTEST) --ignore tests/parity $(TESTED)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.run
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.vocabulary
	$(BIN)/python -m bench.memory

# Scores models of the Shapes world and switches their parts one by one: the tables of docs/experiments.md.
MODELS ?= clipvis_jax/bundled/model
DOCUMENT ?= build/experiments.md
ablation: $(VENV)/.run
	$(BIN)/python -m bench.experiments --document $(DOCUMENT) $(MODELS)

# A model of the Shapes world from nothing. Stopped, it goes on where it was, as all trainings do.
SEED := 0
TRAIN = $(BIN)/python train.py configs/shapes_
small-model: $(VENV)/.run
	$(TRAIN)clip.py --workdir runs/shapes_clip
	$(TRAIN)clip_more.py --init-from runs/shapes_clip/model --workdir runs/shapes_clip_more
	$(TRAIN)clipvis.py --seed $(SEED) --clip runs/shapes_clip/model --workdir runs/shapes_clipvis_$(SEED)
	$(TRAIN)finetune.py --seed $(SEED) --init-from runs/shapes_clipvis_$(SEED)/model --workdir runs/shapes_finetune_$(SEED)
	$(TRAIN)settle.py --seed $(SEED) --init-from runs/shapes_finetune_$(SEED)/model --clip runs/shapes_clip_more/model \
	  --workdir runs/shapes_settle_$(SEED)

# The whole experiment from nothing: one CLIP, decoders of three seeds, their scores.
SEEDS := 0 1 2
experiment: $(VENV)/.run
	set -e; for seed in $(SEEDS); do $(MAKE) small-model SEED=$$seed; done
	$(MAKE) ablation MODELS="$(SEEDS:%=runs/shapes_settle_%/model)"

# Remakes what comes with the package: trains the small CLIP and the decoders on it, and draws the clip. The new model's
# scores then have to go into tests/commands/test_bundled.py.
BUNDLE := clipvis_jax/bundled
# A test video with objects of all three parts, picked by hand.
CLIP := 25
bundle: small-model
	rm -rf $(BUNDLE)/model $(BUNDLE)/clip
	cp -r runs/shapes_settle_$(SEED)/model $(BUNDLE)/model
	$(BIN)/clipvis shapes --split test --first $(CLIP) --count 1 --size 480 --out $(BUNDLE)/clip
	cd $(BUNDLE) && find clip model -type f | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest build *.egg-info
