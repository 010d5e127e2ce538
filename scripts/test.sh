#!/usr/bin/env bash
# Runs every test with line coverage, in the test process and in the servers that the tests start. Most tests mainly wait
# for packets, so there are more workers than cores. All tests of a file run in one worker.
#
# Some tests check a time limit to the second, and may miss it while four workers share two cores. If at most five tests
# fail, they are run again alone. The run fails if a test fails again, or if more than five failed.
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
    echo "test.sh: $count tests failed. Running them again alone:"
    status=0
    .venv/bin/python -m coverage run -m pytest --last-failed "$@" || status=$?
    [ "$status" = 0 ] && echo "test.sh: The failed tests passed alone. Check them on an idle machine."
  fi
fi
.venv/bin/python -m coverage combine --quiet
.venv/bin/python -m coverage report --skip-covered || status=$?
exit "$status"
