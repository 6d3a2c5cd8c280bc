"""The folder of half-trained trials: which file is whose, and which are of no use any more."""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from budgettune.files import user_path
from budgettune.records import Claim, Slot
from budgettune.storage.studies import all_studies
from budgettune.storage.trials import trial_records
from budgettune.study.handle import StudyHandle
from budgettune.text import variable
from budgettune.trial.checkpoint import NOWHERE, Checkpoint, identity_of
from budgettune.worker.spool import default_folder, storage_identity

logger = logging.getLogger(__name__)

OLD_SECONDS = 30 * 86_400.0
_NAME = re.compile(r"([0-9a-f]+)-(\d+)-(\d+)-(\d+)\.half")


class HalfTrainedFolder:
    """Files of trials that are cut off, for this box, or for all that share a folder.

    Args:
        named: by the operator; else `BUDGETTUNE_CHECKPOINTS`, or a folder below the spool, which is this user's alone.
        every_seconds: between savings; None keeps nothing.
    """

    def __init__(self, named: str | None, every_seconds: float | None) -> None:
        named = named or variable("BUDGETTUNE_CHECKPOINTS")
        self.every_seconds, self.is_shared = every_seconds, named is not None
        below = default_folder()
        self.folder = below and below / "half-trained" if named is None else user_path(named, "--checkpoints")

    @property
    def is_usable(self) -> bool:
        """Whether trials are kept, and in a folder that this process may write to."""
        if self.folder is None or self.every_seconds is None:
            return False
        with suppress(OSError):  # a folder that this user may not look into
            there = next(each for each in (self.folder, *self.folder.parents) if each.exists())
            return there.is_dir() and os.access(there, os.W_OK)
        return False

    def of(self, study: StudyHandle, claim: Claim, machine_key: str) -> Checkpoint:
        """Return where a trial is kept: by its slot, so that the next try finds it, on a machine of the same kind."""
        if self.every_seconds is None:
            return NOWHERE
        if (path := self._path(study, claim)) is None:  # no home folder, as the spool says
            return NOWHERE
        identity = identity_of(study.spec, claim.params, claim.seed, machine_key)
        return Checkpoint(path, identity, every_seconds=self.every_seconds, is_shared=self.is_shared)

    def forget(self, study: StudyHandle, claim: Claim) -> None:
        """Remove what was kept of a trial that needs it no more."""
        Checkpoint(self._path(study, claim)).forget()

    def _path(self, study: StudyHandle, claim: Claim) -> Path | None:
        name = f"{storage_identity(study.url)}-{study.study_id}-{claim.cell}-{claim.repeat}.half"
        return self.folder and self.folder / name

    def tidy(self, study: StudyHandle, now: float | None = None) -> int:
        """Remove what no trial goes on from, and return how many: of studies that are gone, of slots done, and old.

        `study` is any of the database.
        """
        if self.folder is None:
            return 0
        old = (time.time() if now is None else now) - OLD_SECONDS
        removed, storage = 0, storage_identity(study.url)
        known = {row.study_id for row in all_studies(study.engine)}
        done: dict[int, set[Slot]] = {}
        for path in self._files():
            match = _NAME.fullmatch(path.name)
            is_useless = False
            if match is not None and match[1] == storage:
                study_id, slot = int(match[2]), Slot(int(match[3]), int(match[4]))
                if study_id in known and study_id not in done:
                    done[study_id] = _slots_done(study, study_id)
                is_useless = study_id not in known or slot in done[study_id]
            with suppress(OSError):  # somebody else's
                if is_useless or path.stat().st_mtime < old:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _files(self) -> list[Path]:
        """Return all files that are kept here, and those that a killed process was writing."""
        try:
            return [path for path in sorted(self.folder.iterdir()) if ".half" in path.name] if self.folder else []
        except OSError:
            return []


def _slots_done(study: StudyHandle, study_id: int) -> set[Slot]:
    records = trial_records(study.engine, study_id, states=["COMPLETE", "PRUNED"], documents=False)
    return {
        Slot(record.cell, record.repeat)
        for record in records
        if record.cell is not None and record.repeat is not None and not record.extra
    }
