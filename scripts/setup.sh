#!/usr/bin/env bash
# Sets up this checkout: `setup.sh run` for running, `setup.sh test` also for the tests. Completed steps are not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-run}
python=${PYTHON:-python3}

scripts/system-packages.sh "$mode"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Python 3.11 or newer is needed (found: $("$python" --version 2>&1)). Set PYTHON to one." >&2
  exit 1
}
lock=requirements/$mode.lock
[ "$mode" = test ] && lock=requirements/dev.lock
stamp=.venv/.$mode-$(cat "$lock" pyproject.toml | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "setup: Installing Python packages from $lock (about half a minute the first time)"
  mkdir -p .cache
  if ! { .venv/bin/python -m pip install --quiet --require-hashes -r "$lock" &&
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .; } >.cache/pip.log 2>&1; then
    cat .cache/pip.log >&2
    echo "setup: The Python packages could not be installed; see the output above." >&2
    exit 1
  fi
  rm -f .venv/."$mode"-*
  touch "$stamp"
fi
if [ "$mode" = test ]; then scripts/node-tools.sh; fi
