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


@pytest.mark.slow
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


def test_a_box_that_could_start_no_process_is_asked_again(monkeypatch):
    call = Aside("test")
    with monkeypatch.context() as patched:
        patched.setattr("multiprocessing.context.SpawnProcess.start", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(os.getpid)
    assert call(divmod, 7, 2) == (3, 1)


SERVER = """
import os, sys, time
from budgettune.web.aside import Aside

if __name__ == "__main__":
    print(Aside("test")(os.getpid), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
@pytest.mark.slow
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


LEAVES_AT_WORK = """
import atexit, os, threading, time
atexit.register(time.sleep, 1)  # last of all, so that a thread still has time for what it must not do
from budgettune.web.aside import Aside

class Counted(Aside):
    def _start(self):
        print("started", flush=True)
        return super()._start()

if __name__ == "__main__":
    call = Counted("test")
    call(os.getpid)
    threading.Thread(target=call, args=(time.sleep, 60), daemon=True).start()
    time.sleep(0.5)
"""


@pytest.mark.slow
def test_a_server_that_ends_at_work_starts_no_process_any_more(tmp_path):
    (tmp_path / "server.py").write_text(LEAVES_AT_WORK)
    ended = subprocess.run([sys.executable, tmp_path / "server.py"], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("started\n", 0)


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
