.PHONY: help run test check docs docs-serve setup setup-test serve conformance bench soak matrix release audit lock
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'

run: setup ## Set up, then have an MCP client scan two services on loopback through the real server
	@$(BIN)/python -m scripts.demo

test: setup-test ## Set up what the tests need, then run all of them
	@scripts/test.sh

check: setup-test ## Lint, types, import layers, documentation
	@scripts/check.sh

docs: setup-test ## Write the pages that are made from the code, and build the documentation into .cache/site
	@$(BIN)/python scripts/docs.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open .cache/site/index.html"

docs-serve: setup-test ## Serve the documentation on http://127.0.0.1:8000, again at every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

setup: ## Install what running needs: nmap, and this package in .venv
	@scripts/setup.sh run

setup-test: ## Install what the tests need: the lab's services, Node, the development packages
	@scripts/setup.sh test

serve: setup ## Serve MCP and REST on http://127.0.0.1:8080
	@exec $(BIN)/mcp-network-tools serve --transport http

conformance: setup-test ## Run the official MCP conformance suite against our transport
	@scripts/conformance.sh

bench: setup-test ## Measure speed as ratios against floors taken in the same run
	@$(BIN)/python -m bench

soak: setup-test ## Run one server under a steady mix for MINUTES (60) and see whether what it holds stays the same
	@$(BIN)/python -m bench.load.soak $(or $(MINUTES),60)

matrix: setup-test ## Use the installed server with each Python, as root and not, with and without each optional program
	@$(BIN)/python -m scripts.matrix --page docs/compatibility.md

release: setup-test ## Build and check all that would be published, into dist/; publishes nothing. ANYWAY="step ..."
	@$(BIN)/python -m scripts.release $(if $(ANYWAY),--release-anyway $(ANYWAY))

audit: setup-test ## Ask for known vulnerabilities of the locked packages; fails where it could not ask
	@$(BIN)/python -m scripts.audit

lock: setup-test ## Resolve the dependencies again and write requirements/*.lock
	@scripts/lock.sh
