"""The spool: results on their way to the database, as files of this box, so that they outlive whatever fails.

A worker writes each result here before it delivers it, and removes the file once the database has confirmed. What a
killed worker or a database that was away leaves behind is delivered by the next worker on the box.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from budgettune.errors import StorageError, StudyNotFound, UsageError
from budgettune.files import replacing, user_path
from budgettune.records import Claim, TrialResult
from budgettune.storage.patience import pauses
from budgettune.storage.trials import trial_records
from budgettune.storage.url import without_login
from budgettune.study.handle import StudyHandle, load_study
from budgettune.text import variable, warn_once

logger = logging.getLogger(__name__)

ASIDE_SUFFIX = ".set-aside"


@dataclass(frozen=True)
class Spooled:
    """One result on its way."""

    storage: str  # hash that names the database without a password
    study: str
    study_id: int
    spec: str  # hash of the study's spec; a study made anew under the same name differs in this or its id
    claim: Claim
    result: TrialResult
    allow_mixed: bool = False  # whether the worker was told to mix kinds of machine

    def to_json(self) -> str:
        return json.dumps({**vars(self), "claim": asdict(self.claim), "result": self.result.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Spooled:
        """Return what `to_json` wrote; ValueError, TypeError or KeyError where it did not write this."""
        document = json.loads(text)
        claim, result = Claim(**document["claim"]), TrialResult.from_json(document["result"])
        return cls(**{**document, "claim": claim, "result": result})


class Spool:
    """The folder of results on their way; `default_folder` where none is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def keep(self, study: StudyHandle, claim: Claim, result: TrialResult, *, allow_mixed: bool = False) -> Path | None:
        """Write a result to a file, and return it; None where the box does not take it, which is said once."""
        storage = storage_identity(study.url)
        spooled = Spooled(storage, study.name, study.study_id, _spec_hash(study), claim, result, allow_mixed)
        if self.folder is None:
            _say_why_not("there is no home folder")
            return None
        try:
            path = self.folder / f"{storage}-{study.study_id}-{claim.trial_id}.json"
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path, mode=0o600, survives_power_loss=True) as file:
                file.write(spooled.to_json().encode())
        except OSError as error:
            _say_why_not(f"{self.folder}: {error.strerror}")
            return None
        except (TypeError, ValueError) as error:
            logger.warning("result of trial %d has no local copy: %s", claim.number, error)
            return None
        return path

    def _files(self, url: str) -> list[Path]:
        if self.folder is None:
            return []
        try:
            return sorted(self.folder.glob(f"{storage_identity(url)}-*.json"))
        except OSError:  # a home that belongs to somebody else
            return []

    def deliver(
        self,
        study: StudyHandle,
        claim: Claim,
        result: TrialResult,
        patience_seconds: float,
        wait: Callable[[float], bool],
        *,
        allow_mixed: bool = False,
    ) -> bool | None:
        """Keep a result, then record it, asking again for a while where the database does not answer.

        `wait` sleeps for some seconds, and returns whether somebody asked to stop.

        Returns:
            whether the result is the one that counts for its cell, as `StudyHandle.complete` does; None where
            somebody asked to stop before the database answered: the file is there for the next worker.

        Raises:
            StorageError: where patience is over; the file stays.
        """
        path = self.keep(study, claim, result, allow_mixed=allow_mixed)
        waits = pauses(patience_seconds)
        while True:
            try:
                counts = study.complete(claim, result, allow_mixed=allow_mixed)
                _remove(path)
                return counts
            except StorageError as error:
                logger.warning("result of trial %d not recorded yet: %s", claim.number, error)
                pause_seconds = next(waits, None)
                if pause_seconds is None:
                    raise
            if path is None:
                time.sleep(pause_seconds)  # no copy: a polite signal must not lose the only one
            elif wait(pause_seconds):
                return None

    def deliver_all(self, url: str) -> int:
        """Deliver what earlier workers left for a database, and return how many results it took.

        Never raises: a database that is away is asked again by the next call, and a file that cannot be delivered
        is set aside.
        """
        delivered = 0
        for path in self._files(url):
            try:
                delivered += _deliver_file(path, url)
            except StudyNotFound as error:
                _set_aside(path, str(error))
            except StorageError as error:
                logger.warning("results in %s not delivered yet: %s", self.folder, error)
                break
            except Exception as error:  # one file never blocks the others, nor the worker
                logger.warning("result in %s not delivered: %s: %s", path, type(error).__name__, error)
        return delivered


def _say_why_not(reason: str) -> None:
    warn_once(
        logger,
        f"results have no local copy until the database has them ({reason}): set BUDGETTUNE_SPOOL to a folder that "
        f"this user may write to",
    )


def _deliver_file(path: Path, url: str) -> bool:
    spooled = _read(path)
    if spooled is None:
        return False
    with load_study(url, spooled.study) as study:
        if not _is_of(study, spooled):
            return _set_aside(path, f"study {spooled.study!r} was made anew since")
        counts = study.complete(spooled.claim, spooled.result, allow_mixed=spooled.allow_mixed)
    _remove(path)
    number = spooled.claim.number
    logger.warning("delivered the result of trial %d of %r%s", number, spooled.study, "" if counts else " as an extra")
    return True


def _read(path: Path) -> Spooled | None:
    try:
        return Spooled.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # another worker delivered it
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _set_aside(path, f"damaged ({type(error).__name__}: {error})")
        return None


def _is_of(study: StudyHandle, spooled: Spooled) -> bool:
    """Whether a result belongs to a trial of this study: SQLite numbers rows again after a study was deleted."""
    claim = spooled.claim
    if (study.study_id, _spec_hash(study)) != (spooled.study_id, spooled.spec):
        return False
    records = trial_records(study.engine, study.study_id, numbers=[claim.number], documents=False)
    if [(record.cell, record.repeat, record.seed) for record in records] != [(claim.cell, claim.repeat, claim.seed)]:
        return False
    return study.storage.get_trial_id_from_study_id_trial_number(study.study_id, claim.number) == claim.trial_id


def _set_aside(path: Path, reason: str) -> bool:
    aside = path.with_name(path.name + ASIDE_SUFFIX)
    with suppress(OSError):  # no permission: the file stays, and is warned of again
        path.replace(aside)
    logger.warning("result in %s cannot be delivered: %s: look at it, then remove it", aside, reason)
    return False


def _remove(path: Path | None) -> None:
    """Remove a file whose result the database has; one that stays is delivered again, which changes nothing."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def default_folder() -> Path | None:
    """Return BUDGETTUNE_SPOOL, else `budgettune/spool` in XDG_STATE_HOME, else the same in ~/.local/state.

    None where that needs a home folder and there is none.
    """
    named, state = variable("BUDGETTUNE_SPOOL"), variable("XDG_STATE_HOME")
    try:
        if named is not None:
            return user_path(named, "BUDGETTUNE_SPOOL")
        return user_path(state or "~/.local/state", "XDG_STATE_HOME") / "budgettune" / "spool"
    except UsageError:
        return None


def storage_identity(url: str) -> str:
    """Return a short hash that names a database: no user, no password, and the whole path of an SQLite file."""
    if url.startswith("sqlite"):
        place = str(Path(url.partition("///")[2].partition("?")[0]).resolve())
    else:
        parts = urlsplit(without_login(url))
        options = parse_qs(parts.query)
        # A server's socket folder and port may also stand behind the question mark.
        host = options.get("host", [parts.netloc])
        place = f"postgresql {host} {options.get('port', [])} {parts.path}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _spec_hash(study: StudyHandle) -> str:
    text = json.dumps(study.spec.to_document(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
