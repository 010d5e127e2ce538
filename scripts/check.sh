#!/usr/bin/env bash
# Lint, format, types, import layers, the documentation as a site; its tests are part of `make test` and run here alone.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
.venv/bin/python -m pytest -q tests/unit/test_docs*.py
