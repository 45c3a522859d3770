# The two main commands are `make demo` and `make test`; both set up what they need.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTHON := $(BIN)/python
SAM = SAM_CLI_TELEMETRY=0 .venv-sam/bin/sam
DEPLOY = $(PYTHON) -m darkroom_local.deploy $(if $(ARCHITECTURE),Architecture=$(ARCHITECTURE))
LOCKED := uv.lock scripts/sync scripts/uv scripts/python313
# A process more than the smallest machine has cores: the end-to-end tests wait most of the time. A file
# stays in one process, so that what it sets up is set up once; e2e comes early, unit tests last.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
LINT_TRANSFORMED := build/transformed.json

.PHONY: help setup demo test check checkov sam-local test-sam-local test-iam soak fuzz fuzz-answers fuzz-csv fuzz-images \
	bench bench-limits bench-outage bench-cost bench-noise bench-ledger bench-report bench-memory \
	bench-batches build deploy attach lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-16s %s\n", $$1, $$2 }'

# ---------------------------------------------------------------- set-up

.venv/.synced: pyproject.toml $(LOCKED)
	@echo "setting up .venv"
	@scripts/sync .venv
.venv-ministack/.synced: $(LOCKED)
	@echo "setting up .venv-ministack"
	@scripts/sync .venv-ministack --only-group ministack
.venv-sam/.synced: $(LOCKED)
	@echo "setting up .venv-sam"
	@scripts/sync .venv-sam --only-group sam
.venv-checkov/.synced: $(LOCKED)
	@echo "setting up .venv-checkov"
	@scripts/sync .venv-checkov --only-group checkov

setup: .venv/.synced .venv-ministack/.synced .venv-sam/.synced ## install uv, Python 3.13, SAM CLI and MiniStack as locked
	@$(if $(filter setup,$(MAKECMDGOALS)),echo 'Ready: .venv/bin/darkroom --help. To type just "darkroom": export PATH="$(CURDIR)/.venv/bin:$$PATH"',:)

# ---------------------------------------------------------------- the main job

demo: setup ## edit a dozen photos on the one-machine stack (PROVIDERS=real: with the API keys in your environment)
	@$(PYTHON) -m darkroom_local.demo

# ---------------------------------------------------------------- checks

test: setup ## all tests, including the real template on the one-machine stack
	$(BIN)/pytest $(PARALLEL) $(ARGS)

check: .venv/.synced .venv-sam/.synced ## format, lint, types, template
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cfn-lint template.yaml
	$(SAM) validate --lint
	@mkdir -p build
	$(PYTHON) -m tests.template.transform template.yaml > $(LINT_TRANSFORMED)
	$(BIN)/cfn-lint $(LINT_TRANSFORMED)
	$(SAM) validate --lint --template $(LINT_TRANSFORMED)

checkov: .venv-checkov/.synced ## security findings of the template
	.venv-checkov/bin/checkov --config-file .checkov.yaml

sam-local: setup ## prepare `sam local invoke FUNCTION -e events/FILE` (STACK=darkroom for a stack on AWS)
	@$(PYTHON) -m darkroom_local.sam_local $(if $(STACK),--stack $(STACK)) $(ARGS)

test-sam-local: setup ## `sam local invoke` of the three functions, where containers can run
	$(PYTHON) -m tests.sam_local $(ARGS)

test-iam: setup ## check that a run fails without any one permission (about an hour)
	$(BIN)/pytest tests/iam -m soak $(ARGS)

soak: setup ## the long tests: crashes, outages, hours of faults
	$(BIN)/pytest -m soak --ignore tests/iam $(ARGS)

fuzz: .venv/.synced ## many more, random examples for the property tests
	$(BIN)/pytest tests/unit --hypothesis-profile=fuzz --hypothesis-show-statistics $(ARGS)

fuzz-answers: .venv/.synced ## mutated answers of the providers, through both SDKs (20,000)
	$(BIN)/pytest tests/contract/test_provider_fuzzing.py --hypothesis-profile=fuzz --hypothesis-show-statistics $(ARGS)

fuzz-csv: .venv/.synced ## coverage-guided fuzzing of the CSV reader (FUZZ_SECONDS=300)
	@env -u UV_PYTHON UV_SYSTEM_CERTS=1 "$$(scripts/uv)" pip install --quiet --python $(PYTHON) --target .local/atheris atheris
	@mkdir -p build/fuzz/csv
	PYTHONPATH=.local/atheris $(PYTHON) -m tests.fuzz.fuzz_csv -max_total_time=$(or $(FUZZ_SECONDS),300) build/fuzz/csv

fuzz-images: .venv/.synced ## mutated images, with the memory and time of each (FUZZ_SECONDS=600)
	$(PYTHON) -m tests.fuzz.fuzz_images --seconds $(or $(FUZZ_SECONDS),600) $(ARGS)

# ---------------------------------------------------------------- figures

bench: bench-limits bench-outage bench-noise bench-report bench-memory ## most figures in docs/benchmarks.md

bench-limits: setup ## rate limits over all workers, compared with other systems
	$(PYTHON) -m benchmarks.limits $(ARGS)

bench-noise: .venv/.synced ## dispatch when providers are noisy, down or slow, on a virtual clock
	$(PYTHON) -m benchmarks.noise $(ARGS)

bench-outage: setup ## the effect of an outage of the first provider
	$(PYTHON) -m benchmarks.outage $(ARGS)

bench-cost: setup ## billed time and AWS operations per image, on a virtual clock and the one-machine stack
	$(PYTHON) -m benchmarks.cost $(ARGS)

bench-ledger: .venv/.synced ## a million rows split, and the load on each partition key (ARGS="10000000 500")
	$(PYTHON) -m benchmarks.ledger_load $(ARGS)

bench-report: .venv/.synced ## the report on a million rows, and on ten million simulated
	$(PYTHON) -m benchmarks.report_million $(ARGS)
	$(PYTHON) -m benchmarks.report_million --by-index $(ARGS)
	$(PYTHON) -m benchmarks.report_million --simulate 10000000 3000

bench-memory: .venv/.synced ## the memory of a worker with ten 4K rows, and with images at every limit
	$(PYTHON) -m benchmarks.memory $(ARGS)

bench-batches: .venv/.synced ## mode=batch with faults and dying processes, and its memory (ARGS="crashes 2000")
	$(PYTHON) -m benchmarks.batches $(ARGS)

# ---------------------------------------------------------------- AWS

build: .venv/.synced .venv-sam/.synced ## sam build, and a check of its wheels (ARCHITECTURE=arm64 for Graviton)
	@$(DEPLOY) --only-build

deploy: .venv/.synced .venv-sam/.synced ## build and deploy to your AWS account (ARGS="WorkerProcesses=8")
	@$(DEPLOY) $(ARGS)

attach: .venv/.synced ## a new stack with the data of a deleted one (SUFFIX=the last part of its buckets' names)
	@$(PYTHON) -m darkroom_local.attach $(SUFFIX) $(ARGS)

# ---------------------------------------------------------------- upkeep

lock: ## update uv.lock and the layer's requirements from pyproject.toml
	env -u UV_PYTHON "$$(scripts/uv)" lock
	env -u UV_PYTHON "$$(scripts/uv)" export --quiet --frozen --only-group lambda --no-emit-project \
		--no-header --no-annotate -o layers/dependencies/requirements.txt

clean: ## remove everything that was set up or built here
	rm -rf .venv .venv-* .tools .aws-sam .local build .mypy_cache .ruff_cache .pytest_cache .hypothesis
