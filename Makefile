# `make demo` and `make test` are all that a fresh clone needs; `make help` lists the rest.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The interpreter that makes .venv; `make test PYTHON=python3.12` takes another one.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMO_OUT ?= reparam-demo
# Test processes, one torch thread each; more of them than cores only slows the tests down.
WORKERS ?= 2
PYTEST_ARGS ?=
# The converters for phones take older versions of some packages that the other tools use: they are
# installed beside .venv, and see what is in it.
PHONES := .venv-phones
PHONE_TESTS := tests/engines/test_litert.py tests/engines/test_coreml.py
# So are libraries that this package works inside of, and that bring much of their own.
LIBRARIES := .venv-libraries
LIBRARY_TESTS := tests/integrations/test_yolo.py tests/integrations/test_olive.py
# The newest versions that pyproject.toml allows; `make test CONSTRAINTS=constraints.txt` takes those of
# the last green run on Linux, x86-64 and Python 3.11.
CONSTRAINTS ?=
PHONE_CONSTRAINTS ?= $(patsubst %.txt,%-phones.txt,$(CONSTRAINTS))

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16

.PHONY: demo
demo: $(READY) ## The whole story on bundled data, with a report page at the end
	$(BIN)/reparam demo --out $(DEMO_OUT)

.PHONY: test
test: $(READY) ## Run the tests (PYTEST_ARGS="-m slow" for the long ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

.PHONY: test-portable
test-portable: $(READY) ## The tests as other processors, a busy machine and another order have them (an hour)
	PYTEST="$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)" tests/portable.sh

.PHONY: test-phones
test-phones: $(PHONES)/.installed ## The tests of LiteRT and Core ML, whose converters have a venv of their own
	OMP_NUM_THREADS=1 $(PHONES)/bin/python -m pytest -p no:anyio -m "slow or not slow" \
	    $(PHONE_TESTS) $(PYTEST_ARGS)

.PHONY: test-libraries
test-libraries: $(LIBRARIES)/.installed ## The tests inside of ultralytics and Olive, which have a venv of their own
	OMP_NUM_THREADS=1 $(LIBRARIES)/bin/python -m pytest -m "slow or not slow" $(LIBRARY_TESTS) $(PYTEST_ARGS)

.PHONY: check
check: format-check lint types imports doctest tables docs look ## Everything but the tests

.PHONY: format-check
format-check: $(READY) ## Is the code formatted?
	$(BIN)/ruff format --check

.PHONY: lint
lint: $(READY) ## Lint the code
	$(BIN)/ruff check

.PHONY: types
types: $(READY) ## Check the types of the package, strictly
	$(BIN)/mypy

.PHONY: imports
imports: $(READY) ## Check that imports point down and that the core needs torch alone
	$(BIN)/lint-imports --no-logo

.PHONY: doctest
doctest: $(READY) ## Run the examples of the docstrings and of the pages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --doctest-modules --doctest-glob='*.md' \
	    --ignore=src/reparam/integrations/olive.py src docs $(PYTEST_ARGS)

.PHONY: docs
docs: $(READY) ## Build the site into site/, offline; a broken link fails
	PATH="$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.PHONY: look
look: docs ## Open every page of site/ in Chromium, at the widths of a desk and of a phone
	REPARAM_SITE=site $(BIN)/python -m pytest -m slow tests/project/test_site.py

.PHONY: tables
tables: $(READY) ## Does README say what the committed results say?
	$(BIN)/python benchmarks/readme_tables.py --check
	$(BIN)/python benchmarks/when.py --check
	$(BIN)/python benchmarks/tradeoff.py --check
	$(BIN)/python benchmarks/memory.py --check
	$(BIN)/python benchmarks/depth_ablation.py --check
	$(BIN)/python benchmarks/cifar_tradeoff.py --check

.PHONY: format
format: $(READY) ## Format the code and mend what can be mended safely
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: dist
dist: $(READY) ## Build the wheel and the source distribution into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

.PHONY: evidence
evidence: $(READY) ## List the scripts behind the published numbers; RUN=fold_cost runs one
	$(BIN)/python benchmarks/evidence.py $(RUN)

.PHONY: clean
clean: ## Remove caches and build outputs (not .venv, runs or reports)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(PHONES)/.installed: EXTRAS := [coreml,litert]
$(PHONES)/.installed: LIMITS := $(PHONE_CONSTRAINTS)
$(LIBRARIES)/.installed: EXTRAS := [olive,yolo]
$(PHONES)/.installed $(LIBRARIES)/.installed: pyproject.toml $(READY)
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(@D)/bin/python -m pip install --editable '.$(EXTRAS)' $(addprefix --constraint ,$(LIMITS))
	@touch $@

# The stamp is written last, so that an interrupted installation is taken up again, and a change of
# the dependencies installs what is new.
$(READY): pyproject.toml
	@for python in $(or $(PYTHON),python3.11 python3 python); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer is needed, and $(or $(PYTHON),neither python3.11 nor python3)" \
	        "is not that; install it, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$python: a download of several GB, most of it PyTorch."; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]' $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@
