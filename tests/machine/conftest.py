"""A made-up /proc and /sys."""

import pytest

STAT = """cpu  400 0 200 4000 0 10 10 30 0 0
cpu0 100 0 100 2000 0 5 5 10 0 0
cpu1 300 0 100 2000 0 5 5 20 0 0
cpu2 999 0 999 2000 0 5 5 999 0 0
intr 1
"""


@pytest.fixture
def box(tmp_path):
    """Return a writer of files under a made-up root."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    write("proc/stat", STAT)
    return write
