#!/usr/bin/env bash
# Runs every test with coverage of lines, in this process and in the servers the tests start. Most of a test's time is
# waiting for packets, so there are more workers than cores; a file stays with one worker.
#
# Some tests hold an end to a second or a scan to its time limit. A few that miss it while four workers share two cores are
# run once more, alone; what fails then as well, or more than a few, fails the run. Both runs stand in the output.
set -euo pipefail
cd "$(dirname "$0")/.."
few=5
failed=.pytest_cache/v/cache/lastfailed
rm -f .coverage .coverage.* "$failed"
status=0
.venv/bin/python -m coverage run -m pytest -n "${TEST_WORKERS:-4}" --dist loadfile "$@" || status=$?
if [ "$status" = 1 ] && [ -e "$failed" ]; then
  count=$(.venv/bin/python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' "$failed")
  if [ "$count" -le "$few" ]; then
    echo "test.sh: $count failed beside the others; once more, alone:"
    status=0
    .venv/bin/python -m coverage run -m pytest --last-failed "$@" || status=$?
    [ "$status" = 0 ] && echo "test.sh: what failed beside the others passed alone; look at it when the machine is quiet"
  fi
fi
.venv/bin/python -m coverage combine --quiet
.venv/bin/python -m coverage report --skip-covered || status=$?
exit "$status"
