"""What the command line answers: one line for a mistake, none for a Ctrl-C."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import app

from mcil_jax.runtime import cli

CONFIG, WORKDIR = "--config=configs/avdigits.py", "--workdir=unused"
ROOT = pathlib.Path(__file__).parents[1]


def start(
  *arguments: str, code: str | None = None, **options
) -> subprocess.CompletedProcess:
  program = ["-c", code] if code else ["-m", "mcil_jax.main"]
  command = [sys.executable, *program, *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


# One process imports everything and a child of it answers each command line.
ANSWER_ALL = """
import json, os, sys, tempfile
from mcil_jax import main
answers = []
for arguments in json.load(sys.stdin):
  files = [tempfile.TemporaryFile() for _ in range(2)]
  sys.stdout.flush()
  child = os.fork()
  if child == 0:
    for number, file in enumerate(files, start=1):
      os.dup2(file.fileno(), number)
    sys.argv = ["main", *arguments]
    main.entry()
    assert "jax" not in sys.modules, "it took seconds to answer"
    os._exit(0)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  texts = []
  for file in files:
    file.seek(0)
    texts.append(file.read().decode())
  answers.append([code, *texts])
json.dump(answers, sys.stdout)
"""

# Where the config chooses its variant.
LAST_LINE = len((ROOT / "configs" / "avdigits.py").read_text().splitlines())

MISTAKES = {
  "a variant": (
    [f"{CONFIG}:smokee", WORKDIR],
    f"configs/avdigits.py:smokee, line {LAST_LINE}: there is no variant 'smokee' of "
    "this config, only trimodal, smoke; did you mean 'smoke'?",
  ),
  "a config file": (
    ["--config=configs/avdigit.py:smoke", WORKDIR],
    "--config=configs/avdigit.py:smoke: configs/avdigit.py does not exist; did you "
    "mean configs/avdigits.py?",
  ),
  "a config file far from any": (
    ["--config=zzz.py", WORKDIR],
    "--config=zzz.py: zzz.py does not exist",
  ),
  "a setting": (
    [CONFIG, WORKDIR, "--config.train.epoch=3"],
    "setting config.train.epoch does not exist; did you mean config.train.epochs?",
  ),
  "a switch": (
    [CONFIG, WORKDIR, "--noconfig.log.progres"],
    "setting config.log.progres does not exist; did you mean config.log.progress?",
  ),
  "a setting far from any": (
    [CONFIG, WORKDIR, "--config.xyz", "3"],
    "setting config.xyz does not exist; see mcil_jax/config/defaults.py",
  ),
  "a section": (
    [CONFIG, WORKDIR, "--config.train=3"],
    "setting config.train does not exist; see mcil_jax/config/defaults.py",
  ),
  "a number": (
    [CONFIG, WORKDIR, "--config.train.batch_size=x"],
    "config.train.batch_size='x': expected a whole number",
  ),
  "a fraction": (
    [CONFIG, WORKDIR, "--config.train.epochs=4.0"],
    "config.train.epochs='4.0': expected a whole number",
  ),
  "a truth": (
    [CONFIG, WORKDIR, "--config.log.progress=maybe"],
    "config.log.progress='maybe': expected True or False",
  ),
  "a negated number": (
    [CONFIG, WORKDIR, "--noconfig.train.epochs"],
    "--noconfig.train.epochs: only what is True or False can be negated, without a "
    "value",
  ),
  "a tuple": (
    [CONFIG, WORKDIR, "--config.scenario.increments=four"],
    "config.scenario.increments='four': expected whole numbers, such as (4, 4, 2)",
  ),
  "no None": (
    [CONFIG, WORKDIR, "--config.scenario.increments=None"],
    "config.scenario.increments=None: expected whole numbers, such as (4, 4, 2)",
  ),
  "a choice": (
    [CONFIG, WORKDIR, "--config.eval.split=tset"],
    "config.eval.split='tset': expected 'test' or 'validation'; did you mean 'test'?",
  ),
  "no value": (
    [CONFIG, WORKDIR, "--config.train.epochs"],
    "--config.train.epochs needs a value",
  ),
  "no workdir": (
    [CONFIG],
    "--workdir is missing: Folder where everything of the run is kept, such as "
    "runs/NAME.",
  ),
  "no config": (
    [WORKDIR],
    "--config is missing: The experiment, FILE.py or FILE.py:VARIANT, as in configs/.",
  ),
  "a flag": (
    [CONFIG, "--workdri=x"],
    "there is no flag --workdri; did you mean --workdir?",
  ),
  "the config's flag": (
    ["--cnofig=x", WORKDIR],
    "there is no flag --cnofig; did you mean --config?",
  ),
  "a setting without its config": (
    [CONFIG, WORKDIR, "--seed=3"],
    "there is no flag --seed; did you mean --config.seed?",
  ),
  "a setting without its section": (
    [CONFIG, WORKDIR, "--epoch=3"],
    "there is no flag --epoch; did you mean --config.train.epochs?",
  ),
  "a setting of two sections": (
    [CONFIG, WORKDIR, "--batch_size=3"],
    "there is no flag --batch_size; did you mean --config.eval.batch_size or "
    "--config.train.batch_size?",
  ),
  "a flag far from any": (
    [CONFIG, WORKDIR, "--xyzzy"],
    "there is no flag --xyzzy; --help lists them all",
  ),
  "a flag file": (
    ["--flagfile=/none/here"],
    "Unable to open flagfile: [Errno 2] No such file or directory: '/none/here'",
  ),
  "a stray word": (
    [CONFIG, WORKDIR, "stray"],
    "unexpected arguments ['stray']; settings look like --config.seed=1",
  ),
  "an empty workdir": (
    [CONFIG, "--workdir="],
    "--workdir is empty: Folder where everything of the run is kept, such as "
    "runs/NAME.",
  ),
  "a blank workdir": (
    [CONFIG, "--workdir= "],
    "--workdir is empty: Folder where everything of the run is kept, such as "
    "runs/NAME.",
  ),
  "a home of nobody": (
    [CONFIG, "--workdir=~nobody-at-all/runs"],
    "--workdir=~nobody-at-all/runs: there is no user '~nobody-at-all'. If a directory "
    "is called that, write ./~nobody-at-all/runs.",
  ),
  "an empty config": (
    ["--config=", WORKDIR],
    "--config is empty: The experiment, FILE.py or FILE.py:VARIANT, as in configs/.",
  ),
  "an empty data_dir": (
    [CONFIG, WORKDIR, "--config.data.data_dir="],
    "config.data.data_dir='' is empty: expected a name",
  ),
  "an empty name": (
    [CONFIG, WORKDIR, "--config.data.name="],
    "config.data.name='' is empty: expected a name",
  ),
  "an empty coordinator": (
    [CONFIG, WORKDIR, "--coordinator=", "--num_processes=2", "--process_id=0"],
    "--coordinator is empty: Several processes: HOST:PORT of process 0, or 'auto' on a "
    "TPU pod or under SLURM.",
  ),
  "a coordinator without a port": (
    [CONFIG, WORKDIR, "--coordinator=host", "--num_processes=2", "--process_id=0"],
    "--coordinator=host: expected HOST:PORT, or 'auto'",
  ),
  "half of several processes": (
    [CONFIG, WORKDIR, "--num_processes=2"],
    "several processes need --coordinator, --num_processes and --process_id (or "
    "--coordinator=auto alone)",
  ),
  "one process too many": (
    [CONFIG, WORKDIR, "--coordinator=h:1", "--num_processes=2", "--process_id=2"],
    "--process_id=2: expected 0 to 1 with --num_processes=2",
  ),
  "a name that is too long": (
    [f"--config={'x' * 300}", WORKDIR],
    f"{ROOT}/{'x' * 300}: File name too long. Choose another path, or change what is "
    "there or its permissions.",
  ),
  "an empty number": (
    [CONFIG, WORKDIR, "--num_processes="],
    "--num_processes=: expected a whole number",
  ),
}
HELP = ("-h", "-help", "--help", "--helpfull")


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, str]]:
  """Exit status, output and errors of each of `MISTAKES`, and of questions for help."""
  asked = {name: arguments for name, (arguments, _) in MISTAKES.items()}
  asked |= {"nothing": [], **{question: [question] for question in HELP}}
  asked["settings"] = [CONFIG, "--help"]
  done = start(code=ANSWER_ALL, input=json.dumps(list(asked.values())))
  assert done.returncode == 0, done.stderr
  return dict(zip(asked, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line(answers, name):
  assert answers[name] == (1, "", f"error: {MISTAKES[name][1]}\n")


@pytest.mark.parametrize("question", HELP)
def test_help_shows_how_the_command_is_used(answers, question):
  status, text, errors = answers[question]
  assert (status, errors) == (0, "")
  assert "\n  python -m mcil_jax.main --config=FILE.py[:VARIANT] --workdir=DIR" in text
  assert "\n  --workdir: Folder where" in text
  assert "\n  --config.KEY: Any setting" in text
  assert "--verbosity" not in text  # nor what else absl and other libraries have
  assert len(text.splitlines()) < 25


def test_help_with_a_config_lists_its_settings(answers):
  status, text, errors = answers["settings"]
  assert (status, errors) == (0, "")
  usage, settings = text.split("\n\nSettings of ")
  assert usage == answers["--help"][1].strip()
  assert "\n  --config.train.epochs=" in settings


def test_nothing_at_all_is_answered_with_the_usage(answers):
  assert answers["nothing"] == (1, "", answers["--help"][1])


def test_settings_are_given_in_all_ways_of_a_flag_before_and_after_the_config(tmp_path):
  flagfile = tmp_path / "flags"
  flagfile.write_text("--config.data.name=own\n")
  code = (
    "import json\n"
    "from mcil_jax import config\n"
    "from mcil_jax.config import flags\n"
    "holder = flags.define_config()\n"
    "def main(argv):\n"
    "  print(json.dumps([argv[1:], config.as_json(holder.value)]))\n"
    "flags.run(main)\n"
  )
  done = start(
    *("--config.train.epochs=3", "-config.seed", "7", "--config.log.tensorboard"),
    *(f"--flagfile={flagfile}", "--config", "configs/gridwords.py:smoke"),
    *("--noconfig.log.progress", "--config.scenario.class_order=1,0"),
    *("--config.scenario.class_order=None", "--config.train.learning_rate=1"),
    *("--config.model.text.templates=ein schönes {}", "--", "--config.seed=8"),
    code=code,
  )
  assert (done.returncode, done.stderr) == (0, "")
  left, c = json.loads(done.stdout)
  assert left == ["--config.seed=8"]
  assert (c["seed"], c["data"]["name"]) == (7, "own")
  # The last one wins, against the file's and against an earlier one.
  assert (c["train"]["epochs"], c["scenario"]["class_order"]) == (3, None)
  assert (c["log"]["tensorboard"], c["log"]["progress"]) == (True, False)
  assert c["train"]["learning_rate"] == 1.0
  assert c["model"]["text"]["templates"] == ["ein schönes {}"]
  assert c["model"]["width"] == 64  # of the variant


def test_ctrl_c_while_jax_is_imported_is_no_traceback():
  code = (
    "import os, signal, sys\n"
    # As in a terminal: a shell lets its background jobs ignore Ctrl-C.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from mcil_jax import main\n"
    "assert 'jax' not in sys.modules\n"
    "class Interrupt:\n"
    "  def find_spec(self, name, *_):\n"
    "    if name == 'jax': os.kill(os.getpid(), signal.SIGINT)\n"
    "sys.meta_path.insert(0, Interrupt())\n"
    "main.entry()\n"
  )
  done = start(CONFIG, WORKDIR, code=code)
  assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_ends_any_command_with_the_status_of_a_shell(monkeypatch):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(app, "run", interrupted)
  with pytest.raises(SystemExit) as ended:
    cli.run(print)
  assert ended.value.code == 128 + signal.SIGINT


def test_a_second_ctrl_c_is_one_line_more():
  code = (
    "import os, signal\n"
    "from mcil_jax import main\n"
    "from mcil_jax.experiment import components\n"
    "def prepare(config):\n"
    "  for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
    "  raise AssertionError('still at work')\n"
    "components.prepare = prepare\n"
    "main.entry()\n"
  )
  done = start(CONFIG, WORKDIR, code=code)
  assert (done.returncode, done.stderr) == (
    128 + signal.SIGINT,
    "\nstopping: saving after this step; Ctrl-C now stops at once\n"
    "\nstopped at once; the same command goes on from the last snapshot\n",
  )


@pytest.mark.parametrize(
  "error",
  [
    "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: No space left on device')",
    "KeyError('No space left on device')",
  ],
)
def test_a_full_disk_is_one_line_wherever_it_is_met(error):
  code = (
    "import jax\n"
    "from mcil_jax import main\n"
    "from mcil_jax.experiment import components\n"
    f"def prepare(config): raise {error}\n"
    "components.prepare = prepare\n"
    "main.entry()\n"
  )
  done = start(CONFIG, WORKDIR, code=code)
  assert (done.returncode, done.stderr) == (
    1,
    "error: cannot write: No space left on device; make room there and start the same "
    "command again\n",
  )


OUT_OF_MEMORY = """
import jax
from mcil_jax import main
from mcil_jax.experiment import components
def prepare(config):
  raise jax.errors.JaxRuntimeError({message!r})
components.prepare = prepare
main.entry()
"""


def test_out_of_memory_says_what_to_lower():
  message = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."
  done = start(CONFIG, WORKDIR, code=OUT_OF_MEMORY.format(message=message))
  assert (done.returncode, done.stderr) == (
    1,
    "error: out of memory: lower config.train.batch_size or config.eval.batch_size, "
    "and use another --workdir\n",
  )


def test_another_error_of_the_device_keeps_its_traceback():
  done = start(CONFIG, WORKDIR, code=OUT_OF_MEMORY.format(message="INTERNAL: bug"))
  assert done.returncode == 1
  assert done.stderr.startswith("Traceback")
  assert "INTERNAL: bug" in done.stderr
