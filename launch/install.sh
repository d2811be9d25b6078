# Sourced by the other scripts: makes .venv, installs the package with the extras named
# as the first argument (such as "[test]") in tested versions, and activates it.
# PYTHON chooses the interpreter.
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is older than Python 3.11; set PYTHON to a newer one" >&2
  exit 1
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear .venv || {
    echo "error: $python cannot make virtual environments (Debian: python3-venv)" >&2
    exit 1
  }
fi
# Installing again is for changed requirements only.
wanted=$(cat setup.cfg pyproject.toml constraints.txt | cksum)
stamp=.venv/installed$1
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing into .venv (about a minute) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".$1"
  echo "$wanted" >"$stamp"
fi
. .venv/bin/activate
# With huge pages a CPU finds its way in large arrays faster.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
