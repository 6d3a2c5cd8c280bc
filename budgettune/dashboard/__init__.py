"""optuna-dashboard behind access rules, with a storage that re-reads only what changed and figures of ours."""
