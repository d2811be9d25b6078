"""The experiments, one file each; `--config=NAME` finds them from any directory."""
