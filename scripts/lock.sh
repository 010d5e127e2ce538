#!/usr/bin/env bash
# Resolves the dependencies and writes the lock files, with versions and hashes but without the address of an index.
# run and dev are for a checkout. deploy is for an image or a plain host (every extra, no build tools), and build is for
# building the wheel. Extras are kept in the names, because pip before 23.3 does not use a pin of coverage for coverage[toml].
set -euo pipefail
cd "$(dirname "$0")/.."
tool=.cache/uv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install --quiet uv; }
compile() { $tool/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header "$@"; }
compile pyproject.toml --group build -o requirements/run.lock
compile --group build -o requirements/build.lock
compile pyproject.toml --extra postgres --extra redis --extra tracing -o requirements/deploy.lock
compile pyproject.toml --group dev --extra postgres -o requirements/dev.lock
