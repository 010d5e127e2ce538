#!/usr/bin/env bash
# Runs every test with coverage of lines, in this process and in the servers the tests start. Most of a test's time is
# waiting for packets, so there are more workers than cores; a file stays with one worker.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -f .coverage .coverage.*
status=0
.venv/bin/python -m coverage run -m pytest -n "${TEST_WORKERS:-4}" --dist loadfile "$@" || status=$?
.venv/bin/python -m coverage combine --quiet
.venv/bin/python -m coverage report --skip-covered || status=$?
exit "$status"
