"""The progress bar of a task."""

import tqdm

from mcil_jax.runtime import compile_count


class StepBar(tqdm.tqdm):
  """A progress bar whose speed and time left are those of steps that do not compile.

  What compiles takes as long as many steps, and happens once: the bar's clock leaves it
  out.
  """

  def __init__(self, **options):
    self._compiled = compile_count.total()
    super().__init__(**options)
    self._last = None if self.disable else self.start_t

  def step(self) -> None:
    """Moves on by a step, or one and what compiled in it."""
    if self.disable:
      return
    compiled, now = compile_count.total(), self._time()
    if compiled > self._compiled:
      # As if the bar had started that much later, with one step done already.
      for name in ("start_t", "last_print_t"):
        setattr(self, name, getattr(self, name) + now - self._last)
      for name in ("initial", "last_print_n", "n"):
        setattr(self, name, getattr(self, name) + 1)
      self.refresh()
    else:
      self.update()
    self._compiled, self._last = compiled, now
