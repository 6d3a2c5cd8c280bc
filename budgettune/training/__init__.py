"""Training of one configuration in torch, on an honest clock. Never a database, and never Optuna."""
