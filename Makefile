# The jobs of this repository. `make help` lists them; each makes the environment on first use and reuses it after.

PYTHON   ?= python3
PIP_ARGS ?=
METHOD   ?= ppo
RECIPE   ?= nano
SEED     ?= 0
SEEDS    ?= 0
ARGS     ?=
WORKERS  ?= 2
SERVE    ?= policy
CHAT     ?= nano
PROFILES ?=
# Where make train trains: here, or in the container beside those of make up.
TRAINER  ?= here

VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
PACKAGES := core data reward-model[service] rollout[service] trainers eval-harness[hf] llm-judge[service] lab
PIP      := $(BIN)/python -m pip --quiet --disable-pip-version-check $(PIP_ARGS)
SOURCES  := $(wildcard packages/*/src)
# vLLM's environment is apart: its pins and ours differ. VLLM=vllm==0.32.0 installs the CUDA build instead.
VLLM       ?=
VLLM_VENV  := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_PIP   := $(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check $(PIP_ARGS)
# Containers need no environment of ours: any Python of this version finds the program that starts them.
RECENT   := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11, or not there: make … PYTHON=…" >&2; exit 2; }
COMPOSE  := PYTHONPATH=packages/core/src $(PYTHON) -m delivery.compose
# Tests share the cores among processes: one thread each, and each file's tests stay in one process.
PYTEST   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup vllm peer-vllm train up down compare judge tune serve chat test test-fast test-slow recipes-check lint types check-imports bench bench-check bench-plot bench-faults bench-gpu gpu-check images images-test bentos image-sizes release sbom audit wheels nano-base constraints clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo
	@echo '  PYTHON=python3.12       the interpreter that make setup uses (3.11 or newer)'
	@echo '  PIP_ARGS="…"            more arguments for pip, such as another index'

setup: $(READY) ## Create .venv with all packages, editable, and the tools, as constraints.txt pins them.

# The build tools come first, so that not every package builds an environment of its own for them, and all modules are
# compiled at the end on every core: together that halves the time. (Some packages ship templates that do not compile.)
$(READY): constraints.txt requirements-build.txt requirements-dev.txt $(wildcard packages/*/pyproject.toml packages/*/src/posttrain/*/__init__.py)
	@$(RECENT)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --requirement requirements-build.txt
	$(PIP) install --constraint constraints.txt --no-build-isolation --no-compile \
	  --requirement requirements-dev.txt $(foreach package,$(PACKAGES),--editable 'packages/$(package)')
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@$(BIN)/python -m posttrain.rollout.native.build
	@touch $@

vllm: $(VLLM_READY) ## Create .venv-vllm, vLLM's environment: its CPU build, or VLLM=vllm==0.32.0 for CUDA.

$(VLLM_READY): constraints-vllm.txt requirements-build.txt packages/core/pyproject.toml packages/data/pyproject.toml packages/rollout/pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
ifeq ($(VLLM),)
	$(VLLM_PIP) install --no-deps --requirement constraints-vllm.txt
else
	$(VLLM_PIP) install --constraint constraints-vllm.txt '$(VLLM)' bentoml jinja2 rich tenacity typer
endif
	$(VLLM_PIP) install --constraint constraints-vllm.txt --requirement requirements-build.txt
	$(VLLM_PIP) install --no-deps --no-build-isolation $(foreach package,core data rollout,--editable packages/$(package))
	@touch $@

peer-vllm: $(READY) $(VLLM_READY) ## Compare with vLLM: ids, log-probabilities, weights at run time, a stock server behind POLICY_URL.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_peer_vllm.py -m peer --timeout 600 $(ARGS)

ifeq ($(TRAINER),container)
train:
	@$(RECENT)
	$(COMPOSE) train $(METHOD) --recipe $(RECIPE) --seed $(SEED) $(ARGS)
else
train: $(READY) ## Train METHOD=ppo and what it needs, evaluate, print the table (RECIPE=nano SEED=0 ARGS="--set …" POLICY_URL= REWARD_URL= TRAINER=container).
	posttrain train $(METHOD) --recipe $(RECIPE) --seed $(SEED) $(ARGS)
endif

up: ## Start policy, reward and judge service in containers, on 127.0.0.1 (PROFILES="observability gpu"; docker/README.md).
	@$(RECENT)
	$(COMPOSE) $(foreach profile,$(PROFILES),--profile $(profile)) up $(ARGS)

down: ## End them; checkpoints, runs and judgements stay (ARGS=--volumes removes them).
	@$(RECENT)
	$(COMPOSE) down $(ARGS)

compare: $(READY) ## Train every method, evaluate all alike, one table with verdicts and plots (RECIPE=nano SEEDS=0,1,2 ARGS="--methods dpo,ppo …").
	posttrain compare --recipe $(RECIPE) --seeds $(SEEDS) $(ARGS)

judge: $(READY) ## Compare, and have every row's answers judged against the SFT policy's by the reward model and the verifiers.
	posttrain compare --judge --recipe $(RECIPE) --seeds $(SEEDS) $(ARGS)

tune: $(READY) ## Try METHOD's grid on the validation split; the choice goes into the recipe (RECIPE=nano ARGS="--trials 4").
	posttrain tune $(METHOD) --recipe $(RECIPE) $(ARGS)

serve: $(READY) ## Serve SERVE=policy, reward or judge in the foreground (ARGS="CHECKPOINT --port …").
	posttrain serve $(SERVE) $(ARGS)

chat: $(READY) ## Talk to CHAT=nano, a checkpoint, a run's fingerprint or a URL (ARGS="SECOND --web …").
	posttrain chat $(CHAT) $(ARGS)

test: $(READY) ## Run the default tests (ARGS="-k …").
	$(PYTEST) $(ARGS)

test-fast: $(READY) ## Run the tests that start no server and train nothing (a minute).
	$(PYTEST) -m 'not long and not service and not slow and not container and not gpu and not peer' $(ARGS)

test-slow: $(READY) ## Run the tests marked slow.
	$(PYTEST) -m 'slow and not container and not gpu and not peer' --timeout 1800 $(ARGS)

recipes-check: $(READY) ## Run every stage of every shipped recipe on an untrained model of two layers, a few steps each (minutes).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_recipes.py -m 'slow or not slow' --timeout 1800 $(ARGS)

lint: $(READY) ## Check style and format with ruff.
	ruff check .
	ruff format --check .

types: $(READY) ## Check types with mypy.
	mypy $(SOURCES) benchmarks delivery
	mypy docker

check-imports: $(READY) ## Check that packages import one way only, and nothing heavy where it must not be.
	lint-imports

bench: $(READY) ## Measure everything beside its peers, print the ratios, store the record of this kind of machine (35 minutes; ARGS=--dirty from uncommitted files).
	python -m benchmarks run $(ARGS)

bench-check: $(READY) ## Compare with the stored record of this kind of machine; fails on a slow-down beyond the noise.
	python -m benchmarks check $(ARGS)

bench-plot: $(READY) ## Draw the history of the benchmarks as results/bench/history-<machine>.png.
	python -m benchmarks plot $(ARGS)

bench-faults: $(READY) ## Load, mutated requests, hostile completions, killed services at full size, stored in results/bench (15 minutes).
	python -m benchmarks faults $(ARGS)

bench-gpu: $(READY) ## Measure training, rollouts and scoring on the GPU of this machine and store it (ARGS=--tiny without one).
	python -m benchmarks.gpu $(ARGS)

gpu-check: $(READY) ## Run SFT, DPO, RM, PPO and GRPO on this machine's GPU and record memory beside the plan's (ARGS=--cpu without one).
	python -m benchmarks.gpu.check $(ARGS)

images: $(READY) ## Build every component's image with the container engine that is there (ARGS="--target rollout …", PIP_EXTRA_INDEX_URL=…).
	python -m delivery images $(ARGS)

images-test: $(READY) ## Build the images and run them: versions, services, faults, PPO in three containers (minutes; ARGS="-k …" are pytest's).
	python -m delivery images
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/containers -m 'container and not slow' --timeout 1800 $(ARGS)

bentos: $(READY) ## Build the services as BentoML packages them, with this repository's wheels and pins in them (ARGS=policy).
	python -m delivery bentos $(ARGS)

image-sizes: $(READY) ## Measure the images, record them in results/bench/images.json; fails beyond their limits.
	python -m delivery sizes $(ARGS)

release: $(READY) ## Release PACKAGE by BUMP=major, minor or patch (first: the version as it is): commit, tag, wheel, sdist, image (DRY_RUN=1).
	python -m delivery release '$(PACKAGE)' '$(BUMP)' $(if $(DRY_RUN),--dry-run) $(ARGS)

sbom: $(READY) ## Write every image's bill of materials (CycloneDX) and licence list into dist/ (ARGS=PATH: an environment's).
	python -m delivery sbom --licences dist/licences $(ARGS)

audit: $(READY) ## Look for known holes in the pinned versions, where pip-audit's database can be reached.
	python -m delivery audit $(ARGS)

wheels: $(READY) ## Build the wheel of every package into dist/.
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist $(wildcard packages/*)

nano-base: $(READY) ## Rebuild the nano lab's base checkpoint from its generator and seed (minutes).
	python -m posttrain.trainers.nano_base $(ARGS)

constraints: $(READY) ## Write the versions that .venv has to constraints.txt.
	{ echo '# Every version of the tested set, transitive ones too. Written by make constraints.'; \
	  $(PIP) freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//'; } > constraints.txt.tmp
	mv constraints.txt.tmp constraints.txt
	touch $(READY)

clean: ## Remove the environment, wheels and caches; runs/ stays.
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
