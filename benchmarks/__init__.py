"""Benchmarks: each prints a table, and a ratio against a baseline beside it. Run as `python -m benchmarks.NAME`."""
