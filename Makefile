# What a person or a CI runs, by name. Settings of the service (LIKENESS_HOST, LIKENESS_PORT,
# LIKENESS_DATA_DIR, LIKENESS_PACK, LIKENESS_DEVICE, ...) are environment variables and pass through.

PYTHON ?= python3
# cpu, openvino or gpu; each has a virtual environment of its own, because the engines must never be mixed.
EXTRA ?= cpu
VENV ?= $(if $(filter cpu,$(EXTRA)),.venv,.venv-$(EXTRA))
UV ?= $(VENV)/bin/uv
IMAGE ?= likeness:$(EXTRA)
# More arguments for pytest: make test ARGS="-k decision". One process: make test ARGS="-n 0"
ARGS ?=
# The default suite runs in as many processes as there are cores, four at most; one that has no test left takes
# over half of another's.
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal
# Each of them computes on one thread, so that they do not compete for the cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# An install that was cut off leaves this behind; the next one then trusts nothing it finds.
UNFINISHED := $(STAMPS)/unfinished
REPAIR = $(if $(wildcard $(UNFINISHED)),--ignore-installed)

# $(call install,NAME): the pinned, hashed requirements/NAME.txt, then this tree itself (its build backend is pinned
# there too). A lock is complete, so nothing is resolved here. pip's output passes through FETCHED, and a pipe has the
# status of its last command: whether pip succeeded is seen by the mark it removes. The build of OpenCV that earlier
# versions installed owns the same files as today's: it goes first.
define install
	@echo "Installing requirements/$(1).txt into $(VENV); this is done once and takes a minute or more. Fetching:"
	@touch $(UNFINISHED)
	@set -- $(VENV)/lib/python3*/site-packages/opencv_python-[0-9]*.dist-info; ! test -e "$$1" \
		|| $(PIP) uninstall --quiet --yes opencv-python opencv-python-headless
	@{ $(PIP) install --progress-bar off --no-deps --require-hashes --only-binary :all: $(REPAIR) \
			-r requirements/$(1).txt \
		&& $(PIP) install --quiet --no-deps --no-build-isolation --editable . \
		&& rm -f $(UNFINISHED); } | $(FETCHED)
	@test ! -e $(UNFINISHED)
endef

# The names of the packages as pip comes to them.
FETCHED = while read -r word name rest; do case "$$word $$name" in \
	"Collecting "*) printf ' %s' "$${name%%=*}" ;; \
	"Installing collected") printf '\nUnpacking them\n' ;; \
	"Successfully installed") printf 'Done\n' ;; esac; done

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: serve
serve: $(STAMPS)/serve-$(EXTRA) ## Install what the service needs, once, and start it (EXTRA=gpu on a CUDA machine, openvino)
	@exec $(BIN)/likeness serve

.PHONY: service
service: $(STAMPS)/serve-$(EXTRA) ## Install what the service needs, without starting it

.PHONY: install
install: $(STAMPS)/dev ## Install what tests and checks need

.PHONY: insightface
insightface: $(STAMPS)/serve-$(EXTRA) ## What `likeness models pull` needs for InsightFace's packs
	$(call install,$(if $(filter gpu,$(EXTRA)),gpu-insightface,insightface))

.PHONY: lab
lab: $(STAMPS)/serve-$(EXTRA) ## What `likeness evaluate --output`, `models pack`, `models install` and `models pull accurate` or `fast` need
	$(call install,lab)

# Not in the locks: the right build depends on the machine, and the default one takes several GB.
TORCH ?= torch==2.13.0
.PHONY: torch
torch: $(STAMPS)/dev ## PyTorch, for exporting checkpoints and testing that (TORCH=... for another build)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install "$(TORCH)"

.PHONY: openapi
openapi: $(STAMPS)/dev ## Write docs/openapi.json, which a test compares with what is served
	@UPDATE_OPENAPI=1 $(BIN)/python -m pytest -q tests/api/test_openapi.py -k committed

.PHONY: tables
tables: $(STAMPS)/dev ## Write the tables of a new SQLite database, which a test compares with the migrations
	@UPDATE_TABLES=1 $(BIN)/python -m pytest -q tests/store/test_migrations.py -k new_sqlite

.PHONY: cli-docs
cli-docs: $(STAMPS)/dev ## Write the list of commands in docs/cli.md, which a test compares with the commands
	@UPDATE_CLI=1 $(BIN)/python -m pytest -q tests/cli/test_cli_page.py

.PHONY: clients
clients: ## The generators of API clients, for tests of the OpenAPI document; needs npm
	@echo "Installing the generators of tests/clients into .venv-clients and tests/clients/node_modules"
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --no-deps --require-hashes -r tests/clients/requirements.txt
	@npm ci --silent --prefix tests/clients

# What tests of an engine need beside dev.txt, which has that of `cpu`.
ENGINE := $(if $(filter openvino,$(EXTRA)),$(STAMPS)/serve-openvino)

.PHONY: test
test: $(STAMPS)/dev $(ENGINE) ## The default test suite
	$(ONE_THREAD) $(BIN)/python -m pytest $(WORKERS) $(ARGS)

# Exit code 5 is pytest's "nothing was selected": no failure for the sets below.
.PHONY: test-slow
test-slow: $(STAMPS)/dev ## The tests that take longer: test-long, then test-chaos
	@$(MAKE) --no-print-directory --keep-going -j1 test-long test-chaos

.PHONY: test-long
test-long: $(STAMPS)/dev ## Those of them that disturb nothing, side by side as those of `make test`
	$(ONE_THREAD) $(BIN)/python -m pytest $(WORKERS) -m "slow and not chaos and not gpu and not accuracy" $(ARGS) || [ $$? -eq 5 ]

.PHONY: test-chaos
test-chaos: $(STAMPS)/dev ## Those that kill, flood and fill disks, one after the other
	TMPDIR=$${TMPDIR:-/tmp} $(BIN)/python -m pytest -m "chaos and not gpu and not accuracy" $(ARGS) || [ $$? -eq 5 ]

.PHONY: test-all
test-all: $(STAMPS)/dev ## Everything that needs no GPU
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

.PHONY: accuracy
accuracy: $(STAMPS)/dev ## Error rates on the evaluation data (LIKENESS_EVAL_DATA, default ../shared/data)
	$(BIN)/python -m pytest -m accuracy $(ARGS) || [ $$? -eq 5 ]

.PHONY: check
check: $(STAMPS)/dev ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict app scripts
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMPS)/dev ## Format the code, and correct what ruff can correct
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# dev.txt comes first and constrains the others, so that every environment has the same versions.
# UPGRADE=1 takes newer ones; without it a pin moves only where pyproject.toml makes it.
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-build \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --group build pyproject.toml \
	--extra headless --excludes requirements/headless.excludes.txt
NO_CPU_RUNTIME = --excludes requirements/gpu.excludes.txt
NO_TELEMETRY = --excludes requirements/openvino.excludes.txt
NO_TORCH = --excludes requirements/export.excludes.txt

.PHONY: lock
lock: ## Write requirements/*.txt from pyproject.toml (UPGRADE=1 for newer versions)
	@command -v $(UV) >/dev/null || { echo "No uv: 'make install' first, or name one: make lock UV=uv" >&2; exit 1; }
	$(LOCK) --extra cpu --extra postgres --extra parquet --extra insightface --extra export --extra lab --extra dev $(NO_TORCH) -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt --extra cpu --extra postgres --extra parquet -o requirements/cpu.txt
	$(LOCK) -c requirements/dev.txt --extra cpu --extra postgres --extra parquet --extra insightface -o requirements/insightface.txt
	$(LOCK) -c requirements/dev.txt --extra cpu --extra postgres --extra parquet --extra export $(NO_TORCH) -o requirements/export.txt
	$(LOCK) -c requirements/dev.txt --extra lab -o requirements/lab.txt
	$(LOCK) -c requirements/dev.txt --extra openvino --extra postgres --extra parquet $(NO_TELEMETRY) -o requirements/openvino.txt
	$(LOCK) -c requirements/dev.txt --extra gpu --extra postgres --extra parquet -o requirements/gpu.txt
	$(LOCK) -c requirements/dev.txt --extra gpu --extra postgres --extra parquet --extra insightface $(NO_CPU_RUNTIME) -o requirements/gpu-insightface.txt

.PHONY: image
image: ## The container image (EXTRA=gpu for CUDA)
	docker build --target $(EXTRA) --tag $(IMAGE) --build-arg "REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown)" .

.PHONY: clean
clean: ## Remove environments, caches and build output; data stays
	rm -rf .venv .venv-* dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find app scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one:" \
			"make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Likeness needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "No virtual environment could be made (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/serve-$(EXTRA): requirements/$(EXTRA).txt pyproject.toml | $(STAMPS)/venv
	$(call install,$(EXTRA))
	@touch $@

# dev.txt holds all of cpu.txt at the same versions, so that `make serve` after `make test` has nothing to do.
$(STAMPS)/dev: requirements/dev.txt pyproject.toml | $(STAMPS)/venv
	$(call install,dev)
	@touch $@ $(STAMPS)/serve-cpu
