"""A program that trains one trial: started in a process group of its own, listened to, and ended with all it started.

Nothing of it outlives the trial: not its children, not those that began a session of their own (torchrun's do), and
not where the worker itself is killed.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from budgettune import errors
from budgettune.errors import Interrupted, OutOfMemory, ProgramFailed, SpecError, TrialFailed, TrialMisused, UsageError
from budgettune.machine import procfs
from budgettune.text import as_written, shortened
from budgettune.trial.current import FOLDER_VARIABLE, HEAR_PIPE, RESTORED_FILE, SAY_PIPE, write_terms
from budgettune.trial.terms import Terms
from budgettune.trial.told import ToldTrial

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0  # from the request to end to the end by force
MOST_BYTES = 2**20  # of a line; a pipe holds no more, so that one reading empties it
LAST_LINES = 60  # of standard error, in which the reason of a failure is looked for

# The program takes the place of this shell, whose child waits for the worker's end of a pipe to be closed. That one
# ends what has the trial's folder in its environment, and then its own group: it is of no session but the program's.
_LAUNCHER = f"""
exec 3<&0
((trap '' HUP INT TERM; read _ <&3
for each in /proc/[0-9]*; do
    grep -qsF -- "{FOLDER_VARIABLE}=$0" "$each/environ" && kill -KILL "${{each#/proc/}}"
done
rm -rf -- "$0"; kill -KILL -$$) >/dev/null 2>&1 &)
export {FOLDER_VARIABLE}="$0"
exec "$@" </dev/null 3<&-
"""

_OWN_ERROR = re.compile(r"budgettune\.errors\.(\w+): (.*)")
_FULL = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|RESOURCE_EXHAUSTED|std::bad_alloc|CUDA out of memory|Cannot allocate memory"
)
_ERROR = re.compile(r"(?:\[rank\d+\]: *)?(?!\S*ChildFailedError)([\w.]*(?:Error|Exception|Interrupt)\b.*)")


class _Values(dict[str, str | int | float]):
    """What stands for the names in a command; nothing for one that has no value in this trial."""

    def __missing__(self, name: str) -> str:
        return ""


def worded(command: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return a command with its values: truth as true and false, what is not given as nothing.

    Raises:
        SpecError: where a value does not take the format that it is asked in.
    """
    texts = {True: "true", False: "false"}
    known = _Values(
        {
            name: texts[value] if isinstance(value, bool) else value
            for name, value in values.items()
            if value is not None
        }
    )
    try:
        return [part.format_map(known) for part in command]
    except (ValueError, LookupError, AttributeError) as error:
        raise SpecError(f"train.command: {as_written(list(command))}: {error}: correct the format") from None


def run_program(
    trial: ToldTrial,
    words: Sequence[str],
    terms: Terms,
    *,
    environment: Mapping[str, str] = os.environ,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run a program until it has ended, and take in what it says; `terms` are what it reads in its folder.

    Raises:
        UsageError: where there is no such program here.
        Interrupted: where `should_stop` said so; the program was asked to end, and then made to.
        TrialMisused: where it says what cannot be.
        OutOfMemory: where it ended for want of memory.
        ProgramFailed: where it ended with an error, or something has killed it.
    """
    if not hasattr(os, "mkfifo"):
        raise UsageError("train.command: needs named pipes, which this system does not have: use train.loop")
    path = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    environment = {**environment, "PATH": os.pathsep.join(path)}  # python is the worker's, and so is its torchrun
    if shutil.which(words[0], path=environment["PATH"]) is None:
        raise UsageError(f"train.command: there is no program {words[0]!r} on this machine: install it, or set PATH")
    with _folder(terms, trial) as folder, _Program(trial, words, folder, environment) as program:
        program.listen(should_stop)


@contextmanager
def _folder(terms: Terms, trial: ToldTrial) -> Iterator[Path]:
    """Make the folder that a program and its worker talk through, for this user alone."""
    with tempfile.TemporaryDirectory(prefix="budgettune-trial-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        trial.folder = folder
        write_terms(terms, folder, done=trial.done)
        if trial.restored is not None:
            (folder / RESTORED_FILE).write_bytes(trial.restored)
        for pipe in (SAY_PIPE, HEAR_PIPE):
            os.mkfifo(folder / pipe, 0o600)
        yield folder


class _Program:
    """The running program, its pipes, and the end of both."""

    def __init__(self, trial: ToldTrial, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._trial, self._words, self._folder, self._environment = trial, words, folder, environment
        self._half_line = b""
        self._kills_before = procfs.memory_kills()

    def __enter__(self) -> _Program:
        # Held open at both ends: nobody waits for a program that closes its own, or that never opens it.
        self._say = os.open(self._folder / SAY_PIPE, os.O_RDWR | os.O_NONBLOCK)
        self._hear = os.open(self._folder / HEAR_PIPE, os.O_RDWR | os.O_NONBLOCK)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, str(self._folder), *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:  # such as arguments that are too long
            os.close(self._say)
            os.close(self._hear)
            raise
        self._outputs = {
            _descriptor(self._process.stdout): _Copied(lambda: sys.stdout),
            _descriptor(self._process.stderr): (errors_printed := _Copied(lambda: sys.stderr)),
        }
        self._errors = errors_printed
        for output in self._outputs:
            os.set_blocking(output, False)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for output in self._outputs:
            self._copy(output)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        os.close(self._say)
        os.close(self._hear)

    def listen(self, should_stop: Callable[[], bool]) -> None:
        """Take in what the program says until it has ended."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._say, *self._outputs):
                selector.register(descriptor, selectors.EVENT_READ)
            while self._process.poll() is None and not self._trial.is_past:
                ready = {key.fd for key, _ in selector.select(POLL_SECONDS)}
                if self._say in ready:
                    self._take_in()
                for output in self._outputs.keys() & ready:
                    if not self._copy(output):
                        selector.unregister(output)
                if should_stop():
                    raise Interrupted("told to stop: the configuration can be run again")
        if self._trial.is_past:  # it was told to end: what it reported until then is its result
            return
        self._take_in()
        for output in self._outputs:
            self._copy(output)
        if self._process.returncode:
            raise self._failure(self._process.returncode)
        if self._half_line:
            self._trial.hear(self._half_line, time.monotonic())

    def _take_in(self) -> None:
        """Take in the lines that have arrived."""
        try:
            part = os.read(self._say, MOST_BYTES)
        except BlockingIOError:
            return
        arrived = time.monotonic()  # after reading, or a line may say a later moment
        *lines, self._half_line = (self._half_line + part).split(b"\n")
        for line in lines:
            if line.strip() and not self._trial.is_past:
                answer = self._trial.hear(line, arrived)
                if answer is not None:
                    self._answer(answer)
        if len(self._half_line) > MOST_BYTES:
            raise TrialMisused(f"the program said {MOST_BYTES} bytes without an end of line: write one JSON a line")

    def _answer(self, words: Mapping[str, Any]) -> None:
        """Put an answer where the program may read it, in place of one that it has not read."""
        with suppress(BlockingIOError):
            os.read(self._hear, 2**16)
        os.write(self._hear, json.dumps(words).encode() + b"\n")

    def _copy(self, output: int) -> bool:
        """Pass on what the program has printed; return whether more may come.

        Not until nothing is left: one that prints without an end would never be told to stop.
        """
        try:
            part = os.read(output, MOST_BYTES)
        except BlockingIOError:
            return True
        self._outputs[output].write(part)
        return bool(part)

    def _end(self) -> None:
        """Ask all that still runs to end, and after a while make it."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        for _ in range(20):
            if not self._signal(signal.SIGKILL):
                break
            time.sleep(0.01)  # one that is starting another just now may be a step ahead
        self._process.wait()

    def _signal(self, number: signal.Signals) -> bool:
        """Send a signal to the group and to whoever left it; return whether somebody had left it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
        others = procfs.processes_with(FOLDER_VARIABLE, str(self._folder))
        for pid in others:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return bool(others)

    def _failure(self, status: int) -> TrialFailed:
        """Return why a program ended with a status other than zero."""
        lines = self._errors.last_lines()
        said = "\n".join(lines)
        for name, text in reversed(_OWN_ERROR.findall(said)):
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, TrialFailed) and not issubclass(kind, Interrupted):
                return kind(text)
        killed = [now > before for now, before in zip(procfs.memory_kills(), self._kills_before, strict=True)]
        by_force = status in (-signal.SIGKILL, 128 + signal.SIGKILL) or "SIGKILL" in said
        if killed[0] or (killed[1] and by_force):
            return OutOfMemory("the system ended the program for want of memory: take a smaller configuration")
        if full := next((line for line in reversed(lines) if _FULL.search(line)), None):
            return OutOfMemory(f"the program ended for want of memory: {shortened(full.strip(), 300)}")
        reason = _reason(lines)
        return ProgramFailed(
            f"{shlex.join(self._words[:1])} {_status(status)}: {shortened(reason, 500) or 'it printed no error'}"
        )


def _status(status: int) -> str:
    """Return how a program ended, in words."""
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with exit status {status}"
    if status > 0:  # of a program that it started, as a shell tells it
        return f"ended with exit status {status}, which stands for {name}"
    return f"was killed by {name}"


def _reason(lines: Sequence[str]) -> str:
    """Return the line that says why: the last that names an error, else the last with a word in it."""
    named = next((found[1] for line in reversed(lines) if (found := _ERROR.match(line.strip()))), None)
    return named or next((line.strip() for line in reversed(lines) if re.search(r"\w", line)), "")


def _descriptor(stream: Any) -> int:
    return int(stream.fileno())


class _Copied:
    """Passes on what a program prints, and keeps its last lines; a bar that redraws itself counts as lines."""

    def __init__(self, target: Callable[[], TextIO | None]) -> None:
        self._target = target
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def write(self, part: bytes) -> None:
        text = self._decoder.decode(part, final=not part)
        target = self._target()
        with suppress(OSError, ValueError):  # a terminal that is gone
            if target is not None and text:
                target.write(text)
                target.flush()
        *lines, self._rest = re.split(r"[\r\n]+", self._rest + text)
        self._lines.extend(line for line in lines if line.strip())
        self._rest = self._rest[-MOST_BYTES:]

    def last_lines(self) -> list[str]:
        return [*self._lines, *filter(str.strip, [self._rest])]
