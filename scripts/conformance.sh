#!/bin/sh
# Runs the official MCP conformance suite against the test server on this project's interfaces and prints a summary.
set -eu
cd "$(dirname "$0")/.."
scripts/node-tools.sh
exec .venv/bin/python -m tests.contract.suites
