#!/usr/bin/env bash
# Runs one experiment on the GPUs of a SLURM cluster, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --time=8:00:00 \
#     launch/slurm.sh --config=configs/sounding_shapes.py:trimodal \
#     --config.method=mife --workdir=/shared/runs/mife
#
# To be submitted from the root of the tree, which all nodes have to see, like the
# workdir. Arguments are passed on to mcil_jax.main. EXTRA names the extra to install,
# cuda unless it is set; EXTRA= is for CPUs.
#
# Two minutes before the time limit every process is asked to stop, and saves. The same
# command again goes on where the run ended.
#SBATCH --job-name=mcil_jax
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "to be submitted: sbatch … launch/slurm.sh …"
command -v srun >/dev/null || fail "srun is not on the PATH"
for flag in config workdir; do
  [[ " $* " == *" --$flag="* ]] || fail "--$flag is missing; see the head of launch/slurm.sh"
done
# SLURM runs a copy of this script that lies elsewhere.
cd "$SLURM_SUBMIT_DIR"
[ -f launch/install.sh ] || fail "submit from the root of the tree, not $SLURM_SUBMIT_DIR"
# jax.distributed gives each process the GPU of its number on the node.
gpus=${SLURM_GPUS_ON_NODE:-0}
tasks=${SLURM_NTASKS_PER_NODE:-1}
[ "$gpus" = 0 ] || [ "$gpus" = "$tasks" ] ||
  fail "$gpus GPUs but $tasks processes on a node: --ntasks-per-node=$gpus"

extra=${EXTRA-cuda}
. launch/install.sh "${extra:+[$extra]}"
# Every process has to see all GPUs of its node to take its own.
exec srun --gpu-bind=none --kill-on-bad-exit=1 \
  python -m mcil_jax.main --coordinator=auto --config.log.progress=False "$@"
