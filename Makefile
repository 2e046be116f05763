# make test: everything CI checks. make demo: the main job on a real model. Both set themselves up.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
FRAMEWORK ?= llamafactory
NAME ?= noisefit
AXOLOTL := .venv/axolotl/bin
LLAMAFACTORY := .venv/llamafactory/bin
export AXOLOTL_DO_NOT_TRACK := 1
export DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS := 1
export CUDA_VISIBLE_DEVICES :=
export WANDB_MODE := offline

.PHONY: help setup setup-axolotl setup-llamafactory check fix test test-axolotl test-llamafactory demo bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

setup: ## both virtual environments, side by side
	@$(MAKE) --no-print-directory -j2 setup-axolotl setup-llamafactory

setup-axolotl:
	@.ci/setup axolotl

setup-llamafactory:
	@.ci/setup llamafactory

check: setup-llamafactory ## format, lint and types; writes nothing
	$(LLAMAFACTORY)/ruff format --no-cache --check .
	$(LLAMAFACTORY)/ruff check --no-cache .
	$(LLAMAFACTORY)/mypy --cache-dir=/dev/null

fix: setup-llamafactory ## the writing twin of check
	$(LLAMAFACTORY)/ruff format --no-cache .
	$(LLAMAFACTORY)/ruff check --no-cache --fix .

test: setup ## set-up, check, and the tests of both environments side by side
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-axolotl test-llamafactory

test-axolotl: setup-axolotl
	PATH="$(CURDIR)/$(AXOLOTL):$$PATH" $(AXOLOTL)/pytest -p no:cacheprovider

test-llamafactory: setup-llamafactory
	PATH="$(CURDIR)/$(LLAMAFACTORY):$$PATH" $(LLAMAFACTORY)/pytest -p no:cacheprovider

demo: ## train a real small model plain and with noisefit (FRAMEWORK=axolotl for the other framework)
	@.ci/setup $(FRAMEWORK)
	@PATH="$(CURDIR)/.venv/$(FRAMEWORK)/bin:$$PATH" .venv/$(FRAMEWORK)/bin/python tests/demo/demo.py $(FRAMEWORK)

bench: setup-llamafactory ## a benchmark, NAME=noisefit
	@$(LLAMAFACTORY)/python tests/benchmarks/bench_$(NAME).py

clean: ## remove the environments and caches
	rm -rf .venv .cache
