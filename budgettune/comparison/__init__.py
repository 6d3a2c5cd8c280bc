"""Pruning strategies at equal wall-clock: planned, run, judged and shown. Never a database."""
