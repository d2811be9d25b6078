import os
import pathlib
import subprocess
import sys

import pytest

# Takes and frees 64 MiB in a thread, twice; prints the page faults of the second time.
FAULTS = """
import ctypes, resource, sys, threading
from mcil_jax import allocation
if sys.argv[1] == "keep":
  assert allocation.keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
  size = 64 * 2**20
  memory = c.malloc(size)
  ctypes.memset(memory, 1, size)
  c.free(memory)
def in_a_thread():
  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
in_a_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
  command = [sys.executable, "-c", FAULTS, mode]
  env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  return int(subprocess.run(command, check=True, capture_output=True, env=env).stdout)


def test_arrays_that_were_freed_cost_no_page_faults():
  huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
  if huge.exists() and "[always]" in huge.read_text():
    pytest.skip("with huge pages for everything there are no faults to count")
  pages = 64 * 2**20 // 4096
  assert faults("keep") < pages // 10 < pages <= faults("leave")
