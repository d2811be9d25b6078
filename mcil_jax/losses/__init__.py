"""Losses: pure functions, each with the source of its equation."""
