"""The launchers of clusters, against programs that record what they are told."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RUN = ["--", "--config=configs/a.py", "--config.seed=1", "--config.data.name=two words"]
# Says what the slice is like, by the files state and hosts beside it; an argument is
# a line, a call ends with an empty one.
GCLOUD = """#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\\n' "$@" "" >>"$here/calls"
case "$*" in
  *describe*state*) cat "$here/state" 2>/dev/null || exit 1 ;;
  *describe*networkEndpoints*) cat "$here/hosts" ;;
  *create*) echo READY >"$here/state" ;;
  *delete*) rm "$here/state" ;;
  *mcil_jax.main*) exit "$(cat "$here/status")" ;;
esac
"""
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" "" >>"$(dirname "$0")/calls"
exit "$(cat "$(dirname "$0")/status")"
"""
INSTALL = 'echo "installing $1"\n'


class Cluster:
  """A tree with the scripts, and a folder of programs at the head of the PATH."""

  def __init__(self, path):
    self.tree, self.programs = path / "tree", path / "programs"
    (self.tree / "launch").mkdir(parents=True)
    self.programs.mkdir()
    for script in ("tpu_pod.sh", "slurm.sh"):
      shutil.copy(ROOT / "launch" / script, self.tree / "launch")
    (self.tree / "launch" / "install.sh").write_text(INSTALL)
    self.tell(hosts="4", status="0")

  def add(self, name, text):
    (self.programs / name).write_text(text)
    (self.programs / name).chmod(0o755)

  def tell(self, **answers):
    for name, answer in answers.items():
      (self.programs / name).write_text(answer)

  def start(self, script, *arguments, **variables):
    env = {"PATH": f"{self.programs}:{os.environ['PATH']}", "HOME": str(self.tree)}
    return subprocess.run(
      ["bash", f"launch/{script}", *arguments],
      cwd=self.tree,
      env=env | variables,
      capture_output=True,
      text=True,
    )

  def calls(self):
    recorded = self.programs / "calls"
    text = recorded.read_text() if recorded.exists() else ""
    recorded.unlink(missing_ok=True)
    return [call.split("\n") for call in text.split("\n\n") if call]


@pytest.fixture
def cluster(tmp_path):
  made = Cluster(tmp_path)
  made.add("gcloud", GCLOUD)
  made.add("srun", SRUN)
  return made


POD = [
  *("--name=mcil", "--zone=z", "--type=v5litepod-16", "--version=v2"),
  *("--share=10.0.0.2:/share", "--workdir=runs/a"),
]


def verbs(calls):
  """What each call to gcloud asks for."""
  assert all(call[:3] == ["compute", "tpus", "tpu-vm"] for call in calls)
  assert all("--zone=z" in call for call in calls)
  return [call[3] for call in calls]


def test_a_slice_is_made_once_and_then_taken_again(cluster):
  first = cluster.start("tpu_pod.sh", *POD, "--project=p", "--spot", *RUN)
  assert first.returncode == 0, first.stderr
  calls = cluster.calls()
  # Install, mount, run; then the results come back.
  expected = ["describe", "scp", "ssh", "ssh", "ssh", "scp"]
  assert verbs(calls) == ["describe", "create", *expected]
  assert calls[1][4:] == [
    *("mcil", "--zone=z", "--project=p"),
    *("--accelerator-type=v5litepod-16", "--version=v2", "--spot"),
  ]
  assert "delete mcil --zone=z --project=p" in first.stdout
  # The same command again goes on, on the same slice.
  again = cluster.start("tpu_pod.sh", *POD, "--project=p", "--spot", *RUN)
  assert again.returncode == 0, again.stderr
  assert verbs(cluster.calls()) == ["describe", *expected]


def test_every_host_gets_the_tree_and_the_same_command(cluster):
  cluster.tell(state="READY")
  assert cluster.start("tpu_pod.sh", *POD, *RUN).returncode == 0
  text = (cluster.programs / "calls").read_text()
  assert text.count("--worker=all") == 4  # archive, installation, mount, run
  assert '. launch/install.sh "[tpu]"' in text
  assert "mount -t nfs 10.0.0.2:/share /mnt/mcil" in text
  assert (
    "exec python -m mcil_jax.main --coordinator=auto --workdir=/mnt/mcil/runs/a "
    "--config=configs/a.py --config.seed=1 --config.data.name=two\\ words" in text
  )
  assert "mcil:/mnt/mcil/runs/a/*\nruns/a/" in text
  assert (cluster.tree / "runs" / "a").is_dir()


@pytest.mark.parametrize(
  ("share", "mounted"),
  [
    ("gs://b", "gcsfuse --implicit-dirs b /mnt/mcil"),
    (
      "gs://b/runs/of me",
      "gcsfuse --implicit-dirs --only-dir=runs/of\\ me b /mnt/mcil",
    ),
  ],
)
def test_a_bucket_is_mounted_on_every_host(cluster, share, mounted):
  cluster.tell(state="READY")
  found = cluster.start("tpu_pod.sh", *without("share"), f"--share={share}", *RUN)
  assert found.returncode == 0, found.stderr
  text = (cluster.programs / "calls").read_text()
  assert mounted in text
  assert "mount -t nfs" not in text
  assert "--workdir=/mnt/mcil/runs/a " in text
  # What a host executes is a program.
  (call,) = [call for call in map("\n".join, cluster.calls()) if mounted in call]
  code = call.partition("--command=")[2]
  assert subprocess.run(["bash", "-n", "-c", code]).returncode == 0


def test_a_preempted_slice_is_made_anew(cluster):
  cluster.tell(state="PREEMPTED")
  assert cluster.start("tpu_pod.sh", *POD, *RUN).returncode == 0
  assert verbs(cluster.calls())[:3] == ["describe", "delete", "create"]


def test_a_preempted_slice_stays_if_it_cannot_be_made_anew(cluster):
  cluster.tell(state="PREEMPTED")
  unknown = [a for a in POD if not a.startswith("--type")]
  found = cluster.start("tpu_pod.sh", *unknown, *RUN)
  assert found.returncode == 1 and "--type and --version are needed" in found.stderr
  assert verbs(cluster.calls()) == ["describe"]


def test_one_host_needs_no_share(cluster):
  cluster.tell(state="READY", hosts="1")
  alone = [a for a in POD if not a.startswith("--share")]
  assert cluster.start("tpu_pod.sh", *alone, *RUN).returncode == 0
  text = (cluster.programs / "calls").read_text()
  assert "mount" not in text
  assert "--workdir=$HOME/mcil_jax/runs/a " in text
  assert "mcil:mcil_jax/runs/a/*\nruns/a/" in text


def test_a_run_that_ends_early_brings_back_what_there_is(cluster):
  cluster.tell(state="READY", status="143")
  found = cluster.start("tpu_pod.sh", *POD, *RUN)
  assert found.returncode == 143
  assert "ended early (status 143); the same command goes on" in found.stderr
  assert verbs(cluster.calls())[-1] == "scp"


def without(flag):
  return [a for a in POD if not a.startswith(f"--{flag}=")]


@pytest.mark.parametrize(
  ("arguments", "state", "message"),
  [
    ([*without("name"), *RUN], "", "--name is missing; see the head of"),
    ([*without("zone"), *RUN], "", "--zone is missing"),
    ([*without("workdir"), *RUN], "", "--workdir is missing"),
    ([*POD, "--zome=z", *RUN], "", "unknown argument --zome=z; see the head of"),
    ([*POD, "--workdir=gs://b/a", *RUN], "", "--workdir=gs://b/a: expected a folder"),
    ([*POD, "--workdir=/a", *RUN], "", "--workdir=/a: expected a folder such as"),
    ([*POD, "--workdir=~/a", *RUN], "", "--workdir=~/a: expected a folder such as"),
    ([*POD, "--workdir= ", *RUN], "", "--workdir= : expected a folder such as"),
    ([*POD, "--share=/a", *RUN], "", "--share=/a: expected SERVER:/PATH"),
    ([*POD, "--share=gs:///a", *RUN], "READY", "--share=gs:///a: expected gs://BUCKET"),
    (POD, "", "no --config=FILE.py after --"),
    (
      [*without("type"), *RUN],
      "",
      "there is no slice mcil in z: --type and --version are needed to make it",
    ),
    ([*POD, *RUN], "CREATING", "slice mcil is CREATING, not READY; wait, or delete it"),
    (
      [*without("share"), *RUN],
      "READY",
      "slice mcil has 4 hosts, which need a workdir that all of them see: --share",
    ),
  ],
)
def test_mistakes_are_found_before_anything_runs(cluster, arguments, state, message):
  cluster.tell(**({"state": state} if state else {}))
  found = cluster.start("tpu_pod.sh", *arguments)
  assert found.returncode == 1
  assert found.stderr.startswith("error: ") and message in found.stderr
  assert set(verbs(cluster.calls())) <= {"describe"}


@pytest.mark.parametrize(
  ("script", "arguments", "program"),
  [("tpu_pod.sh", [*POD, *RUN], "gcloud"), ("slurm.sh", [*RUN, "--workdir=a"], "srun")],
)
def test_the_program_is_not_there(cluster, script, arguments, program):
  for tool in ("bash", "dirname"):
    (cluster.programs / tool).symlink_to(shutil.which(tool))
  (cluster.programs / program).unlink()
  found = cluster.start(
    script, *arguments, PATH=str(cluster.programs), SLURM_JOB_ID="1"
  )
  assert found.returncode == 1
  assert f"error: {program} is not " in found.stderr


SLURM = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "4"}
JOB = ["--config=configs/a.py", "--workdir=/shared/a b"]


def test_a_process_per_gpu(cluster):
  variables = SLURM | {"SLURM_SUBMIT_DIR": str(cluster.tree)}
  found = cluster.start("slurm.sh", *JOB, **variables)
  assert (found.returncode, found.stdout) == (0, "installing [cuda]\n"), found.stderr
  (call,) = cluster.calls()
  assert call == [
    *("--gpu-bind=none", "--kill-on-bad-exit=1"),
    *("python", "-m", "mcil_jax.main", "--coordinator=auto"),
    *("--config.log.progress=False", *JOB),
  ]
  cluster.tell(status="143")
  found = cluster.start("slurm.sh", *JOB, EXTRA="", **variables)
  assert (found.returncode, found.stdout) == (143, "installing \n")


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    (JOB, {"SLURM_JOB_ID": ""}, "to be submitted: sbatch"),
    (JOB[:1], {}, "--workdir is missing; see the head of launch/slurm.sh"),
    (JOB[1:], {}, "--config is missing"),
    (JOB, {"SLURM_SUBMIT_DIR": "/"}, "submit from the root of the tree, not /"),
    (
      JOB,
      {"SLURM_NTASKS_PER_NODE": "1"},
      "4 GPUs but 1 processes on a node: --ntasks-per-node=4",
    ),
  ],
)
def test_mistakes_of_a_job(cluster, arguments, variables, message):
  variables = SLURM | {"SLURM_SUBMIT_DIR": str(cluster.tree)} | variables
  found = cluster.start("slurm.sh", *arguments, **variables)
  assert found.returncode == 1
  assert found.stderr.startswith("error: ") and message in found.stderr
  assert cluster.calls() == []


def test_a_job_asks_to_be_stopped_in_time():
  # Before the time limit, and not the script alone, which would not pass it on.
  assert "\n#SBATCH --signal=TERM@120\n" in (ROOT / "launch/slurm.sh").read_text()
