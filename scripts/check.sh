#!/usr/bin/env bash
# Lint, format, types, import layers; the documentation tests are part of `make test` and run here alone.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python -m pytest -q tests/unit/test_docs.py
