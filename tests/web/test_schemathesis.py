"""The API against its own OpenAPI document, by requests that schemathesis makes up: sound ones and hostile ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.support.synthetic import make_study
from budgettune.dashboard.app import listen, make_app
from budgettune.dashboard.passwords import Passwords
from budgettune.study.handle import create_study
from budgettune.web.app import Answers
from tests.support.studies import grid

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).with_name("schemathesis")
HOOKS = """
import schemathesis


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    # Half of all requests are of a study that is there.
    known = ["synthetic", "empty", "häß/☃"]
    if path_parameters and len(path_parameters.get("study", "")) % 2:
        return {**path_parameters, "study": known[len(path_parameters["study"]) % len(known)]}
    return path_parameters
"""


@pytest.mark.parametrize("is_guarded", [False, True], ids=["open", "with a password"])
def test_no_request_fails_and_every_answer_is_as_the_document_says(tmp_path, sqlite_url, is_guarded):
    pytest.importorskip("schemathesis", reason="pip install 'budgettune[http]' runs this test")
    make_study(sqlite_url, 12, epochs=2)
    for name in ("empty", "häß/☃"):
        create_study(grid(name), sqlite_url).close()
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")
    passwords = Passwords.from_lines(["ada:one"], "test") if is_guarded else None
    with listen(make_app(sqlite_url, answers=Answers, passwords=passwords), "127.0.0.1", 0) as address:
        command = [
            *(PROGRAM, "run", f"{address}api/answers/openapi.json", "--url", address.rstrip("/")),
            *("--checks", "all", "--max-examples", "40", "--seed", "1", "--workers", "2", "--request-timeout", "120"),
            *(["--auth", "ada:one"] if is_guarded else ["--exclude-checks", "ignored_auth"]),
            "--no-color",
        ]
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
            cwd=tmp_path,
            env={
                "SCHEMATHESIS_HOOKS": "hooks",
                "PYTHONPATH": str(tmp_path),
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
            },
        )
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr
