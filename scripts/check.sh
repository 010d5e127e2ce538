#!/usr/bin/env bash
# Checks lint, format, types, import layers, the site of the documentation, and the tests of the documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
.venv/bin/python -m pytest -q tests/unit/test_docs*.py
