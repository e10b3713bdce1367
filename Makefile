# make demo    the whole study on a generated city walk, on two CPU cores     (VIDEO=my.mp4 trains on your own video)
# make test    all tests
# make lint    formatting, style, types, workflow lint
# make gpu-check    what only runs on a GPU, proved on one in minutes (docs/gpu.md)    (PYTHON=python3.12: any Python that has torch)
# make test-slurm    the study on a real Slurm of this machine, with faults (docs/testing.md)
PYTHON ?= python3.11
CORES ?= 2
VIDEO ?=
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-mm.txt requirements-dev.txt pyproject.toml

.PHONY: demo test gpu-check test-slurm lint format install clean

demo: install
	$(BIN)/snakemake --directory demo --cores $(CORES) $(if $(VIDEO),--config 'videos={"walk": {"source": "$(abspath $(VIDEO))"}}' --) all
	@echo "tables: demo/results/tables/    page: demo/results/report.html"

test: install
	$(BIN)/pytest -n $(CORES) -m "not slurm"

# the environment that is there: PYTHON if it is given, else that of make install, if there is one
gpu-check:
	$(or $(if $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/python)),$(PYTHON)) -m benchmarks.gpu

test-slurm: install
	$(BIN)/pytest tests/workflow/test_slurm*.py -rs --durations=3

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint --configfile config.yaml

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow
	$(BIN)/densewalk schema > workflow/schemas/config.schema.json
	$(BIN)/densewalk deviations > docs/deviations.md

install: $(VENV)/.installed

# two steps, because the OpenMMLab packages are installed without their own requirements (docs/environment.md)
$(VENV)/.installed: $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --no-deps -r requirements-mm.txt
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) demo/results demo/data demo/.snakemake
