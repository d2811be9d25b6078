"""Multimodal class-incremental learning in JAX.

Shapes are written in backticks or brackets with these letters, everywhere:

  B  samples in a batch            T  frames of a clip, or tasks of a scenario
  P  tokens (patches) per frame    D  width of features
  C  classes over all tasks        K  classes of the current task
  L  prompt templates per class    S  length of a text, in tokens
  E  experts                       k  experts per routed item
  N  samples of a data split       M  size of the exemplar memory

Classes are numbered by their position in the scenario's class order, so that the
classes of task t are one contiguous block and the classes seen so far a prefix.
"""

__version__ = "0.1.0"
