"""Real workers in processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def command(url, *words, prefix=(), **environment):
    """Start `budgettune worker` on a database, and return its process."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "budgettune", "worker", "--storage", url, "--threads", "1", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1]))), **environment},
    )


def wait_until(condition, seconds=180):
    """Wait for something to become true, and fail where it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
