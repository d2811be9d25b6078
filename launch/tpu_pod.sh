#!/usr/bin/env bash
# Runs one experiment on all hosts of a TPU slice: makes the slice, or takes the one of
# that name, copies this tree to every host, installs it there, starts the same command
# on each of them, and copies the results back. Needs gcloud, logged in.
#
#   bash launch/tpu_pod.sh --name=mcil --zone=us-west4-a --type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite --share=10.0.0.2:/share --workdir=runs/mife \
#     -- --config=configs/sounding_shapes.py:trimodal --config.method=mife
#
#   --name, --zone            of the slice
#   --type, --version         accelerator type and software version, to make it with
#   --project                 if it is not gcloud's own
#   --spot                    a slice that may be taken away, at a lower price
#   --share=SERVER:/PATH      NFS (such as Filestore) in the slice's network; or
#   --share=gs://BUCKET[/DIR] a bucket with hierarchical namespace, by gcsfuse. Mounted at
#                             /mnt/mcil on every host. --workdir is a folder in it
#   --workdir                 of the run; a path without / in front
#   -- …                      is passed on to mcil_jax.main
#
# A slice of several hosts needs --share: snapshots are written by all processes into
# one workdir, which all of them must see as a file system. A prepared dataset belongs
# there, too: --config.data.data_dir=/mnt/mcil/data. Without a share a slice of one host
# has the workdir on its own disk, and loses it when it goes. A bucket without
# hierarchical namespace renames no folder as a whole, which snapshots rely on.
#
# The same command again goes on where the run ended: it takes the slice that is there,
# makes it anew if it was preempted, and mcil_jax.main continues from its last snapshot.
# A run that is still at work is refused. The slice stays, and costs, until it is
# deleted; the command for that is the last thing printed.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

name= zone= type= version= project= share= workdir= spot=
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --version=* | --project=* | --share=* | --workdir=*)
      variable=${1%%=*}
      printf -v "${variable#--}" %s "${1#*=}"
      ;;
    --spot) spot=--spot ;;
    --) shift && break ;;
    *) fail "unknown argument $1; see the head of launch/tpu_pod.sh" ;;
  esac
  shift
done
for variable in name zone workdir; do
  [ -n "${!variable}" ] || fail "--$variable is missing; see the head of launch/tpu_pod.sh"
done
[[ $workdir != /* && $workdir != "~"* && $workdir != *:* && $workdir = *[![:space:]]* ]] ||
  fail "--workdir=$workdir: expected a folder such as runs/mife, in --share if there is one"
[[ -z $share || $share == ?*:/* ]] ||
  fail "--share=$share: expected SERVER:/PATH or gs://BUCKET"
[[ $share != gs:// && $share != gs:///* ]] || fail "--share=$share: expected gs://BUCKET"
[[ " $* " == *" --config="* ]] || fail "no --config=FILE.py after --"
command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk"

where=(--zone="$zone" ${project:+--project="$project"})
tpu() { gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}"; }
on_all_hosts() { tpu ssh --worker=all --command="$1"; }

state=$(tpu describe --format='value(state)' 2>/dev/null || true)
if [[ -z $state || $state = PREEMPTED ]]; then
  [[ -n $type && -n $version ]] ||
    fail "there is no slice $name in $zone: --type and --version are needed to make it"
  if [ -n "$state" ]; then
    echo "Slice $name was preempted: making it anew ..."
    tpu delete --quiet
  fi
  tpu create --accelerator-type="$type" --version="$version" $spot
elif [ "$state" != READY ]; then
  fail "slice $name is $state, not READY; wait, or delete it"
fi
hosts=$(tpu describe --format='value(networkEndpoints.len())')
[[ $hosts = 1 || -n $share ]] ||
  fail "slice $name has $hosts hosts, which need a workdir that all of them see: --share"

# Later files replace earlier ones; what a run has written lies elsewhere.
archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
tar --exclude=./.git --exclude="./.venv*" --exclude=./runs --exclude=./data \
  --exclude="./$workdir" --exclude=__pycache__ -czf "$archive/mcil_jax.tar.gz" .
gcloud compute tpus tpu-vm scp "$archive/mcil_jax.tar.gz" "$name:" "${where[@]}" --worker=all
on_all_hosts 'set -e
  mkdir -p mcil_jax && tar -xzf mcil_jax.tar.gz -C mcil_jax
  command -v python3.11 >/dev/null ||
    sudo apt-get -qq install -y python3.11 python3.11-venv
  cd mcil_jax && export PYTHON=python3.11 && . launch/install.sh "[tpu]"'

root=mcil_jax
if [[ $share == gs://* ]]; then
  root=/mnt/mcil
  IFS=/ read -r bucket folder <<<"${share#gs://}"
  options="--implicit-dirs${folder:+ --only-dir=$(printf %q "$folder")}"
  on_all_hosts "set -e
    mountpoint -q $root && exit
    command -v gcsfuse >/dev/null || {
      source=https://packages.cloud.google.com/apt
      curl -fsS \$source/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
      echo \"deb [signed-by=/usr/share/keyrings/gcsfuse.asc] \$source gcsfuse-\$(lsb_release -c -s) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
    }
    sudo mkdir -p $root && sudo chmod a+rwx $root
    gcsfuse $options $(printf %q "$bucket") $root"
elif [ -n "$share" ]; then
  root=/mnt/mcil
  on_all_hosts "set -e
    mountpoint -q $root && exit
    command -v mount.nfs >/dev/null || sudo apt-get -qq install -y nfs-common
    sudo mkdir -p $root && sudo mount -t nfs $(printf %q "$share") $root
    sudo chmod a+rwx $root"
fi
path=$(printf %q "$root/$workdir")
[[ $path == /* ]] || path='$HOME'/$path
status=0
on_all_hosts "cd mcil_jax && . .venv/bin/activate &&
  exec python -m mcil_jax.main --coordinator=auto --workdir=$path $(printf '%q ' "$@")" ||
  status=$?

# What has been written comes back whether or not the run is complete.
mkdir -p "$workdir"
gcloud compute tpus tpu-vm scp --recurse "${where[@]}" --worker=0 \
  "$name:$root/$workdir/*" "$workdir/" || echo "nothing to copy from $workdir" >&2
[ $status = 0 ] && echo "Results: $PWD/$workdir" ||
  echo "The run ended early (status $status); the same command goes on from there." >&2
printf 'The slice goes on costing until:%s\n' "$(printf ' %q' \
  gcloud compute tpus tpu-vm delete "$name" "${where[@]}")"
exit $status
