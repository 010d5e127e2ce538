#!/usr/bin/env bash
# Resolves the dependencies again; the lock files carry versions and hashes, and no address of any index.
# run and dev are for a checkout. deploy is what an image or a plain host gets (every extra, no build tool), and build what
# makes the wheel that goes with it. Extras stay written out: pip before 23.3 takes a pin of coverage for no pin of coverage[toml].
set -euo pipefail
cd "$(dirname "$0")/.."
tool=.cache/uv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install --quiet uv; }
compile() { $tool/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header "$@"; }
compile pyproject.toml --group build -o requirements/run.lock
compile --group build -o requirements/build.lock
compile pyproject.toml --extra postgres --extra redis --extra tracing -o requirements/deploy.lock
compile pyproject.toml --group dev --extra postgres -o requirements/dev.lock
