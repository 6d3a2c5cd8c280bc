"""What this machine lets a study name: packages to import code from, and folders to read and write files in.

A study may come from a shared database, so nothing is imported, read or written that this machine has not allowed.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgettune.errors import BudgetTuneError, SpecError, UsageError
from budgettune.files import user_path
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import is_code
from budgettune.text import as_written, variable

logger = logging.getLogger(__name__)

# By name, because Windows has only two of them.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


def allowed_packages(named: Iterable[str] | None) -> frozenset[str]:
    """Return the packages that studies may import from: those named, else those in BUDGETTUNE_ALLOW_IMPORT."""
    listed = named if named is not None else (variable("BUDGETTUNE_ALLOW_IMPORT") or "").split(",")
    return frozenset(name.strip() for name in listed if name.strip())


def allowed_roots(named: Iterable[str] | None) -> frozenset[str] | None:
    """Return the folders named, else those in BUDGETTUNE_ALLOW_ROOT; None where neither says anything."""
    listed = named if named is not None else (variable("BUDGETTUNE_ALLOW_ROOT") or "").split(os.pathsep)
    return frozenset(name for name in listed if name) or None


def allowed_commands(named: Iterable[str] | None) -> frozenset[str]:
    """Return the commands that studies may run: those named, else those in BUDGETTUNE_ALLOW_COMMAND."""
    listed = named if named is not None else (variable("BUDGETTUNE_ALLOW_COMMAND") or "").split(",")
    return frozenset(name.strip() for name in listed if name.strip())


def _opened(roots: Iterable[str]) -> Iterator[Path]:
    for root in roots:
        try:
            yield user_path(root, "--allow-root").resolve()
        except UsageError as error:  # opens nothing; what lies in the other folders can be worked on
            logger.warning("%s", error)


@contextmanager
def contained() -> Iterator[None]:
    """Run a study's code inside: its `sys.exit` (argparse calls it) is an error, and signals that it takes come back.

    Raises:
        RuntimeError: where it asked the process to end, or raised what is no Exception (as extensions in Rust panic).
    """
    takes = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _STOPPING} if takes else {}
    try:
        yield
    except SystemExit as error:
        if type(error) is not SystemExit:  # of a command that a signal ends
            raise
        raise RuntimeError(f"it called sys.exit({error.code!r})") from error
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@dataclass(frozen=True)
class Trust:
    """What this machine lets a study name."""

    packages: Collection[str] = ()  # top packages that code may come from
    folders: frozenset[Path] | None = None  # that files may lie in or below; None for any
    commands: Collection[str] = ()  # words, as a shell reads them, that a command may begin with

    @classmethod
    def of_database(
        cls,
        url: str,
        packages: Collection[str] = (),
        roots: Collection[str] | None = None,
        commands: Collection[str] = (),
    ) -> Trust:
        """Return what the studies of a database may name: code as given, and folders by where the database lies.

        A file of this machine is as trusted as the machine, unless roots are named. On a server anybody with its
        password may have made the study: it gets the roots and what lies below the working folder.
        """
        if roots is None and url.startswith("sqlite"):
            return cls(packages, None, commands)
        here = Path.cwd().resolve()
        below = [] if here == Path(here.anchor) else [here]  # a service that runs in / has not opened the whole disk
        return cls(packages, frozenset([*below, *_opened(roots or ())]), commands)

    def import_code(self, name: str) -> Any:
        """Return what `package.module:attribute` names.

        Raises:
            SpecError: where the name is not of that form, the module fails, or has no such attribute.
            UsageError: where its top package is not allowed, and nothing of it has been imported then; where this
                machine does not have it, or what it imports: another one may.
        """
        if not is_code(name):
            raise SpecError(f"{name!r} does not name code: write it as package.module:name")
        self.check_package(name)
        module_name, _, attribute = name.partition(":")
        try:
            with contained():
                module = importlib.import_module(module_name)
        except BudgetTuneError:
            raise
        except Exception as error:  # a module runs any code while it is imported
            reason = f"{type(error).__name__}: {error}"
            if not isinstance(error, ImportError):
                raise SpecError(f"{name}: cannot import {module_name} ({reason}): correct it") from error
            raise UsageError(
                f"{name}: cannot import {module_name} ({reason}): install it on this machine, or put its folder in "
                f"PYTHONPATH"
            ) from error
        if not hasattr(module, attribute):
            raise SpecError(f"{name}: module {module_name} has no {attribute}: correct the name in the study file")
        return getattr(module, attribute)

    def check_study(self, spec: StudySpec) -> None:
        """Refuse a study any of whose trials would be refused for the code, the command or the files that it names.

        Raises:
            UsageError: for the first of them.
        """
        for name in spec.code_names:
            self.check_package(name)
        if spec.train.command is not None:
            self.check_command(spec.train.command)
        self.check_files(spec)

    def check_package(self, name: str) -> None:
        """Refuse code whose top package is not allowed; nothing is imported.

        Raises:
            UsageError: where it is not.
        """
        package = name.partition(":")[0].partition(".")[0]
        if package not in self.packages:
            raise UsageError(
                f"the study wants to run {name}, and this machine does not allow the package {package}: if you trust "
                f"it, add --allow-import {package} or set BUDGETTUNE_ALLOW_IMPORT={package}"
            )

    def check_command(self, command: Sequence[str]) -> None:
        """Refuse a command that begins with none of the allowed ones: what follows those words is the study's affair.

        Raises:
            UsageError: where it is not allowed, or where what is allowed cannot be read.
        """
        for text in self.commands:
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise UsageError(f"--allow-command {as_written(text)}: {error}: write it as for a shell") from None
            if words and [*command[: len(words)]] == words:
                return
        told = shlex.quote(shlex.join(_usual_words(command)))
        raise UsageError(
            f"the study wants to run {shlex.join(command)}, and this machine does not allow that: if you trust it, add "
            f"--allow-command {told}, or put it into BUDGETTUNE_ALLOW_COMMAND"
        )

    def check_files(self, config: StudySpec) -> None:
        """Refuse files that a study names outside the folders, links followed.

        Raises:
            UsageError: for the first one outside.
        """
        if self.folders is None:
            return
        data, model = config.data, config.model
        files = {"data.root": data.root, "data.cache": data.cache, "model.weights": model.weights}
        for key, text in {**files, "pruning.scores": config.pruning.scores}.items():
            if text is None:
                continue
            path = user_path(text, key).resolve()
            if not any(path.is_relative_to(folder) for folder in self.folders):
                raise UsageError(
                    f"{key}: the study names {text!r}, which this box has not opened to studies of a shared database: "
                    f"add --allow-root {path}, or set BUDGETTUNE_ALLOW_ROOT"
                )


def _usual_words(command: Sequence[str]) -> Sequence[str]:
    """Return the words of a command that say what is run, up to the first value; all, where that is one word alone.

    An interpreter by itself would run anything.
    """
    place = next((place for place, word in enumerate(command) if "{" in word), len(command))
    while place > 1 and command[place - 1].startswith("-"):
        place -= 1
    return command[:place] if place > 1 else command
