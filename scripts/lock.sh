#!/usr/bin/env bash
# Resolves the dependencies again; the lock files carry versions and hashes, and no address of any index.
# Extras stay written out: pip before 23.3 takes a pin of coverage for no pin of coverage[toml].
set -euo pipefail
cd "$(dirname "$0")/.."
tool=.cache/uv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install --quiet uv; }
compile() { $tool/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header "$@"; }
compile pyproject.toml --group build -o requirements/run.lock
compile pyproject.toml --group dev --extra postgres -o requirements/dev.lock
