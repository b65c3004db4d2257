# Start with `make up`. Everything lives in .venv, ~/.cache and vmpool's state directory.
VENV := .venv/bin
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help up test test-kvm lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## Install what is missing, build the golden image, serve, and show one request (ARGS=...)
	@.ci/step "virtual environment" .ci/venv runtime
	@$(VENV)/vmpool up $(ARGS)

test: ## Install what is missing, then run linters, types and all tests (ARGS=... for pytest)
	@.ci/step "virtual environment" .ci/venv dev
	@.ci/step "host packages" $(VENV)/python -m vmpool.packages tests
	@$(VENV)/pytest -n $(WORKERS) --no-loadscope-reorder $(ARGS)

test-kvm: ## Run the kvm ring, in an emulated host where this machine has no KVM (ARGS=... for pytest)
	@.ci/step "virtual environment" .ci/venv dev
	@.ci/step "host packages" $(VENV)/python -m vmpool.packages tests
	@$(VENV)/python -m tests.kvm.nested $(ARGS)

lint: ## Run linters, types and import contracts
	@.ci/step "virtual environment" .ci/venv dev
	@$(VENV)/pytest -q tests/test_lint.py tests/test_imports.py tests/test_docs.py

bench: ## Measure this machine, beside what else could run on it (ARGS=--quick ...)
	@.ci/step "virtual environment" .ci/venv bench
	@.ci/step "host packages" $(VENV)/python -m vmpool.packages
	@.ci/step "what to compare with" $(VENV)/python -m vmpool.packages bench || echo "   what is missing is skipped"
	@$(VENV)/vmpool bench $(ARGS)

clean: ## Remove what was built here; images and snapshots stay (vmpool image remove)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks build dist
