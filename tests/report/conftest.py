"""Studies to report on: made up by benchmarks/synthetic.py, in memory where no database is asked for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
