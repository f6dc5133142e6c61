# What a developer types. Every target makes what it needs: .venv with the package, installed as it lies here.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := src tests benchmarks scripts examples

.DEFAULT_GOAL := help
.PHONY: help demo serve-demo test test-torch test-browser test-slow test-gpu lint format benchmark-accuracy compare docs-cli docs-figures clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.has-demo  ## train on the names of places, then ask; a minute or two, once
	@$(BIN)/python examples/geonames_demo.py

serve-demo: $(VENV)/.has-demo $(VENV)/.has-serve  ## the demo in a browser: trains it if needed, serves it, prints the URL
	@test -e demo/geonames-model/manifest.json || $(BIN)/python examples/geonames_demo.py
	@$(BIN)/machxc serve demo/geonames-model --example Мюнхен --example Konstantinopolis --example Reykyavik \
		--example 東京 --example "frankfurt am mein" --example Тбилисси

test: $(VENV)/.has-test  ## the tests, but slow ones and those that need an accelerator (or PyTorch, where it is not installed)
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-torch: $(VENV)/.has-test $(VENV)/.has-torch  ## the tests of the PyTorch backend, on the processor
	$(BIN)/pytest -n 2 -m "not slow and not gpu" tests/test_torch_*.py

test-slow: $(VENV)/.has-test  ## the tests that take minutes
	$(BIN)/pytest -m "slow and not gpu" || [ $$? -eq 5 ]  # 5: there is none

test-browser: $(VENV)/.has-test $(VENV)/.has-browser  ## the search page in a real browser, which is installed (Debian, as root)
	@command -v chromium chromedriver >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; }
	MACHXC_BROWSER=required $(BIN)/pytest tests/server/test_server_browser.py

test-gpu: $(VENV)/.has-test  ## the tests that need an accelerator
	$(BIN)/pytest -m gpu || [ $$? -eq 5 ]

lint: $(VENV)/.has-test $(VENV)/.has-lint  ## ruff and mypy, as CI runs them
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.has-lint  ## put the code in shape
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

benchmark-accuracy: $(VENV)/.has-test  ## accuracy, time, memory and model size on several data sets
	$(BIN)/python benchmarks/accuracy.py

compare: $(VENV)/.has-test $(VENV)/.has-plots  ## machxc and its peers side by side; hours, results are kept
	$(BIN)/pip install --quiet --disable-pip-version-check simple-icd-10-cm
	$(BIN)/python benchmarks/compare --docs

docs-cli: $(VENV)/.has-test  ## write the reference of the command line anew
	$(BIN)/python scripts/write_cli_reference.py

docs-figures: $(VENV)/.has-test $(VENV)/.has-plots  ## measure and draw the figures of docs/
	$(BIN)/python benchmarks/figures.py --docs

clean:  ## remove what was made, but .venv
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# One version for the tests, of which an index may have a build for processors alone: on a GPU, install machxc[torch].
$(VENV)/.has-torch: | $(VENV)/.has-test
	@echo "installing PyTorch into $(VENV) (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 "triton; sys_platform == 'linux'"
	@touch $@

# One stamp an extra: pip runs again when pyproject.toml changes, and else never.
$(VENV)/.has-%: pyproject.toml | $(VENV)/.made
	@echo "installing machxc[$*] into $(VENV) (once; a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@
