"""A process beside the server: it answers, it ends when its server does, and another takes its place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from budgettune.web import aside
from budgettune.web.aside import Aside
from budgettune.web.reply import Busy


def test_calls_are_answered_elsewhere_and_a_killed_process_is_replaced():
    call = Aside("test")
    first = call(os.getpid)
    assert first != os.getpid()
    assert call(os.getpid) == first
    assert call(os.nice, 0) >= aside.NICENESS
    os.kill(first, signal.SIGKILL)
    assert call(os.getpid) not in (first, os.getpid())
    with pytest.raises(Busy):
        call(os._exit, 1)
    assert call(divmod, 7, 2) == (3, 1)
    call._end()


SERVER = """
import os, sys, time
from budgettune.web.aside import Aside

if __name__ == "__main__":
    print(Aside("test")(os.getpid), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_it_ends_with_its_server(tmp_path, end):
    (tmp_path / "server.py").write_text(SERVER)
    with subprocess.Popen([sys.executable, tmp_path / "server.py"], stdin=-1, stdout=-1, text=True) as server:
        number = int(server.stdout.readline())
        if end == "leaves":
            server.stdin.close()
        else:
            server.kill()
        server.wait(60)
    for _ in range(200):
        if not is_alive(number):
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
