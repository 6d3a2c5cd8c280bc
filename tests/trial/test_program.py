"""A program that trains a trial, as a process of its own: what it says, how it ends, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from budgettune.errors import (
    Interrupted,
    NonFiniteLoss,
    OutOfMemory,
    ProgramFailed,
    SpecError,
    TrialMisused,
    UsageError,
)
from budgettune.machine import procfs
from budgettune.records import MachineInfo
from budgettune.trial.checkpoint import NOWHERE, Checkpoint
from budgettune.trial.program import run_program, worded
from budgettune.trial.terms import Outside, Terms
from budgettune.trial.told import ToldTrial
from tests.support.processes import wait_until

MACHINE = MachineInfo(hostname="box", device="cpu", device_name="cpu", threads=1)
ROOT = Path(__file__).parents[2]

TALK = """
say() { echo "$1" >"$BUDGETTUNE_TRIAL/say"; }
hear() { read -r answer <"$BUDGETTUNE_TRIAL/hear"; }
"""
EPOCH = """say '{"clock": "start"}'; say '{"clock": "stop", "steps": 2}'; say '{"report": {"accuracy": 0.5}}'; hear
"""


def terms(epochs=2, **more):
    return Terms(params={"lr": 0.1, "name": "a b"}, seed=7, epochs=None if "budget_seconds" in more else epochs, **more)


def run(*words, should_stop=lambda: False, its=None, checkpoint=NOWHERE, **outside):
    its = its or terms()
    trial = ToldTrial(its, Outside(should_stop=should_stop, **outside), checkpoint)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run_program(trial, words, its, environment=environment, should_stop=should_stop)
    return trial.result(MACHINE)


def shell(script, **more):
    return run("sh", "-c", TALK + script, **more)


def python(script, **more):
    return run("python", "-c", script, **more)


def test_a_shell_program_is_timed_between_its_lines():
    seen = []
    result = shell(
        """
        sleep 0.4
        for epoch in 1 2; do
            say '{"clock": "start"}'; sleep 0.5; say '{"clock": "stop", "steps": 5, "samples": 50, "loss": 0.25}'
            say '{"aside": "score", "state": "start"}'; sleep 0.3; say '{"aside": "score", "state": "stop"}'
            say '{"report": {"accuracy": 0.5, "recall": 0.25}}'; hear
        done
        say '{"describe": {"parameters": 12, "kernel": "linear"}}'
        case $answer in *'"go_on": false'*) ;; *) exit 1 ;; esac
        """,
        on_epoch=seen.append,
    )
    assert result.train_seconds == pytest.approx(1.0, rel=0.1)  # starting a `sleep` takes a little
    assert (result.epochs, result.steps, result.samples, result.value) == (2, 10, 100, 0.5)
    assert result.step_ms_median == pytest.approx(100, rel=0.1)
    assert result.phases.build > 0.35
    assert result.phases.asides["score"] == pytest.approx(0.6, rel=0.2)
    assert (result.measures, result.parameters, result.architecture) == ({"recall": 0.25}, 12, {"kernel": "linear"})
    assert [record.loss for record in seen] == [0.25, 0.25]


PYTHON = """
import time
import budgettune
trial = budgettune.Trial.current()
assert trial is budgettune.Trial.current()
assert (trial.params, trial.seed, trial.device) == ({"lr": 0.1, "name": "a b"}, 7, "cpu"), vars(trial)
assert "torch" not in __import__("sys").modules
for epoch in trial.epochs():
    with trial.clock():
        for _ in range(5):
            time.sleep(0.02)
            trial.step(10, 0.25)
    with trial.aside("score"):
        time.sleep(0.1)
    trial.report(accuracy=0.5, recall=0.25)
trial.describe(parameters=12)
"""


def test_a_python_program_has_the_trial_of_its_worker():
    result = python(PYTHON)
    assert (result.epochs, result.steps, result.samples, result.value, result.seed) == (2, 10, 100, 0.5, 7)
    assert 0.2 <= result.train_seconds < 0.4
    assert result.phases.asides["score"] >= 0.2
    assert (result.measures, result.parameters, result.curve[0].loss) == ({"recall": 0.25}, 12, 0.25)
    assert result.step_ms_median >= 20


SLEEPER = """
import time
from budgettune import Trial
trial = Trial.current()
time.sleep(0.3)
slept = 0.0
for _ in trial.epochs():
    with trial.clock():
        for _ in range(10):
            began = time.perf_counter()
            time.sleep(0.05)
            slept += time.perf_counter() - began
            trial.step()
    time.sleep(0.2)
    trial.report(accuracy=0.5, slept=slept)
"""


def test_what_is_slept_in_a_step_is_charged_and_nothing_else_to_one_percent():
    results = [python(SLEEPER) for _ in range(3)]  # something else may take the processor at a border
    assert min(abs(result.train_seconds / result.measures["slept"] - 1) for result in results) < 0.01
    assert all(result.phases.build >= 0.3 for result in results)


def test_a_program_runs_by_hand_too(tmp_path):
    script = PYTHON.replace("current()\nassert", "current({'lr': 0.1, 'name': 'a b'}, seed=7, epochs=2)\nassert", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("on the clock: accuracy 0.5, recall 0.25") == 2


def test_a_deadline_ends_both_kinds():
    loop = f"while :; do {EPOCH} sleep 0.01; case $answer in *'\"go_on\": false'*) exit 0 ;; esac; done"
    shell_result = shell(
        loop.replace('; say \'{"clock": "stop"', '; sleep 0.1; say \'{"clock": "stop"'), its=terms(budget_seconds=0.5)
    )
    assert 0.4 < shell_result.train_seconds < 0.8
    result = python(
        "import budgettune, time\n"
        "trial = budgettune.Trial.current()\n"
        "for epoch in trial.epochs():\n"
        "    with trial.clock():\n"
        "        while True:\n"
        "            time.sleep(0.02)\n"
        "            if not trial.step(): break\n"
        "    assert trial.is_last_epoch and trial.progress == 1\n"
        "    trial.report(accuracy=1)",
        its=terms(budget_seconds=0.5),
    )
    assert result.train_seconds == pytest.approx(0.5, abs=0.1)
    assert result.epochs == 1


def test_a_program_that_does_not_listen_is_ended_where_its_trial_ends():
    result = shell(f"for epoch in 1 2 3 4 5 6 7 8 9; do {EPOCH.replace('hear', '')} done; sleep 600")
    assert result.epochs == 2
    result = shell(f"while :; do {EPOCH.replace('hear', '')} done", ends_early=lambda record: True)
    assert result.epochs == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("true", r"the program ended well and told nothing: in Python"),
        ("say hello", r"line 1 that the program said, 'hello', is no JSON object: write"),
        ("say '[1]'", r"line 1 that the program said, '\[1\]', is no JSON object"),
        ("say '{\"hi\": 1}'", r"line 1 .* says none of clock, aside, report, epoch, describe"),
        ("printf '{\"clock\"' >$BUDGETTUNE_TRIAL/say", r"line 1 that the program said, '{\"clock\"', is no JSON"),
        ("say '{\"report\": {\"accuracy\": 0.5}}'", r"line 1 .*: the clock never ran in this epoch: say .* nothing is"),
        ("say '{\"clock\": \"start\"}'", r"the program ended while its clock ran: say {\"clock\": \"stop\"}"),
        ("say '{\"clock\": \"stop\"}'", r"line 1 .*: the clock does not run"),
        ("say '{\"clock\": \"start\"}'; say '{\"clock\": \"start\"}'", r"line 2 .*: the clock runs already"),
        ("say '{\"clock\": \"start\"}'; say '{\"report\": {}}'", r"line 2 .*: the clock runs: say"),
        ("say '{\"clock\": \"start\", \"at\": 5}'", r"line 1 .*: at is 5: seconds of CLOCK_MONOTONIC"),
        ("say '{\"clock\": \"start\"}'; say '{\"clock\": \"stop\", \"steps\": -1}'", r"line 2 .*: steps is -1"),
        ("say '{\"clock\": \"start\"}'; say '{\"clock\": \"stop\", \"loss\": \"x\"}'", r"line 2 .* cannot be read"),
        ("say '{\"clock\": \"start\"}'; say '{\"clock\": \"stop\"}'", r"without a report of its last epoch: say"),
        ("say '{\"aside\": \"load\"}'", r"line 1 .*: an aside has a name and a state"),
        ("say '{\"aside\": \"load\", \"state\": \"stop\"}'", r"line 1 .*: 'load' has not begun"),
        ("say '{\"describe\": 1}'", r"line 1 .*: facts have names"),
        (EPOCH.replace("accuracy", "recall"), r"trial.report\(\) tells recall, and the study's objective is test acc"),
        (EPOCH.replace("0.5", '{}'), r"dict is no number"),
        (EPOCH.replace("0.5", "50"), r"an accuracy is a share from 0 to 1"),
        ("head -c 3000000 /dev/zero >$BUDGETTUNE_TRIAL/say", r"said 1048576 bytes without an end of line"),
    ],
)  # fmt: skip
def test_misuse_is_one_sentence(script, message):
    with pytest.raises(TrialMisused, match=message):
        shell(script)


def test_numbers_that_are_none_are_told_apart():
    with pytest.raises(NonFiniteLoss, match="the code reports accuracy = nan"):
        shell(EPOCH.replace("0.5", "NaN"))
    with pytest.raises(NonFiniteLoss, match="the loss of epoch 0 is nan"):
        python(
            "import budgettune\ntrial = budgettune.Trial.current()\nfor _ in trial.epochs():\n"
            "    with trial.clock(): trial.step(1, float('nan'))\n    trial.report(accuracy=0.5)"
        )


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("exit 3", ProgramFailed, "sh ended with exit status 3: it printed no error"),
        ("echo a >&2; echo 'no such file' >&2; exit 1", ProgramFailed, "sh ended with exit status 1: no such file"),
        ("kill -SEGV $$", ProgramFailed, "sh was killed by SIGSEGV: it printed no error"),
        ("kill -KILL $$", ProgramFailed, "sh was killed by SIGKILL"),
        ("sh -c 'kill -TERM $$'; exit $?", ProgramFailed, "sh ended with exit status 143, which stands for SIGTERM"),
        ("echo 'URL postgresql://a:secret@b/c' >&2; exit 1", ProgramFailed, r"URL postgresql://a:\*\*\*@b/c"),
        ("printf 'half a line' >&2; exit 1", ProgramFailed, "half a line"),
        (
            "echo 'XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory' >&2; exit 1",
            OutOfMemory,
            "for want of memory: Xla",
        ),
    ],
)
def test_how_a_program_failed(script, error, message):
    with pytest.raises(error, match=message):
        shell(script)


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("raise ValueError('too odd')", ProgramFailed, "python ended with exit status 1: ValueError: too odd"),
        ("bytearray(10**15)", OutOfMemory, "the program ended for want of memory: MemoryError"),
        (
            "import budgettune; trial = budgettune.Trial.current(); trial.step()",
            TrialMisused,
            r"^trial.step\(\) outside of trial.clock\(\): steps are what the clock counts$",
        ),
        (
            "class OutOfMemoryError(Exception): pass\nraise OutOfMemoryError('CUDA out of memory. Tried to')",
            OutOfMemory,
            "want of memory: OutOfMemoryError: CUDA out of memory. Tried to",
        ),
    ],
)
def test_how_a_python_program_failed(script, error, message):
    with pytest.raises(error, match=message):
        python(script)


def test_what_the_system_killed_for_its_memory_is_told_apart(monkeypatch):
    counts = iter([(0, 5), (0, 6)])
    monkeypatch.setattr(procfs, "memory_kills", lambda: next(counts))
    with pytest.raises(OutOfMemory, match="the system ended the program for want of memory"):
        shell("kill -KILL $$")


def test_what_it_prints_goes_on_to_the_workers_own(capsys):
    shell(f"echo out; echo err >&2; {EPOCH} {EPOCH}")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("out\n", "err\n")


HARD = """
trap '' TERM
setsid sh -c 'trap "" TERM; sleep 600' &
sh -c 'sleep 601' &
touch {}
while :; do sleep 0.05; done
"""


def left(mark):
    """Return the processes that a test's program has started and that still run."""
    return [pid for pid in procfs.processes_with("BT_MARK", mark) if pid != os.getpid()]


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv("BT_MARK", str(tmp_path))
    monkeypatch.setattr("budgettune.trial.program.GRACE_SECONDS", 0.3)
    return str(tmp_path)


def test_a_stop_ends_all_that_was_started(mark, tmp_path):
    begun = tmp_path / "begun"
    with pytest.raises(Interrupted):
        shell(HARD.format(begun), should_stop=begun.exists)
    wait_until(lambda: not left(mark), 10)


def test_one_that_prints_without_an_end_is_told_to_stop():
    asked = iter([False] * 3)
    with pytest.raises(Interrupted):
        shell("yes", should_stop=lambda: next(asked, True))


def test_what_a_program_leaves_behind_ends_with_it(mark):
    result = shell(f"(setsid sh -c 'exec 9<>$BUDGETTUNE_TRIAL/say; sleep 600' &) ; {EPOCH} {EPOCH}")
    assert result.epochs == 2
    wait_until(lambda: not left(mark), 10)


def test_a_program_that_closes_all_it_has_is_waited_for():
    assert shell(f"{EPOCH} {EPOCH} exec 0<&- 1>&- 2>&-; sleep 0.3").epochs == 2


def test_nothing_outlives_a_worker_that_is_killed(mark, tmp_path):
    begun = tmp_path / "begun"
    script = f"import tests.trial.test_program as it; it.shell({HARD.format(begun)!r})"
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    wait_until(begun.exists)
    assert len(left(mark)) > 3
    folders = {
        Path(line.partition(b"=")[2].decode())
        for pid in left(mark)
        for line in _environment(pid)
        if line.startswith(b"BUDGETTUNE_TRIAL=")
    }
    assert all(folder.exists() for folder in folders) and len(folders) == 1
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not left(mark), 10)
    wait_until(lambda: not any(folder.exists() for folder in folders), 10)


def _environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def test_a_command_gets_its_values():
    values = {"lr": 0.001, "rank": 3, "flag": True, "name": "a b", "epochs": None}
    words = ["x", "--lr={lr}", "{rank:03d}", "{flag}", "{name}", "{{}}", "{epochs}", "{lr:.1e}"]
    assert worded(words, values) == ["x", "--lr=0.001", "003", "true", "a b", "{}", "", "1.0e-03"]
    with pytest.raises(SpecError, match="correct the format"):
        worded(["{name:d}"], values)


def test_a_program_that_is_not_here_is_this_boxs_fault():
    with pytest.raises(UsageError, match="there is no program 'no-such-thing' on this machine"):
        run("no-such-thing")


SAVES = """
import os, sys, time
from budgettune import Trial
trial = Trial.current()
weights = trial.restored or [0]
for epoch in trial.epochs():
    with trial.clock():
        time.sleep(0.1)
        weights.append(weights[-1] * 3 + trial.seed + epoch)
        trial.step()
    if epoch == 2 and trial.restored is None:
        sys.exit(7)
    trial.report(accuracy=0.5)
    trial.save(weights)
trial.describe(weights_sha256=repr(weights))
"""
SAVES_IN_THE_SHELL = f"""
weights=0 first=yes
[ -e $BUDGETTUNE_TRIAL/restored ] && weights=$(cat $BUDGETTUNE_TRIAL/restored) first=no
for epoch in 1 2 3 4; do
    case $weights in *$epoch*) continue ;; esac
    [ $first$epoch = yes3 ] && exit 7
    weights="$weights $epoch"
    {EPOCH}
    case $answer in *'"save": true'*) echo "$weights" >$BUDGETTUNE_TRIAL/mine; say '{{"save": "mine"}}' ;; esac
done
say '{{"describe": {{"weights_sha256": "'"$weights"'"}}}}'
"""


@pytest.mark.parametrize(
    ("start", "program", "weights"),
    [(python, SAVES, "[0, 7, 29, 96, 298]"), (shell, SAVES_IN_THE_SHELL, "0 1 2 3 4")],
    ids=["python", "shell"],
)
def test_a_program_goes_on_with_what_an_earlier_one_has_saved(tmp_path, start, program, weights):
    checkpoint = Checkpoint(tmp_path / "half", "mine", every_seconds=0)
    with pytest.raises(ProgramFailed, match="status 7"):
        start(program, its=terms(epochs=4), checkpoint=checkpoint)
    kept = checkpoint.load()
    assert len(kept.curve) == 2
    seen = []
    result = start(program, its=terms(epochs=4), checkpoint=checkpoint, on_epoch=seen.append)
    assert [record.epoch for record in seen] == [2, 3]
    assert (result.epochs, len(result.curve), result.weights_sha256) == (4, 4, weights)
    assert result.train_seconds >= kept.elapsed_seconds  # two lines may arrive together


def test_saving_within_an_epoch_is_misuse():
    with pytest.raises(TrialMisused, match="save at the end of an epoch: say"):
        shell("""say '{"save": "mine"}'""")
    with pytest.raises(TrialMisused, match="'mine' cannot be read: No such file"):
        shell(EPOCH + """say '{"save": "mine"}'""")
