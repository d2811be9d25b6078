"""Commands around `mcil_jax.main`: set-up, tests, tables of many runs."""
