# Every target is listed by `make help`. `make setup` is the only one that installs anything.
VENV := .venv
PYTHON := $(VENV)/bin/python
RUN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint soak bench vfio lock

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install Debian packages and make .venv (idempotent; says what it installs)
	@testbed/setup.sh $(VENV)

demo: setup ## Watch an MPI program compute on while both of its guests move, twice (root; two minutes)
	$(RUN)/kawarimi demo

lint: setup ## Format check, ruff, mypy --strict
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

test: lint ## Linters and the whole test suite, real guests included (root)
	$(PYTHON) -m pytest

soak: setup ## Hundreds of rounds, thousands of switches: what the tests do tens of (root; an hour)
	$(PYTHON) -m pytest -m soak
	$(PYTHON) -m pytest --kind ucp tests/qemu/test_full_load.py tests/qemu/test_main_job.py tests/qemu/test_programs_move.py
	KAWARIMI_SWITCHES=2000 $(PYTHON) -m pytest tests/ompi/test_switching.py tests/ompi/test_ucp_switching.py \
	  tests/ompi/test_ucp_pending.py -k "two_ranks or grow" --timeout 3000

bench: setup ## Measure; prints JSON and judges nothing (root; half an hour of a quiet machine)
	for name in testbed overhead switch qemu_alone main_job; do $(PYTHON) benchmarks/$$name.py || exit 1; done

vfio: setup ## Real vfio-pci passthrough, in an emulated machine with an IOMMU (root; minutes)
	$(PYTHON) -m pytest -m vfio

lock: setup ## Pin the versions that CI installs
	$(RUN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-annotate --no-header --upgrade --extra guest --extra host --extra report --extra bench --extra dev --output-file requirements.lock pyproject.toml
