# Needs Python >= 3.11 and nothing else. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= phantoms
MUTANTS ?= *__mutmut_*[16]

.DEFAULT_GOAL := help
.PHONY: help cards demo docs mutants notebook test test-fast test-mixins test-real check release style clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Pretrain a small Adam and draw what it learned (DATA=folder-or-parquet for your own images)
	$(BIN)/python scripts/demo.py --data "$(DATA)"

test: $(VENV)/.dev ## Run the tests that need no data
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not real_data and not mixins"

test-fast: $(VENV)/.dev ## Run the tests that take under ten seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not real_data and not mixins and not slow"

test-real: $(VENV)/.dev ## Run the tests on the real images of ../shared/data
	$(BIN)/python -m pytest -n 2 --dist worksteal -m real_data

test-mixins: $(VENV)/.dev ## Fetch transformers' own tests of models and processors, and run them over ours
	$(BIN)/python scripts/fetch_mixins.py
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_mixins.py

mutants: $(VENV)/.mutants ## Change the code in small ways, and list the changes that no test notices (MUTANTS='*' for all)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 1 "$(MUTANTS)"
	$(BIN)/mutmut results

docs: $(VENV)/.docs ## Build the documentation with its API reference and search, to site/index.html
	rm -rf build/docs site && mkdir -p build/docs
	cp -r --parents *.md LICENSE NOTICE docs model_cards tests/golden/README.md build/docs
	$(BIN)/jupyter nbconvert --log-level WARN --to markdown build/docs/docs/eden_hf.ipynb
	sed -i.before 's/(docs\/eden_hf\.ipynb)/(docs\/eden_hf.md)/' build/docs/README.md && rm build/docs/README.md.before
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file .ci/mkdocs.yml

notebook: $(VENV)/.notebook ## Run docs/eden_hf.ipynb, and keep its outputs but for progress and warnings
	TQDM_DISABLE=1 PYTHONWARNINGS=ignore $(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False docs/eden_hf.ipynb

cards: $(VENV)/.dev ## Copy the package's code into the given models, and write all model cards again
	for model in model_cards/*/model.safetensors; do cp eden_hf/*_eden*.py eden_hf/hub/handler.py "$$(dirname "$$model")" || exit 1; done
	for card in model_cards/*/card.yaml; do $(BIN)/eden card write "$$(dirname "$$card")" || exit 1; done

release: ## Build source archive and wheel of the commit, try them in a clean environment, leave them in dist/
	PYTHON=$(PYTHON) scripts/release.sh

check: $(VENV)/.dev ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev ## Fix what `make check` can fix by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) dist outputs site build mutants *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# An extra is installed once: its stamp is newer than the files that say what to install.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.docs $(VENV)/.mutants $(VENV)/.notebook: $(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, {sys.version.split()[0]} is {sys.executable}; use make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@
