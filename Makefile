# `make book` and `make test` do all of their own set-up; `make help` lists the rest.
# Needs: make and Python 3.11 or newer (PYTHON=/path/to/python chooses one).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
PORT ?= 8000

# Notebooks run in their own folder: give them the data folder as a full path.
export MEDIMG_SIZE ?= tiny
export MEDIMG_DATA ?= $(CURDIR)/data

PACKAGE := $(shell find medimg_utils -type f -not -path '*/__pycache__/*')
NOTEBOOKS := $(shell find book -name '*.ipynb' -not -path '*/.*')

# Stamps: empty files that say when a step was last done.
INSTALLED := .venv/installed
ASSETS := .cache/site-assets
ANATOMY := .cache/anatomy
USE_CASES := pneumothorax knee brain
RELEASES := $(USE_CASES:%=.cache/release-%)
EMPTIED := .cache/outputs-emptied
OUTPUTS := .cache/outputs-valid
PAGES := .cache/pages-valid
# What a stamp stands for may be gone, or another MEDIMG_DATA lack it.
$(shell for use in $(USE_CASES); do \
	[ -d "$(MEDIMG_DATA)/$${use}-tiny" ] || rm -f .cache/release-$${use}; done; \
	[ -d "$(MEDIMG_DATA)/anatomy" ] || rm -f $(ANATOMY))
NEEDED := $(INSTALLED) $(ASSETS) $(ANATOMY) $(RELEASES) .cache/run-size
BUILT := $(NEEDED) $(OUTPUTS) $(PAGES)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
		| sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

# --- What people call -------------------------------------------------------

# The site of a configuration, below a folder. Sphinx writes a page that fails too, and
# would not look at it again: after a failure all pages are made anew.
BUILD_SITE = $(BIN)/jupyter-book build book --config $(1) --path-output $(2) \
	-W --keep-going || { rm -f $(PAGES); exit 1; }

.PHONY: book
book: $(BUILT) ## Build the website: _build/html/index.html
	$(call BUILD_SITE,_config.yml,.)

.PHONY: student
student: $(BUILT) ## Build the website without the solutions: _build/student/_build/html
	mkdir -p .cache/student
	$(BIN)/python book/_ext/student_config.py > .cache/student/_config.yml
	$(call BUILD_SITE,.cache/student/_config.yml,_build/student)

# Files of tests are spread over the cores, with one thread of arithmetic each. What a
# large array held is kept for the next one: glibc would hand it back to the system and
# fetch it again page by page (before 2.35 it does so all the same).
PARALLEL := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 \
	MALLOC_TRIM_THRESHOLD_=1073741824 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

# Runs copies, so that the sources stay free of outputs, and hands the outputs to the
# cache of the website: no notebook runs twice, and those that pass are kept even where
# another one fails. Four at once need up to 9 GB. May be given tests to run beside them.
define RUN_NOTEBOOKS
copies=$$($(BIN)/python book/_ext/executed.py copy) || exit; status=0; \
	if [ -n "$${copies}$(1)" ]; then $(PARALLEL) --maxprocesses=4 --nbmake --overwrite \
		--nbmake-timeout=300 $$copies $(1) || status=$$?; fi; \
	$(BIN)/python book/_ext/executed.py keep && exit $$status
touch $(OUTPUTS)
endef

# Tests always run at the tiny size.
test unit notebooks site: override MEDIMG_SIZE := tiny

.PHONY: test
test: lint unit notebooks site ## Run every check and test

.PHONY: lint
lint: $(INSTALLED) ## Check style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers=auto
	$(BIN)/codespell

.PHONY: unit
unit: $(INSTALLED) $(ANATOMY) $(RELEASES) ## Run the unit tests and the examples in docstrings
	$(PARALLEL) medimg_utils tests/unit

.PHONY: notebooks
notebooks: $(NEEDED) $(EMPTIED) ## Run every notebook at the tiny size, and the tests about them
	rm -rf .cache/notebooks
	$(call RUN_NOTEBOOKS,tests/notebooks)

.PHONY: site
site: book ## Build the website and test it in a browser
	$(PARALLEL) --dist=worksteal tests/site

.PHONY: lab
lab: $(NEEDED) ## Open the chapters in JupyterLab
	test -x $(BIN)/jupyter-lab || $(BIN)/python -m pip install --quiet -e '.[lab]'
	$(BIN)/jupyter lab book

.PHONY: serve
serve: book ## Serve the website on this machine (PORT=8000)
	$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 $(PORT)

.PHONY: first-cells
first-cells: $(INSTALLED) ## Write the first cell of every notebook from _config.yml
	$(BIN)/python book/_ext/first_cell.py --write

.PHONY: run-sizes
run-sizes: $(INSTALLED) ## Write the table of run sizes in README.md from the results
	$(BIN)/python book/_ext/run_sizes.py --write

.PHONY: cards
cards: $(INSTALLED) ## Write the model and data cards from the results
	$(BIN)/python book/_ext/model_cards.py --write

.PHONY: format
format: $(INSTALLED) ## Format the code and strip outputs from the notebooks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

.PHONY: clean
clean: ## Remove the website, keep data and notebook outputs
	rm -rf _build

.PHONY: distclean
distclean: clean ## Remove everything that make made, except data
	rm -rf .cache .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find book/_extra/vendor -mindepth 1 ! -name paths.js -delete

# --- Steps ------------------------------------------------------------------

$(INSTALLED): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed and was not found." >&2; \
		echo "Install it, or say where it is: make PYTHON=/path/to/python ..." >&2; \
		exit 1; fi
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[book,test]'
	touch $@

$(ASSETS): book/_ext/site_assets.py $(INSTALLED)
	$(BIN)/python book/_ext/site_assets.py
	mkdir -p .cache && touch $@

$(ANATOMY): data_scripts/fetch_anatomy.py medimg_utils/physics/anatomy.py | $(INSTALLED)
	for group in chest knee brain; do \
		$(BIN)/python data_scripts/fetch_anatomy.py $$group || exit; done
	mkdir -p .cache && touch $@

# The simulated exams of the tiny size, made anew when their simulator changes.
SIMULATORS := $(wildcard medimg_utils/physics/*.py)
.cache/release-pneumothorax: $(patsubst %,medimg_utils/pneumothorax/%.py,simulate \
	phantom collapse technique view curves body girdle findings devices film)
.cache/release-knee: $(patsubst %,medimg_utils/knee/%.py,simulate phantom findings \
	series shapes soft_tissue hard_tissue texture voxels)
.cache/release-brain: $(patsubst %,medimg_utils/brain/%.py,simulate phantom tumour \
	head scan)
$(RELEASES): .cache/release-%: $(SIMULATORS) medimg_utils/simulation.py | $(ANATOMY)
	$(BIN)/python data_scripts/simulate.py tiny $*
	mkdir -p .cache && touch $@

# Stored outputs go stale when the package, the data or the run size changes. Of a
# notebook that changed after that, the website's build itself makes them anew.
$(EMPTIED): $(PACKAGE) $(RELEASES) .cache/run-size
	rm -rf .cache/notebooks
	mkdir -p .cache && touch $@

$(OUTPUTS): $(EMPTIED) | $(ASSETS)
	$(call RUN_NOTEBOOKS)

# Sphinx itself rebuilds the pages that changed. Of these files it does not know, or not
# that every page shows them: the table of contents is the sidebar of all pages.
$(PAGES): $(OUTPUTS) $(ASSETS) _config.yml book/_toc.yml \
		$(wildcard book/_ext/*.py book/_static/* book/_extra/vendor/*)
	rm -rf _build
	mkdir -p .cache && touch $@

.PHONY: always
.cache/run-size: always
	@mkdir -p .cache; echo "$(MEDIMG_SIZE)" | cmp --silent - $@ || echo "$(MEDIMG_SIZE)" > $@
