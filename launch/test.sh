#!/usr/bin/env bash
# Installs everything for development, checks style, runs the tests.
#   bash launch/test.sh          the tests that run before every commit
#   bash launch/test.sh --all    the slow ones as well
#   bash launch/test.sh --fast   without those of experts, models and whole runs, and
#                                without a browser: a minute
# Further arguments are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh "[test]"
markers="not slow and not gpu"
if [ "${1:-}" = --fast ]; then
  shift
  set -- --ignore=tests/report/test_browser.py tests/config tests/continual tests/data \
    tests/data_prep tests/heads tests/losses tests/methods tests/metrics tests/report \
    tests/runtime tests/steps tests/test_architecture.py tests/test_docs.py \
    "tests/test_matrix.py::test_every_method_on_a_model[replay]" "$@"
elif [ "${1:-}" = --all ]; then
  shift
  markers="not gpu"
fi
# Some tests open reports in a real browser, and say so where there is none.
if [ $# = 0 ] && ! command -v "${CHROMIUM:-chromium}" >/dev/null &&
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium
fi
# Eight simulated devices, see tests/conftest.py.
export JAX_PLATFORMS=cpu NPROC=16
ruff check .
ruff format --check .
# As many processes as there are cores, but each needs memory; a module's tests share
# what they prepare, so they stay together, and the longest modules come first.
python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder \
  -m "$markers" "$@"
