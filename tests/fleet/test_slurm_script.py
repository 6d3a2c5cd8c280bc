"""What `budgettune fleet --on slurm` writes and says, without a Slurm: stand-ins take its place."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from budgettune.errors import UsageError
from budgettune.fleet import ray_tasks, slurm
from budgettune.fleet.plan import FleetPlan
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.url import parse_url, split_password
from budgettune.study.handle import create_study
from budgettune.worker.processes import OUT_OF_TIME_STATUS
from budgettune.worker.watchdog import HUNG_STATUS
from tests.support.documents import parse
from tests.support.processes import wait_until
from tests.support.studies import grid, work_off

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
PASSWORD = "correct-horse-battery"
SERVER = "postgresql://anna@db.example/x"
ODD_NAMES = ["mine", "two words", "-dash", 'it\'s "quoted"', "$(touch owned)", "a/b;c\nd", "größe 模型", "%A {x}"]
STAND_IN = """#!/bin/bash
trap '{at_term}' TERM
echo "$0" "$@" >> "$CALLS"
{then}
"""


def plan(**values):
    return FleetPlan(**{"study": "mine", "url": SERVER, "workers": 3, **values})


def directives(text):
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(lines)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_script_is_one_and_its_command_is_parsed_with_any_name(name):
    text = slurm.script(plan(study=name, gpus=1, time_seconds=3600.0, worker_words=("--allow-import", "my nets")))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/bash\n")
    command = re.search(r'^"\$PYTHON" -m budgettune (worker .*) &$', text, re.MULTILINE | re.DOTALL)[1]
    words = shlex.split(command.replace('${limit[@]+"${limit[@]}"}', "--timeout 60"))
    assert words[-2:] == ["--", name]
    assert parse(words) == "worker"
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[\w-]+(=[\w.:@%-]+)?", line, re.ASCII) for line in lines)


def test_what_is_asked_for_stands_in_the_script():
    given = directives(slurm.script(plan(workers=8, gpus=2, cpus=4, time_seconds=8 * 3600.0)))
    assert {name: given[name] for name in ("array", "gres", "cpus-per-task", "time", "signal", "open-mode")} == {
        "array": "1-8",
        "gres": "gpu:2",
        "cpus-per-task": "4",
        "time": "480",
        "signal": "B:USR2@120",
        "open-mode": "append",
    }
    assert "requeue" in given
    bare = directives(slurm.script(plan()))
    assert not {"time", "gres"} & bare.keys()
    assert directives(slurm.script(plan(time_seconds=60.0)))["signal"] == "B:USR2@10"


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        (SERVER, SERVER, None),
        ("postgresql://anna:pw@db/x", "postgresql://anna@db/x", "pw"),
        ("postgresql://anna:p%40w@db:5/x?sslmode=require", "postgresql://anna@db:5/x?sslmode=require", "p@w"),
        ("postgresql://db/x?password=pw", "postgresql://db/x", "pw"),
        ("postgresql://db/x?user=a&password=p%26w&host=/tmp", "postgresql://db/x?user=a&host=/tmp", "p&w"),
        ("postgresql://postgres:@/x?host=/run/a:b", "postgresql://postgres@/x?host=/run/a:b", ""),
    ],
)
def test_a_password_is_taken_out_of_a_url_and_nothing_else(url, bare, password):
    assert split_password(url) == (bare, password)
    assert parse_url(bare).database == parse_url(url).database


def test_the_script_holds_no_password():
    text = slurm.script(plan(url=f"postgresql://anna:{PASSWORD}@db.example/x"))
    assert PASSWORD not in text
    assert f"export BUDGETTUNE_STORAGE={SERVER}\n" in text


class Job:
    """A job of the script with stand-ins for Slurm and for the interpreter.

    Attributes:
        worker: bash code of what runs in place of `python -m budgettune worker`.
    """

    def __init__(self, folder, worker, left="1:00", seconds=None, at_term="exit 143", requeue="", **more):
        self.folder, self.calls = folder, folder / "calls"
        self.environment = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": "9",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "2",
            **more,
        }
        for name, then in {"python": worker, "squeue": f"echo {left}", "scontrol": requeue}.items():
            (folder / name).write_text(STAND_IN.format(then=then, at_term=at_term))
            (folder / name).chmod(0o755)
        text = slurm.script(plan(time_seconds=3600.0), python=str(folder / "python"))
        if seconds is not None:  # that the job has run for, as bash counts them
            text = text.replace("set -uo pipefail", f"set -uo pipefail; SECONDS={seconds}")
        self.script = folder / "job.sh"
        self.script.write_text(text)

    def start(self):
        return subprocess.Popen(["bash", self.script], env=self.environment, stdout=subprocess.DEVNULL)

    def run(self):
        """Run it to its end, and return its status and the calls of Slurm and worker."""
        return self.ended(self.start())

    def ended(self, process):
        status = process.wait(60)
        return status, [line.removeprefix(f"{self.folder}/") for line in self.calls.read_text().splitlines()]

    def is_at_work(self):
        return self.calls.exists() and "python" in self.calls.read_text()


@pytest.mark.parametrize(
    ("left", "timeout"), [("30:00", 1620), ("8:00:00", 28620), ("1-00:00:09", 86229), ("0:08", 1), ("2:59", 1)]
)
def test_no_trial_begins_that_would_outlast_the_limit(left, timeout, tmp_path):
    _, (asked, worked) = Job(tmp_path, "exit 0", left).run()
    assert asked == "squeue --noheader --jobs=7_2 --format=%L"
    assert f"worker --timeout {timeout} --leave" in worked


@pytest.mark.parametrize("left", ["UNLIMITED", "INVALID", "NOT_SET", ""])
def test_without_a_limit_there_is_none_for_trials(left, tmp_path):
    status, (_, worked) = Job(tmp_path, "exit 0", left).run()
    assert status == 0
    assert "-m budgettune worker --leave" in worked


def test_where_slurm_says_the_end_it_is_not_asked(tmp_path):
    _, (worked,) = Job(tmp_path, "exit 0", SLURM_JOB_END_TIME="100").run()
    assert "--timeout 1 " in worked


@pytest.mark.parametrize(
    ("status", "seconds", "again"),
    [
        (0, None, False),
        (1, None, False),
        (3, None, False),
        (143, None, False),  # somebody told this worker alone to stop
        (OUT_OF_TIME_STATUS, None, True),
        (HUNG_STATUS, None, False),
        (HUNG_STATUS, 61, True),
        (137, None, False),
        (137, 61, True),
    ],
)
def test_a_job_begins_again_only_where_that_helps(status, seconds, again, tmp_path):
    left, calls = Job(tmp_path, f"exit {status}", seconds=seconds).run()
    assert [call for call in calls if "scontrol" in call] == ["scontrol requeue 7_2"] * again
    assert left == (0 if again else status)


@pytest.mark.parametrize(
    ("scontrol", "status", "tries"),
    [
        ('[ "$(grep -c requeue "$CALLS")" = 9 ]', 0, 9),  # away, which ping says too, until the ninth time
        ('[ "$1" = ping ]', OUT_OF_TIME_STATUS, 3),  # it is there, and refuses
        ('kill -TERM "$PPID"; false', OUT_OF_TIME_STATUS, 1),  # away, and the job is ended
    ],
)
def test_a_controller_that_is_away_is_asked_as_long_as_the_job_lives(scontrol, status, tries, tmp_path):
    job = Job(tmp_path, f"exit {OUT_OF_TIME_STATUS}", requeue=scontrol)
    job.script.write_text(re.sub(r"sleep \$\(\(.*", "sleep 0", job.script.read_text()))
    left, calls = job.run()
    assert (left, calls.count("scontrol requeue 7_2")) == (status, tries)


WORKS = "for i in {1..300}; do sleep 0.1; done"


@pytest.mark.parametrize(
    ("worker", "at_term", "signals", "status", "again"),
    [
        (WORKS, "exit 143", [signal.SIGUSR2], 0, True),
        (WORKS, "exit 0", [signal.SIGUSR2], 0, False),  # nothing was left: it ended by itself as the signal came
        (WORKS, "exit 143", [signal.SIGTERM], 143, False),
        (WORKS, "sleep 0.5; exit 143", [signal.SIGUSR2, signal.SIGTERM], 143, False),  # scancel after the signal
        (WORKS, f"exit {OUT_OF_TIME_STATUS}", [signal.SIGTERM], OUT_OF_TIME_STATUS, False),
    ],
)
def test_a_signal_stops_the_worker_and_that_for_the_limit_begins_again(
    worker, at_term, signals, status, again, tmp_path
):
    job = Job(tmp_path, worker, at_term=at_term)
    process = job.start()
    wait_until(job.is_at_work)
    for number in signals:
        process.send_signal(number)
    left, calls = job.ended(process)
    assert left == status
    assert [call for call in calls if "scontrol" in call] == ["scontrol requeue 7_2"] * again


def test_a_worker_is_told_to_stop_once_and_has_the_time_that_its_trial_needs(tmp_path):
    job = Job(tmp_path, "for i in {1..30}; do sleep 0.1; done; exit 143", at_term='echo TERM >> "$CALLS"')
    process = job.start()
    wait_until(job.is_at_work)
    process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "TERM" in job.calls.read_text())
    process.send_signal(signal.SIGTERM)
    status, calls = job.ended(process)
    assert (status, calls.count("TERM")) == (143, 1)


@pytest.mark.parametrize(("left", "again"), [("1:00", True), ("3:00", False), ("UNLIMITED", False)])
def test_a_job_that_is_ended_for_its_time_limit_alone_begins_again(left, again, tmp_path):
    """As where the controller was away when it was to signal that the time is nearly up."""
    job = Job(tmp_path, WORKS, left=left, seconds=61, at_term="exit 143")
    process = job.start()
    wait_until(job.is_at_work)
    process.send_signal(signal.SIGTERM)
    assert ("scontrol requeue 7_2" in job.ended(process)[1]) is again


def test_results_and_half_trained_trials_go_where_all_nodes_see_them_and_only_their_owner(tmp_path):
    Job(tmp_path, 'echo "$BUDGETTUNE_SPOOL $BUDGETTUNE_CHECKPOINTS $BUDGETTUNE_STORAGE" >> "$CALLS"').run()
    spool, checkpoints, storage = (tmp_path / "calls").read_text().splitlines()[-1].split()
    assert spool == f"{tmp_path}/home/.local/state/budgettune/spool"
    assert checkpoints == f"{spool}/half-trained"
    assert storage == SERVER
    assert {Path(folder).stat().st_mode & 0o777 for folder in (spool, checkpoints)} == {0o700}
    Job(tmp_path, 'echo "$BUDGETTUNE_CHECKPOINTS" >> "$CALLS"', BUDGETTUNE_SPOOL=f"{tmp_path}/elsewhere").run()
    assert (tmp_path / "calls").read_text().splitlines()[-1] == f"{tmp_path}/elsewhere/half-trained"


def test_a_single_job_without_an_array_knows_its_name(tmp_path):
    job = Job(tmp_path, f"exit {OUT_OF_TIME_STATUS}")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        del job.environment[name]
    assert job.run()[1][-1] == "scontrol requeue 9"


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Return what puts a stand-in for sbatch in place; it keeps what it was given in the folder."""

    def stand_in(then):
        (tmp_path / "sbatch").write_text(
            STAND_IN.format(at_term="", then=f'cat > "{tmp_path}/given"; env > "{tmp_path}/env"\n{then}')
        )
        (tmp_path / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    return stand_in


def test_the_password_goes_to_sbatch_by_its_environment_alone(sbatch, tmp_path, monkeypatch):
    url = f"postgresql://anna:{PASSWORD}@db.example/x"
    monkeypatch.setenv("BUDGETTUNE_STORAGE", url)
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    monkeypatch.setenv("BUDGETTUNE_DASHBOARD_PASSWORD", f"anna:{PASSWORD}")
    sbatch("echo '31;cluster'")
    said = slurm.submit(plan(url=url))
    assert "array 31: 3 workers of study 'mine'" in said
    assert {"squeue --jobs=31", "scancel 31"} <= set(re.findall(r"  (s\w+ .*)", said))
    assert f"{Path.cwd()}/budgettune-mine-31_*.log" in said
    assert (tmp_path / "calls").read_text() == f"{tmp_path}/sbatch --parsable\n"
    assert (tmp_path / "given").read_text() == slurm.script(plan(url=url))
    assert [line for line in (tmp_path / "env").read_text().splitlines() if PASSWORD in line] == [
        f"PGPASSWORD={PASSWORD}"
    ]


SAID = {
    "sbatch: error: Batch job submission failed: Requested node configuration is not available": "4 CPUs and 2 GPUs",
    "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification": "--gpus",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)": "scontrol ping",
    "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds …)": "2h00m",
    "sbatch: error: Batch job submission failed: Invalid job array specification": "MaxArraySize",
    "sbatch: error: Invalid account postgresql://a:secret@b": "sbatch took no job: Invalid account postgresql://a:***@b",
    "": "does not say why",
}


@pytest.mark.parametrize("said", SAID)
def test_what_sbatch_refuses_is_said_in_a_line_with_what_to_do(said, sbatch):
    sbatch(f"echo {shlex.quote(said)} >&2; exit 1")
    with pytest.raises(UsageError) as refused:
        slurm.submit(plan(gpus=2, cpus=4, time_seconds=7200.0))
    assert SAID[said] in str(refused.value)


def test_where_there_is_no_slurm_the_script_may_be_taken_elsewhere():
    with pytest.raises(UsageError, match=r"no sbatch is here.*--print"):
        slurm.submit(plan(), environment={"PATH": "/nowhere"})


def test_a_study_that_is_not_there_or_has_nothing_left_is_given_to_no_engine(run, postgresql_url, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    with create_study(grid(), postgresql_url) as study:
        status, _, err = run("fleet", "other", "--on", "slurm", "--storage", postgresql_url)
        assert (status, "other" in err) == (1, True)
        study.hand_back(study.claim())
        work_off(study)
        status, _, err = run("fleet", "study", "--on", "slurm", "--storage", postgresql_url)
    assert (status, "nothing left" in err) == (0, True)
    assert "retry" not in err, "a trial that was handed back ran again: nothing was given up"


OWN = {"objective": {"name": "distance", "direction": "minimize"}, "search": {"params.x": [1, 2]}}
REFUSED = {
    "code": ({**OWN, "train": {"loop": "mynets.code:train"}}, [], "does not allow the package mynets"),
    "a program": ({**OWN, "train": {"command": ["python", "t.py"]}}, [], "--allow-command 'python t.py'"),
    "a searched strategy": (
        {"search": {"pruning.strategy": ["full", "rules.mine:Hardest"]}},
        ["--", "--allow-import", "mynets"],
        "does not allow the package rules",
    ),
    "a folder": ({"data": {"name": "folder", "root": "/srv/images"}}, [], "--allow-root /srv/images"),
    "GPUs of times of a CPU": ({"machine": {"device_name": "EPYC x4"}}, ["--gpus", "1"], "each would have a GPU"),
    "other threads": ({"machine": {"device_name": "EPYC x4"}}, ["--cpus", "2"], "each would have a CPU with 2 threads"),
    "CPUs for times of a GPU": (
        {"machine": {"device_name": "NVIDIA A100"}},
        [],
        "each would have a CPU with 1 thread:",
    ),
    "one GPU for two processes": (
        {"train": {"processes": 2}},
        ["--gpus", "1"],
        "ask for --gpus 2 -- --gpus-per-trial 2",
    ),
    "two GPUs of two trials": ({"train": {"processes": 2}}, ["--gpus", "2"], "ask for --gpus 2 -- --gpus-per-trial 2"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_what_every_worker_would_refuse_is_said_before_any_is_started(case, engine, run, postgresql_url, monkeypatch):
    document, words, sentence = REFUSED[case]
    monkeypatch.setattr(slurm, "submit", lambda _: "submitted")
    monkeypatch.setattr(ray_tasks, "run", lambda *_, **__: 7)
    create_study(StudySpec.from_document({"name": "mine", **document}), postgresql_url)
    status, out, err = run("fleet", "mine", "--on", engine, "--storage", postgresql_url, *words)
    if (case, engine) == ("a folder", "ray"):  # it may be what the node's tasks run in
        assert status == 7
        return
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: no worker of this fleet could train: ")
    assert sentence in err


ALLOWED = {
    "code": ["--", "--allow-import", "mynets"],
    "a program": ["--", "--allow-command", "python"],
    "a searched strategy": ["--", "--allow-import", "rules"],
    "a folder": ["--", "--allow-root", "/srv"],
    "GPUs of times of a CPU": ["--gpus", "1", "--", "--allow-mixed"],
    "other threads": ["--cpus", "2", "--", "--threads", "4"],
    "CPUs for times of a GPU": ["--gpus", "1"],
    "one GPU for two processes": [],
    "two GPUs of two trials": ["--gpus", "4", "--", "--gpus-per-trial", "2"],
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_workers_can_train_is_given_to_the_engine(case, run, postgresql_url, monkeypatch):
    monkeypatch.setattr(slurm, "submit", lambda _: "submitted")
    create_study(StudySpec.from_document({"name": "mine", **REFUSED[case][0]}), postgresql_url)
    assert run("fleet", "mine", "--on", "slurm", "--storage", postgresql_url, *ALLOWED[case])[1] == "submitted\n"


def test_what_this_box_allows_by_its_variables_is_allowed_on_the_nodes(run, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_ALLOW_IMPORT", "mynets,rules")
    monkeypatch.setenv("BUDGETTUNE_ALLOW_ROOT", "/srv")
    _, printed, _ = run("fleet", "mine", "--on", "slurm", "--storage", SERVER, "--print", "--", "--allow-root", "/data")
    assert "--allow-root /data --allow-import mynets --allow-import rules -- mine &" in printed


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--", "--no-such-option"], 2, "No such option"),
        (["--", "--processes", "none"], 2, "Invalid value for '--processes'"),
        (["--", "other"], 1, "'other' is a word too many"),
        (["--", "--storage", SERVER], 1, "--storage before the --"),
        (["--", "--timeout", "1h"], 1, "use --time"),
        (["--", "--timeout", "0"], 1, "use --time"),
        (["--", "--wait"], 1, "--wait is not for"),
        (["--address", "host:1"], 1, "--address is Ray's"),
        (["--time", "soon"], 2, "is not a duration"),
        (["--storage", "sqlite:///x.db"], 1, "SQLite is for one"),
    ],
)
def test_what_no_worker_takes_is_refused_before_anything_is_asked(words, status, said, run, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    storage = [] if "--storage" in words[:1] else ["--storage", SERVER]
    left, _, err = run("fleet", "mine", "--on", "slurm", *storage, *words)
    assert left == status
    assert said in " ".join(err.split()), err


def test_print_prints_the_script_and_asks_nobody(run, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    status, printed, err = run(
        *("fleet", "mine", "--on", "slurm", "--storage", SERVER, "--workers", "3", "--print"),
        *("--", "--allow-import", "mynets"),
    )
    assert (status, err) == (0, "")
    assert printed == slurm.script(plan(worker_words=("--allow-import", "mynets")), sys.executable)
