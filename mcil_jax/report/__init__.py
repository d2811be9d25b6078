"""What people look at during and after a run: tables, plots and web pages.

  python -m mcil_jax.report RUN [RUN ...] --out=DIR

Everything here reads `results`, the content of results.json: a dictionary with
`increments`, `accuracy_matrix` [T, T] and `seen_accuracy` [T], where null, None or NaN
stands for no value (yet). Everything else is shown where present; docs/reports.md lists
all keys. Results are fractions; what is shown is percent. Tasks are numbered from 0.

  access      checked access to results
  tables      of one run, for the terminal; of many, in Markdown and LaTeX
  plots       of one run, PNG
  charts      what the charts of a page show: plain data, drawn by charts.js; those
              of experts and fusion are in `diagnostic_charts`
  page        the page of one run
  comparability, experiments
              which runs are repetitions of one experiment, and its name
  joint       intransigence, against the joint run
  benchmark   the table of AV-CIL's benchmark
  comparison  the page and the tables of many
  workdirs    runs by the names of their workdirs: `compare`, from Python
"""

from mcil_jax.report.page import write_page
from mcil_jax.report.plots import LivePlots, save_plots
from mcil_jax.report.tables import accuracy_table, results_table
from mcil_jax.report.workdirs import compare

__all__ = [
  "LivePlots",
  "accuracy_table",
  "compare",
  "results_table",
  "save_plots",
  "write_page",
]
