#!/usr/bin/env bash
# Installs everything for development, checks style, runs the tests.
#   bash launch/test.sh          the tests that run before every commit
#   bash launch/test.sh --all    the slow ones as well
#   bash launch/test.sh --fast   pure functions and one small run: a minute, no browser
# Further arguments are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh "[test]"
markers="not slow and not gpu"
if [ "${1:-}" = --all ]; then
  markers="not gpu"
  shift
elif [ "${1:-}" = --fast ]; then
  shift
  set -- tests/config tests/continual tests/data tests/heads tests/losses tests/methods \
    tests/metrics tests/test_architecture.py tests/test_docs.py \
    "tests/test_matrix.py::test_every_method_on_a_model[replay]" "$@"
  CHROMIUM=true  # which these tests do not open
fi
if ! command -v "${CHROMIUM:-chromium}" >/dev/null; then  # the tests open reports in a real browser
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium
  else
    echo "error: install Chromium, or set CHROMIUM to its path" >&2
    exit 1
  fi
fi
# Eight simulated devices, see tests/conftest.py.
export JAX_PLATFORMS=cpu NPROC=16
ruff check .
ruff format --check .
# As many processes as there are cores, but each needs memory; a module's tests share
# what they prepare, so they stay together, and the longest modules come first.
python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder \
  -m "$markers" "$@"
