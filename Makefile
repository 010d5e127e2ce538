.PHONY: help run test quick check docs docs-serve setup setup-test serve conformance bench soak matrix release audit lock
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'

run: setup ## Set up, then scan two services on loopback with an MCP client through the server
	@$(BIN)/python -m scripts.demo

test: setup-test ## Set up, then run all tests
	@scripts/test.sh

quick: setup-test ## Check lint, types and the fast unit tests, in less than 90 seconds
	@scripts/quick.sh

check: setup-test ## Check lint, format, types, import layers and documentation
	@scripts/check.sh

docs: setup-test ## Generate the pages that are made from the code, and build the documentation into .cache/site
	@$(BIN)/python scripts/docs.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open .cache/site/index.html"

docs-serve: setup-test ## Serve the documentation on http://127.0.0.1:8000, and rebuild it at every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

setup: ## Install nmap, and this package in .venv
	@scripts/setup.sh run

setup-test: ## Install the services of the lab, Node and the development packages
	@scripts/setup.sh test

serve: setup ## Serve MCP and REST on http://127.0.0.1:8080
	@exec $(BIN)/mcp-network-tools serve --transport http

conformance: setup-test ## Run the official MCP conformance suite
	@scripts/conformance.sh

bench: setup-test ## Measure speed, as ratios to reference programs measured in the same run
	@$(BIN)/python -m bench

soak: setup-test ## Run one server under steady load for MINUTES (60), and check whether its memory grows
	@$(BIN)/python -m bench.load.soak $(or $(MINUTES),60)

matrix: setup-test ## Test the installed server with each Python, with and without root and each optional program
	@$(BIN)/python -m scripts.matrix --page docs/compatibility.md

release: setup-test ## Build and check a release in dist/, without publishing it. ANYWAY="step ..." ignores failed steps
	@$(BIN)/python -m scripts.release $(if $(ANYWAY),--release-anyway $(ANYWAY))

audit: setup-test ## Check the locked packages for known vulnerabilities
	@$(BIN)/python -m scripts.audit

lock: setup-test ## Resolve the dependencies and write requirements/*.lock
	@scripts/lock.sh
