#!/usr/bin/env bash
# Runs every test with coverage of lines, in this process and in the servers the tests start.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -f .coverage .coverage.*
.venv/bin/python -m coverage run -m pytest "$@"
.venv/bin/python -m coverage combine --quiet
.venv/bin/python -m coverage report --skip-covered
