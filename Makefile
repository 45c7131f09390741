# make demo   a portrait from an example clip, with the shipped model (installs the runtime into .venv)
# make test   lint, types, import contracts and all tests (installs training and export too)
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/.runtime
	$(BIN)/s2f generate examples/woman.wav -o portrait.png

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict runtime
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[cpu]'
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[cpu,train,export,dev]'
	touch $@ .venv/.runtime

.PHONY: demo test
