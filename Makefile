# Everything runs in .venv, which the first call makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo results weights test lint clean

demo: .venv/installed  ## the whole way on a synthetic set, sized to this machine: data, VQ-VAE, DCGAN, scores, novel brains
	$(BIN)/python benchmarks/demo.py

results: .venv/installed  ## every number and picture of the README, from the pretrained models: make results DATA=DIR
	$(BIN)/python benchmarks/readme.py --data "$(DATA)"

weights: .venv/installed  ## the pretrained models, by the commands of their model card, in runs/weights: make weights DATA=DIR
	$(BIN)/python benchmarks/weights.py "$(DATA)"

test: .venv/installed-dev lint  ## the test suite
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv runs
