"""Torch, and never Optuna."""
