# make demo       a portrait from an example clip, with the shipped model (installs the runtime into .venv)
# make test       lint, types, import contracts and all tests (installs training and export too)
# make capi       libs2f.so and the C and C++ examples, into build/ (needs a C compiler and CMake)
# make gate       is this build slower than the committed baseline of this machine? (exit status 90; 91: too busy to say);
#                 it runs as the baseline did, in a cache of its own; BENCH=… are more options of s2f bench
# make soak       what runs for a long time and is left out of make test
# make evaluate   the shipped model's numbers again; MAKEHUMAN=… and SPEECH=… are folders as for s2f-train corpus
PYTHON ?= python3
BIN := .venv/bin
MAKEHUMAN ?= $(S2F_MAKEHUMAN)
SPEECH ?= $(S2F_SPEECH)
EVALUATION ?= evaluation

demo: .venv/.runtime
	$(BIN)/s2f generate examples/woman.wav -o portrait.png

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict runtime
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

capi: .venv/.capi
	$(BIN)/s2f-capi build -o build/s2f
	cmake -S examples -B build/examples -DCMAKE_PREFIX_PATH=$(CURDIR)/build/s2f
	cmake --build build/examples

gate: .venv/.runtime
	$(BIN)/python -m benchmarks.gate --once $(BENCH)

soak: .venv/.dev
	$(BIN)/python -m pytest -m soak

# The corpus of the demo (its model card), of which only the test voices are made.
evaluate: .venv/.dev
	$(BIN)/s2f-train corpus --makehuman "$(MAKEHUMAN)" --speech "$(SPEECH)" --out $(EVALUATION)/corpus \
		--identities 6000 --seed 1 --portraits 1 --clips 2 --size 256 --only test
	$(BIN)/python benchmarks/quality.py runtime/bundles/demo --corpus $(EVALUATION)/corpus --speech "$(SPEECH)" \
		--out $(EVALUATION)/report --threads 2

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[cpu]'
	touch $@

.venv/.capi: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[cpu,capi]'
	touch $@ .venv/.runtime

.venv/.dev: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[cpu,train,export,dev]'
	touch $@ .venv/.runtime

.PHONY: demo test capi gate soak evaluate
