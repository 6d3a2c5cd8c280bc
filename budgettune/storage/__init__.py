"""Optuna's tables by SQL, and the only folder that speaks to a database: lenient reads, one transaction a change."""
