#!/usr/bin/env bash
# Installs everything and trains a first model through five tasks, in minutes on a laptop.
# The same command again goes on where it ended. Arguments are passed on to the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh ""
python -m mcil_jax.main --config=configs/sounding_shapes.py --workdir=runs/quickstart "$@"
