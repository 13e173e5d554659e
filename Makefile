# Every target stands alone: on a fresh Debian 12, from a fresh clone, as root. `make help` tells what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin

.PHONY: help setup demo test test-faults test-kernel lint format rules bench bench-full bench-snat vm-box check-fresh clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## Debian's packages and .venv: only what is missing, at once when nothing is
	@tools/setup.sh

demo: setup ## a two-node cluster in network namespaces, and packets reaching a service through our eBPF
	@$(BIN)/pydatapath lab demo

test: setup ## all tests; without root those that need none
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

# Not in a folder that git knows: rows of a clean commit would call it dirty
ROWS ?= build/reliability.jsonl

test-faults: setup ## all fault tests at full size, in hours; a row for each in build/reliability.jsonl
	@mkdir -p $(dir $(ROWS))
	@rm -f $(ROWS)
	@PYDATAPATH_BIG=1 PYDATAPATH_ROWS=$(ROWS) $(BIN)/python -m pytest --faults $(PYTEST_ARGS)

test-kernel: ## the packet tests on Debian 12's own kernel, in an emulator
	@tools/setup.sh kernel
	@tools/test-kernel.sh

lint: setup ## ruff, mypy --strict, shellcheck
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy --strict
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run tools/*.sh vagrant/*.sh vagrant/{build-box,cluster,fetch}; else echo "shellcheck is not installed: shell scripts not checked"; fi

format: setup ## put code into the one format
	@$(BIN)/ruff check --fix --select I
	@$(BIN)/ruff format

rules: setup ## docs/rules.md of the tests: which of them say that a rule holds
	@$(BIN)/python tools/rules.py

# Where results go: $(BENCH)-run.json and its kin, $(BENCH).md, pictures in $(BENCH)/. Given again after a run that was
# stopped, it takes that one up: make bench-full BENCH=bench/results/2026-11-30-120000
BENCH ?= bench/results/$(shell date +%Y-%m-%d-%H%M%S)
BENCH := $(BENCH)

# $(call measured,NAME,OPTIONS): a benchmark's result. Where something in it failed there is a result all the same, which
# says what; where there is none, or it was stopped, we stop, too.
measured = @code=0; file=$(BENCH)-$(1).json; \
	$(BIN)/python -m bench $(1) $(2) --json $$file $$([[ ! -e $$file ]] || echo --resume) || code=$$?; \
	[[ $$code == 0 || ( $$code == 1 && -e $$file ) ]] || exit $$code

bench: ## speed, in some minutes: plain ways, services by us and by kube-proxy's rules, SNAT; with pictures
	@tools/setup.sh bench
	@mkdir -p $(dir $(BENCH))
	$(call measured,run,--quick $(BENCH_ARGS))
	$(call measured,packet_costs,--rounds 3 $(PACKET_ARGS))
	@$(BIN)/python -m bench plot $(BENCH)-{run,packet_costs}.json --out $(BENCH) --markdown $(BENCH).md
	@echo "pictures: $(BENCH)/, tables: $(BENCH).md, every raw value: $(BENCH)-*.json"

bench-full: ## what is published: the same at length, many services, and how soon a change is in effect
	@tools/setup.sh bench
	@mkdir -p $(dir $(BENCH))
	$(call measured,run,--full $(BENCH_ARGS))
	$(call measured,crowd,$(CROWD_ARGS))
	$(call measured,programming,$(PROGRAMMING_ARGS))
	$(call measured,packet_costs,$(PACKET_ARGS))
	@$(BIN)/python -m bench plot $(BENCH)-{run,crowd,programming,packet_costs}.json --out $(BENCH) --markdown $(BENCH).md
	@echo "pictures: $(BENCH)/, tables: $(BENCH).md, every raw value: $(BENCH)-*.json"

bench-snat: ## what leaving the cluster costs: plain routing, SNAT by us, MASQUERADE by iptables and nftables
	@tools/setup.sh bench
	@$(BIN)/python -m bench snat $(BENCH_ARGS)

vm-box: ## a Vagrant box from Debian packages, for vagrant/ where none can be downloaded
	@vagrant/build-box

check-fresh: ## the release check: demo and test in a minimal Debian 12 root
	@tools/setup.sh fresh
	@tools/minimal-root.sh

clean: ## what make made, the virtual environment and the downloaded kernel included
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
