"""Optuna's tables by SQL: the only folder that speaks to a database. Reads are lenient, each change is one transaction."""
