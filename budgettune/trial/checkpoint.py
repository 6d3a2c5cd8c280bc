"""Half-trained trials as files, for another process to go on with. A file that cannot be used is no error.

A file has a line with its format and a checksum, a line of JSON (whose it is, the curve, the clock), and the state.
Bytes are kept as they are; what else the state is, is pickled, and a pickle is code: whoever can write the file can run
anything as whoever reads it. So only those are read which nobody else could have written; in a folder that the operator
named, which nobody but its group could have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import stat
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from budgettune.errors import BudgetTuneError
from budgettune.files import replacing
from budgettune.machine.verdict import worst
from budgettune.records import EpochRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.text import message_of, warn_once

logger = logging.getLogger(__name__)

FORMAT = b"BudgetTune half-trained trial 1"
EVERY_SECONDS = 30.0
CHEAP_SHARE = 0.01  # of the time since the last saving, that one may cost at any time
SUPPOSED_SECONDS = 0.05  # what the first costs
BEFORE = "before epoch "
_OTHERS = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, kw_only=True)
class HalfTrained:
    """A trial at the end of an epoch.

    Attributes:
        curve: its epochs so far.
        elapsed_seconds: on the clock so far.
        seconds: of each phase so far.
        state: what its trainer, or code of the user's own, needs to go on: bytes, or what pickle takes.
        status, evidence: what its witnesses say so far; as in `TrialResult`.
        resumed: numbers of the epochs that began in another process than the epoch before.
    """

    curve: tuple[EpochRecord, ...]
    elapsed_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    state: Any = None
    status: str = "unverified"
    evidence: Mapping[str, Any] = field(default_factory=dict)
    resumed: tuple[int, ...] = ()

    def to_bytes(self, identity: str = "") -> bytes:
        """Return what `from_bytes` reads.

        Raises:
            BudgetTuneError: where the state is of a kind that pickle does not take.
        """
        is_plain = isinstance(self.state, bytes)
        try:
            state = self.state if is_plain else pickle.dumps(self.state, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise BudgetTuneError(
                f"the state of a trial cannot be saved ({message_of(error)}): give what pickle takes"
            ) from error
        curve = [asdict(record) for record in self.curve]
        facts = {"identity": identity, "is_plain": is_plain, **vars(self), "curve": curve, "state": len(state)}
        text = json.dumps(facts, default=dict).encode() + b"\n"
        return b"%b %08x\n%b%b" % (FORMAT, zlib.crc32(state, zlib.crc32(text)), text, state)

    @classmethod
    def from_bytes(cls, content: bytes, identity: str = "", *, bytes_only: bool = False) -> Self:
        """Return what `to_bytes` gave, or raise any error where it did not, or of another identity.

        With `bytes_only` nothing is unpickled: a state that is no bytes is an error, too.
        """
        first, _, rest = content.partition(b"\n")
        if not first.startswith(FORMAT + b" "):
            raise ValueError("another version's, or not a half-trained trial")
        if int(first.split()[-1], 16) != zlib.crc32(rest):
            raise ValueError("damaged")
        text, _, state = rest.partition(b"\n")
        facts = json.loads(text)
        if facts.pop("identity") != identity:
            raise ValueError("of another study, configuration, seed or kind of machine")
        is_plain, _ = facts.pop("is_plain"), facts.pop("state")
        if bytes_only and not is_plain:
            raise ValueError("a pickle, and the built-in training reads none")
        curve = tuple(EpochRecord(**record) for record in facts.pop("curve"))
        if not curve:
            raise ValueError("it has no epoch")
        resumed = tuple(facts.pop("resumed"))
        return cls(**facts, curve=curve, resumed=resumed, state=state if is_plain else pickle.loads(state))

    def verdict_with(self, status: str, evidence: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the verdict on this part and the one after it: the worst counts, with the reasons of both.

        Numbers are those of the later part.
        """
        reasons = [
            reason if reason.startswith(BEFORE) else f"{BEFORE}{len(self.curve)}: {reason}"
            for reason in self.evidence.get("reasons", ())
        ]
        return worst(self.status, status), {**evidence, "reasons": reasons + list(evidence.get("reasons", ()))}


def parts_of(half: HalfTrained | None, status: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return verdict and `resumed` of a trial, by what it went on from, and the verdict on the time since."""
    if half is None:
        return {"status": status, "evidence": evidence}
    status, evidence = half.verdict_with(status, evidence)
    return {"status": status, "evidence": evidence, "resumed": (*half.resumed, len(half.curve))}


def identity_of(spec: StudySpec, params: Mapping[str, Any], seed: int, machine_key: str) -> str:
    """Return what two trials share of which one can go on with what the other left."""
    told = [spec.to_document(), dict(params), seed, machine_key]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


class Checkpoint:
    """The place where one trial is kept while it runs: a file, or none.

    Args:
        path: of the file, whose folder is made; None keeps nothing.
        identity: what `identity_of` gave; a file of another one is not read.
        every_seconds: between savings. Where they are cheap there are more.
        is_shared: whether the operator named the folder, so that files of others are read, too.
        clock: seconds, monotonic.

    Attributes:
        kept_epochs: after which the trial was kept last by this process; 0 where it was not.
    """

    def __init__(
        self,
        path: Path | None = None,
        identity: str = "",
        *,
        every_seconds: float = EVERY_SECONDS,
        is_shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.identity, self.every_seconds, self.is_shared = path, identity, every_seconds, is_shared
        self.kept_epochs = 0
        self._clock = clock
        self._saved_at = self._asked_at = clock()
        self._cost_seconds = SUPPOSED_SECONDS

    def is_due(self) -> bool:
        """Whether to save now: some time after the last saving, or where it costs less than a hundredth of that time.

        What lies between this and `save` is what saving costs.
        """
        if self.path is None:
            return False
        self._asked_at = now = self._clock()
        passed = now - self._saved_at
        return passed >= self.every_seconds or self._cost_seconds <= CHEAP_SHARE * passed

    def save(self, half: HalfTrained) -> bool:
        """Keep a trial in place of what was kept before, and return whether that worked; why not is said once.

        Raises:
            BudgetTuneError: where the state is of a kind that no file can hold.
        """
        if self.path is None:
            return False
        content = half.to_bytes(self.identity)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self.path, mode=0o660 if self.is_shared else 0o600) as file:
                file.write(content)
        except OSError as error:
            reason = error.strerror or error
            warn_once(logger, f"half-trained trials are not kept: {self.path.parent}: {reason}; training goes on")
            return False
        finally:
            self._saved_at = self._clock()
            self._cost_seconds = self._saved_at - self._asked_at
        self.kept_epochs = len(half.curve)
        return True

    def load(self, *, bytes_only: bool = False) -> HalfTrained | None:
        """Return what was kept; None where nothing is, or nothing that can be used, which is said.

        `bytes_only` is as in `HalfTrained.from_bytes`.
        """
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as file:
                _check_owner(file, self.path.parent, is_shared=self.is_shared)
                return HalfTrained.from_bytes(file.read(), self.identity, bytes_only=bytes_only)
        except _OTHERS:
            return None
        except Exception as error:  # unpickling may raise anything
            reason = error.strerror if isinstance(error, OSError) and error.strerror else message_of(error)
            logger.warning("%s is not used (%s): the trial begins anew", self.path, reason)
            return None

    def forget(self) -> None:
        """Remove what was kept; a file that stays is of no use to any other trial."""
        self._saved_at = self._clock()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


NOWHERE = Checkpoint()
"""Keeps nothing."""


def _check_owner(file: BinaryIO, folder: Path, *, is_shared: bool) -> None:
    """Raise ValueError where somebody else could have written a file."""
    user: Callable[[], int] | None = getattr(os, "geteuid", None)
    if user is None:  # a system without these rights
        return
    forbidden = stat.S_IWOTH if is_shared else stat.S_IWOTH | stat.S_IWGRP
    for facts in (os.fstat(file.fileno()), folder.stat()):
        if facts.st_mode & forbidden:
            raise ValueError("others may write to it or its folder, and could have put code into it")
        if not is_shared and facts.st_uid != user():
            raise ValueError("it or its folder belongs to another user, who could have put code into it")
