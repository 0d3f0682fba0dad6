# `make` alone lists the targets. Everything runs from this folder; nothing is installed outside it
# except distribution packages.

SHELL := /bin/bash
PYTHON := .venv/bin/python
PYTEST_ARGS ?=
JOBS ?= 2
DEMO_ARGS ?=
SEEDS ?= 1000
ROUNDS ?= 50
CUTS ?= 20
RESTART_ROUNDS ?= 10
TIME ?= 600
TARGET ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-test demo test lint types sim sim-mutants fuzz soak torture powercut interop restart-test bench bench-vm lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## distribution packages and .venv (quick when there is nothing to do)
	@scripts/setup runtime

setup-test: ## the same, and what only the tests need
	@scripts/setup test

demo: setup ## two nodes on this machine: sync, mount, kill one, fail over, resync
	@.venv/bin/pydrbd demo $(DEMO_ARGS)

test: setup-test lint types ## lint, types and all tests in JOBS (2) processes, the virtual machines first
	$(PYTHON) -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: setup ## ruff: rules and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: setup ## mypy --strict
	$(PYTHON) -m mypy

sim: setup ## the simulator with the full fault model over SEEDS (1000) seeds
	$(PYTHON) -m pydrbd.sim --swarm --seeds $(SEEDS)

sim-mutants: setup ## each safety rule removed in turn: the simulator must notice every time
	$(PYTHON) -m pydrbd.sim --mutants --seeds 400

torture: setup-test ## ROUNDS (50) of kills, stops, cuts and swaps of two real nodes (TORTURE_ARGS=--help)
	$(PYTHON) -m tests.torture --rounds $(ROUNDS) $(TORTURE_ARGS)

soak: setup-test ## TIME (600) seconds of load and reconnects: does a process grow? (SOAK_ARGS=--help)
	$(PYTHON) -m tests.soak --time $(TIME) $(SOAK_ARGS)

fuzz: setup ## coverage-guided fuzzing for TIME (600) seconds in all; TARGET=name: only that one
	$(PYTHON) -m tests.fuzz --time $(TIME) --save $(TARGET)

restart-test: setup-test ## RESTART_ROUNDS (10) crashes and restarts under ext4 and fio in a virtual machine
	PYDRBD_ROUNDS=$(RESTART_ROUNDS) $(PYTHON) -m pytest -s tests/test_vm_restart.py $(PYTEST_ARGS)

powercut: setup-test ## CUTS (20) of the power of two virtual machines under a client that fsyncs
	$(PYTHON) -m tests.support.powercut --cuts $(CUTS) $(POWERCUT_ARGS)

interop: setup-test ## every hash of verify-alg, csums-alg, data-integrity-alg with the kernel's DRBD, in about 25 minutes
	PYDRBD_INTEROP=all $(PYTHON) -m pytest tests/test_vm_digests.py

bench: setup-test ## pydrbd beside the limit and qemu's mirror, in about 12 minutes (BENCH_ARGS=--quick: 3; --help)
	$(PYTHON) -m tests.bench $(BENCH_ARGS)

bench-vm: setup-test ## the short form beside the kernel's DRBD, in a virtual machine
	$(PYTHON) -m tests.bench.vm $(BENCH_ARGS)

lock: setup ## make the lock files anew from pyproject.toml (LOCK_ARGS=--upgrade for newest versions)
	scripts/lock $(LOCK_ARGS)

clean: ## remove .venv, caches and build leftovers (images cached for the tests stay in ~/.cache)
	rm -rf .venv build dist pydrbd/hotpath/*.so *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find pydrbd nbd_plugin tests -name __pycache__ -type d -prune -exec rm -rf {} +
