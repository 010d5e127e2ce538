#!/bin/sh
# Runs the official MCP conformance suite against a test server that uses the project's MCP interfaces, and prints a summary.
set -eu
cd "$(dirname "$0")/.."
scripts/node-tools.sh
exec .venv/bin/python -m tests.contract.suites
