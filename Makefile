# Needs Python >= 3.11, make and git. The first call of a target sets up .venv; later calls do not touch it.

PROFILE ?= quick
ARGS ?=
MINUTES ?= 5
# The version that constraints.txt was recorded on comes first. Override: make test PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# To use a GPU machine's own torch: make test VENV_ARGS=--system-site-packages
VENV_ARGS ?=
PIP_ARGS ?=

# Without bytecode on disk every new process compiles all that it imports: 12 s instead of 5 for the package.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
COMMA := ,
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
STRIP := $(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill metadata.widgets cell.metadata.papermill"

.PHONY: help study figures all more test soak browser screenshots lab docs lint clean-env
.DEFAULT_GOAL := help

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

study: .venv/.ready ## the main questions, small: 00 to 04, 07, 09, beside the stored evidence (PROFILE=quick)
	$(BIN)/clstudy study --profile $(PROFILE)

figures: .venv/.ready ## draw every figure and table again from figures/runs.parquet, without training
	$(BIN)/clstudy study --profile full --part all --stored

all: .venv/.ready ## every run of every notebook, packed into figures/runs.parquet, and every figure
	$(BIN)/clstudy study --profile full --part all --pack

more: .venv/.ready ## the other notebooks, small: 05, 06, 08, 10 to 12 (PROFILE=quick)
	$(BIN)/clstudy study --profile $(PROFILE) --part more

test: .venv/.ready ## run the tests (ARGS="-k batch")
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

soak: .venv/.ready ## kills, full disks and damaged files, MINUTES=5
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --minutes $(MINUTES) $(ARGS)

browser: .venv/.ready ## every notebook and widget in a real JupyterLab (skipped without Chromium)
	$(if $(CHROMIUM),$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev$(COMMA)browser]')
	$(if $(CHROMIUM),$(BIN)/python -m pytest tests/browser_lab.py $(ARGS),@echo "skipped: there is no Chromium here")

screenshots: ## pictures of the widgets into figures/lab/ (after make study and make more)
	CLSTUDY_SCREENSHOTS=$(CURDIR)/figures/lab $(MAKE) browser

# The kernels' sockets lie in a short temporary folder: their paths may have 107 characters, and a home folder can be long.
# The settings: no news from outside, room for the notebooks' names. Root (in a container) has to be allowed.
lab: .venv/.ready ## open the notebooks in JupyterLab
	JUPYTER_RUNTIME_DIR=$$(mktemp -d) $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks --KernelManager.transport=ipc \
		--LabApp.app_settings_dir=$(CURDIR)/notebooks/.lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

docs: .venv/.ready ## build the documentation into build/site (needs no network to read)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(BIN)/python scripts/site/build_site.py

lint: .venv/.ready ## check the code, and that no notebook holds outputs
	$(BIN)/ruff check .
	$(if $(NOTEBOOKS),$(STRIP) --verify $(NOTEBOOKS))

clean-env: ## remove .venv
	rm -rf .venv

.venv/.ready: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "clstudy needs Python >= 3.11 with its venv module; found: $(or $(PYTHON),none)." \
			"Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV_ARGS) .venv
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
