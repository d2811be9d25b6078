import jax
import jax.numpy as jnp

from mcil_jax.runtime import compile_count


def test_a_function_is_counted_each_time_it_is_compiled():
  @jax.jit
  def doubled_for_this_test(x):
    return 2 * x

  assert compile_count.count("doubled_for_this_test") == 0
  for size, expected in ((3, 1), (3, 1), (4, 2), (3, 2)):
    doubled_for_this_test(jnp.zeros(size))
    assert compile_count.count("doubled_for_this_test") == expected
