#!/usr/bin/env bash
# Runs in less than 90 seconds on two idle cores what a change most often breaks: lint, format, types, import layers, and
# the unit tests except the files that take the longest. `make test` runs all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
slow=(
  tests/unit/test_digest.py
  tests/unit/test_docs_site.py
  tests/unit/scope/test_many_networks.py
  tests/unit/tools/test_flags_mutation.py
  tests/unit/tools/test_nmap_accepts.py
  tests/unit/tools/test_nmap_xml.py
  tests/unit/tools/test_nmap_xml_real.py
)
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy --no-error-summary &
types=$!
.venv/bin/lint-imports >.cache/lint-imports.log || { cat .cache/lint-imports.log && exit 1; }
.venv/bin/python -m pytest -q -n 2 --dist loadfile "${slow[@]/#/--ignore=}" tests/unit
wait "$types"
