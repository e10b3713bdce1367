# make demo    the whole study on a generated city walk, on two CPU cores     (VIDEO=my.mp4 trains on your own video)
# make test    all tests
# make docs    the site of the documentation, in site/
# make lock    renew requirements*.lock after a change of requirements*.txt
# make lint    formatting, style, types, workflow lint
# make gpu-check    what only runs on a GPU, proved on one in minutes (docs/gpu.md)    (PYTHON=python3.12: any Python that has torch)
# make test-slurm    the study on a real Slurm of this machine, with faults (docs/testing.md)
# the Python that the environment is made with; empty: one on the PATH, else one that is fetched (envs/python.sh)
PYTHON ?=
CORES ?= 2
VIDEO ?=
# a path may have spaces and quotes, so the shell does not see it: --config is JSON
export VIDEO
WALK := import json, os; print(json.dumps({"walk": {"source": os.path.abspath(os.environ["VIDEO"])}}))
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements.lock requirements-mm.lock pyproject.toml

.PHONY: demo test gpu-check test-slurm lint format docs lock install clean

demo: install
	$(BIN)/densewalk fetch --config demo/config.yaml
	$(BIN)/snakemake --directory demo --cores $(CORES) $(if $(VIDEO),--config "videos=$$($(BIN)/python -c '$(WALK)')" --) all
	@echo "tables: demo/results/tables/    page: demo/results/report.html"

test: install
	$(BIN)/pytest -n $(CORES) -m "not slurm"

# the environment that is there: PYTHON if it is given, else that of make install, if there is one
gpu-check:
	$(or $(PYTHON),$(wildcard $(BIN)/python),python3) -m benchmarks.gpu

test-slurm: install
	$(BIN)/pytest tests/workflow/test_slurm*.py -rs --durations=3

lint: install
	$(BIN)/python envs/lock.py --check
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

# strict: a link or a heading that does not exist is an error
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# every package in one version, with the sha256 of its files: again after a change of requirements*.txt
lock: install
	$(BIN)/python envs/lock.py

# two steps, because the OpenMMLab packages are installed without their own requirements (docs/environment.md)
$(VENV)/.installed: $(REQUIREMENTS)
	test -x $(BIN)/python || { python=$$(PYTHON="$(PYTHON)" sh envs/python.sh) && "$$python" -m venv $(VENV); }
	$(BIN)/pip install --require-hashes -r requirements.lock
	$(BIN)/pip install --require-hashes --no-deps -r requirements-mm.lock
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) .uv site demo/results demo/data demo/checkpoints demo/.snakemake
