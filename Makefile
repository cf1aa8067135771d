# make demo    the main job on the embedded corpus, from nothing to a table of results
# make test    everything that continuous integration checks
# make quick   what to run before every commit (a few minutes)
# make docs    the documentation, in site/
# Each makes .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Files of tests go to one process each, which share what is expensive, such as the import of NeMo.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test quick lint docs clean

demo: $(READY)
	recipes/ep_mini/run.sh
	@echo "Results: recipes/ep_mini/exp/RESULTS.md and recipes/ep_mini/exp/wer.png"

test: lint
	$(PYTEST)

quick: lint
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m nemo_merge.reporting.method_cards > docs/reference/methods.md
	$(BIN)/python -m nemo_merge.reporting.corpus_cards > docs/reference/corpora.md
	$(BIN)/mkdocs build --strict

clean:
	rm -rf site build *.egg-info recipes/*/data recipes/*/exp

# torch comes first: a later requirement without a version would bring another build of it.
$(READY): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@
