import os
import pathlib
import subprocess
import sys

import pytest

# Takes and frees 64 MiB in a thread, twice; prints the page faults of the second time.
FAULTS = """
import ctypes, resource, threading
from mcil_jax.runtime import cpu_memory
cpu_memory.settle()
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
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  in_a_thread()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
in_a_thread()
found = [faults()]
with cpu_memory.keeping_freed_memory():
  in_a_thread()
  found.append(faults())
found.append(faults())
print(*found)
"""


def test_arrays_that_were_freed_cost_no_page_faults_inside():
  huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
  if huge.exists() and "[always]" in huge.read_text():
    pytest.skip("with huge pages for everything there are no faults to count")
  env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  command = [sys.executable, "-c", FAULTS]
  done = subprocess.run(command, check=True, capture_output=True, env=env)
  before, inside, after = map(int, done.stdout.split())
  pages = 64 * 2**20 // 4096
  assert before >= pages and after >= pages
  assert inside < pages // 10
