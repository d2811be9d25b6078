"""Commands around `mcil_jax.main`: set-up, tests, tables of many runs."""

# XLA's CPU backend takes fresh memory for every step; with huge pages the kernel hands
# it out in a few large pieces (glibc 2.35 or newer; without effect elsewhere).
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
