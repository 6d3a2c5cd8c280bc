"""A study: made from a spec, worked on by claims, repaired after crashes, checked.

The guarantee: exactly one complete trial for every cell and repeat, run at least once. Where the study's rule ends
trials early, one that it stopped takes the place of a complete one.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from budgettune.errors import BudgetTuneError, NotSearched, SpecError, StorageBusy, StudyExists
from budgettune.records import HANDED_BACK, Claim, Slot, SlotRow, TrialResult, trial_attributes
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import slots, transactions
from budgettune.storage.answers import state_counts
from budgettune.storage.connection import Engine, open_engine, open_storage, reading
from budgettune.storage.driver_errors import translated
from budgettune.storage.patience import READING_PATIENCE_SECONDS, asking_again
from budgettune.storage.studies import StudyRow, find_study, keep_prospect, machines, own_machine_key
from budgettune.storage.transactions import Reconciled
from budgettune.storage.trials import stopping_notes, trial_records
from budgettune.storage.url import shown
from budgettune.storage.writes import NewTrial
from budgettune.study.dashboard_note import study_note
from budgettune.study.draws import Draws
from budgettune.study.ledger import DrawLedger, Ledger, Queued, Verification, new_trials
from budgettune.study.summary import StudySummary, foreign_note, machine_note, summary_of
from budgettune.text import redact

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

    from budgettune.study.early_stop import EarlyStopSummary

Around = Callable[[], AbstractContextManager[Any]]
Fits = Callable[[Mapping[str, Any]], bool]

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
CREATE_PATIENCE_SECONDS = 60.0  # for which a busy database is asked again
FAIL_PATIENCE_SECONDS = 20.0  # the same, to say that a trial has failed: whoever stops a worker waits for it
LOOKED_AT = (20, 300)  # waiting trials, the oldest first, for one that fits into a worker's time
LONGEST_MESSAGE = 2_000  # characters of a failure that a row keeps


def create_study(spec: StudySpec, url: str, *, skip_if_exists: bool = False) -> StudyHandle:
    """Make a study with one waiting trial per grid cell and repeat, in one transaction.

    The SQLite file and the tables are made where they are missing. `skip_if_exists` opens a study of that name and
    spec that is there already, and queues what it lacks. A database without a connection left is asked again for a
    minute.

    Raises:
        StudyExists: where a study of that name is there (or, with `skip_if_exists`, one with other settings).
        StorageError: where the database cannot be used.
        SpecError: where a database cannot keep the name.
    """
    if "\0" in spec.name or any("\ud800" <= character <= "\udfff" for character in spec.name):
        raise SpecError(f"name: {spec.name!r} holds a character that a database cannot keep: leave it out")
    return asking_again(lambda: _created(spec, url, skip_if_exists), CREATE_PATIENCE_SECONDS)


def _created(spec: StudySpec, url: str, skip_if_exists: bool) -> StudyHandle:
    engine = open_engine(url, create=True)
    first_trials = new_trials(spec, Ledger(spec, ()).to_queue())
    study_id = transactions.insert_study(engine, spec, first_trials, note=study_note(spec))
    if study_id is not None:
        return StudyHandle(spec, url, study_id, engine)
    handle = _handle(url, engine, spec.name)
    if not skip_if_exists:
        raise StudyExists(f"study {spec.name!r} is there already: choose another --name, or add --skip-if-exists")
    if handle.spec != spec:
        raise StudyExists(
            f"study {spec.name!r} is there with other settings: choose another --name, or delete it first"
        )
    handle.reconcile()
    return handle


def load_study(url: str, name: str | None = None) -> StudyHandle:
    """Open a study; its name may be left out where the database holds exactly one.

    Raises:
        StudyNotFound: where there is no such study.
        StorageError: where the database cannot be used, or a newer budgettune wrote the study.
    """
    return _handle(url, open_engine(url), name)


def _handle(url: str, engine: Engine, name: str | None) -> StudyHandle:
    row = find_study(engine, name)
    handle = StudyHandle(row.read_spec(), url, row.study_id, engine)
    handle._row = row
    return handle


def delete_study(url: str, name: str) -> None:
    """Remove a study and its trials; other studies stay as they are.

    Raises:
        StudyNotFound: where there is no such study of ours.
    """

    def delete() -> None:
        engine = open_engine(url)
        transactions.delete_study(engine, find_study(engine, name).study_id)

    asking_again(delete, READING_PATIENCE_SECONDS)


class StudyHandle:
    """An open study. Its methods may be called from several threads.

    Attributes:
        spec: the study file as the database has it.
        url: of the database, with its password.
        engine: for `budgettune.storage.answers`.
    """

    def __init__(self, spec: StudySpec, url: str, study_id: int, engine: Engine) -> None:
        self.spec = spec
        self.url = url
        self.study_id = study_id
        self.engine = engine
        self._machine_key: str | None = None
        self._known_machine_keys: set[str] = set()
        self._row: StudyRow | None = None  # as it was when it was last found to be ours
        self._taken_up_to = 0
        self._tally: slots.Tally | None = None  # of the last look
        self._mended_at: slots.Tally | None = None  # at which there was nothing to mend
        self._all_drawn_at: slots.Tally | None = None  # at which there was nothing to draw
        self._is_idle = self._passed_over = False
        self._draws = Draws(spec, study_id)
        self._given_up = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StudyHandle({self.name!r}, {shown(self.engine.url)!r})"

    @property
    def name(self) -> str:
        return self.spec.name

    @cached_property
    def storage(self) -> RDBStorage:
        """Optuna's own storage on the same database; importing Optuna takes a moment, so only where asked for."""
        storage = open_storage(self.url)
        weakref.finalize(self, storage.engine.dispose)
        return storage

    def close(self) -> None:
        """Give back the connections; the handle opens new ones where it is used again."""
        self.engine.dispose()
        if "storage" in self.__dict__:
            self.storage.remove_session()
            self.storage.engine.dispose()

    # --- work -------------------------------------------------------------------------------------------------------

    def claim(
        self, around_draws: Around = nullcontext, fits: Fits | None = None, *, lease_seconds: float | None = None
    ) -> Claim | None:
        """Take the next open trial, drawing a new point where a sampled study has none; None where nothing is open.

        None may also mean that the rest is running elsewhere: ask `is_finished`. With `lease_seconds` trials without a
        sign of life for so long are taken for lost where nothing else is open, and their cells come back; without, ask
        `reconcile` now and then. A sampler may think for many seconds, and does so inside `around_draws()`, which may
        raise a KeyboardInterrupt. A trial whose params `fits` says no to is left to others.
        """
        while (claim := self._take(around_draws, fits, lease_seconds)) is not None:
            if self.spec.is_complete(claim.params):
                return claim
            # Another program's hand: it would train something else than its cell says.
            self.fail(claim, "damaged", "its params are not those that are searched", keeps_params=False)
            self.reconcile()
        return None

    def _take(self, around_draws: Around, fits: Fits | None, lease_seconds: float | None) -> Claim | None:
        is_sampled = self.spec.sampler.name != "grid"
        looks = is_sampled or lease_seconds is not None
        self._passed_over = False
        # Whoever found nothing the last time looks before it takes: that locks nothing.
        claim = None if (looks and self._is_idle) or self._is_spent() else self._take_waiting(fits)
        if claim is None and looks:
            # Lost trials mislead samplers, and their points come first.
            mended = self.reconcile(LEASE_SECONDS if lease_seconds is None else lease_seconds)
            is_waiting = mended.queued or (self._tally is not None and self._tally.waiting)
            if (is_waiting or is_sampled) and not self._is_spent():
                claim = self._take_waiting(fits) if is_waiting else None
                if claim is None and is_sampled and not self._passed_over:
                    claim = self._draw_fitting(around_draws, fits)
        self._is_idle = claim is None
        return claim

    def _is_spent(self) -> bool:
        return self.spec.sampler.can_be_spent and self._read_draws().is_spent

    def _take_fitting(self, fits: Fits) -> Claim | None:
        """Take a waiting trial that fits, and note whether one that does not was passed over."""
        after_id = 0
        for limit in LOOKED_AT:
            waiting = slots.waiting_params(self.engine, self.study_id, after_id, limit)
            # What is not whole is claimed, and fails.
            fitting = [key for key, params in waiting.items() if not self.spec.is_complete(params) or fits(params)]
            self._passed_over = self._passed_over or len(fitting) < len(waiting)
            if fitting:
                claim = transactions.take_waiting(
                    self.engine, self.study_id, self.spec.trial_seed, min(fitting) - 1, fitting
                )
                if claim is not None:
                    return claim
            if len(waiting) < limit:
                break
            after_id = max(waiting)
        return None

    def _draw_fitting(self, around_draws: Around, fits: Fits | None) -> Claim | None:
        """Draw a point; one that does not fit waits for others."""
        claim = self._draw(around_draws)
        if claim is None or fits is None or not self.spec.is_complete(claim.params) or fits(claim.params):
            return claim
        transactions.put_back(self.engine, claim.trial_id)
        return None

    def _take_waiting(self, fits: Fits | None) -> Claim | None:
        self._passed_over = False
        if fits is not None:
            return self._take_fitting(fits)
        # Rows never come back to waiting, but for those that another worker was about to take: a look finds them.
        claim = transactions.take_waiting(self.engine, self.study_id, self.spec.trial_seed, self._taken_up_to)
        if claim is not None:
            self._taken_up_to = claim.trial_id
        return claim

    def heartbeat(self, trial_id: int, kept_epochs: int | None = None) -> bool:
        """Renew the lease of a running trial; false where it was taken for lost (or deleted).

        `kept_epochs` says after which epoch another process can go on with it, where that has changed.
        """
        return transactions.renew_lease(self.engine, trial_id, kept_epochs)

    def complete(self, claim: Claim, result: TrialResult, *, allow_mixed: bool = False) -> bool:
        """Record a result; return whether it is the one that counts for its cell and repeat.

        A late result (the trial was taken for lost) still counts where its cell has no other trial running or
        complete; else it is kept as a trial marked `extra`. So is a result from another kind of machine than
        `machine_key`, unless kinds may be mixed; its cell is queued again. A trial that was stopped early counts, and
        keeps its curve and the reason in place of objectives. Objectives that are not finite fail the trial. Calling
        this again after a StorageError is safe.
        """
        if not result.is_finite():
            self.fail(
                claim, "non-finite-result", f"{result.train_seconds} s, {self.spec.objective.label} {result.value}"
            )
            return False
        values = None if result.is_stopped else (result.train_seconds, result.value)
        key, attributes = result.machine.key, trial_attributes(result)
        machine_key = key if allow_mixed else self._machine_key
        is_known = key in self._known_machine_keys
        counts = transactions.record_result(
            self.engine,
            self.study_id,
            claim,
            attributes,
            values,
            machine_key,
            is_known=is_known,
            excesses=self.spec.aim.excesses(result),
        )
        self._known_machine_keys.add(key)
        return counts

    def fail(self, claim: Claim, failure_kind: str, message: str, *, keeps_params: bool = True) -> bool:
        """Fail a trial; its cell is queued again unless it was given up. Return whether it was queued.

        The kind is a short word such as `out-of-memory`. `keeps_params` says whether the next try may copy its params;
        else `reconcile` queues its cell.
        """
        attempts = self.spec.sampler.max_attempts
        message = redact(message[: 2 * LONGEST_MESSAGE])[:LONGEST_MESSAGE]

        def record() -> bool:
            return transactions.record_failure(
                self.engine, self.study_id, claim, failure_kind, message, attempts, keeps_params=keeps_params
            )

        return asking_again(record, FAIL_PATIENCE_SECONDS)

    def hand_back(self, claim: Claim, why: str = "told to stop") -> bool:
        """Queue the cell of a trial that ends for no fault of its own; this uses up no attempt."""
        return self.fail(claim, HANDED_BACK, f"{why}; its cell was queued again")

    def holds(self, claim: Claim) -> bool:
        """Whether the database still has the row of a trial."""
        return bool(trial_records(self.engine, self.study_id, numbers=[claim.number], documents=False))

    def is_of(self, row: StudyRow) -> bool:
        """Whether a study as the database has it is this one."""
        if row != self._row:  # a long one takes a while to be read
            if row.study_id != self.study_id or row.read_spec() != self.spec:
                return False
            self._row = row
        return True

    # --- repair -------------------------------------------------------------------------------------------------------

    def reconcile(self, lease_seconds: float = LEASE_SECONDS) -> Reconciled:
        """Fail running trials without a sign of life for a lease, and queue every cell that has no trial.

        This takes no lock and reads no rows where a count tells that nothing came open since the last look.
        """
        before, self._tally = self._tally, slots.tally(self.engine, self.study_id, lease_seconds)
        if before is not None and self._tally.rows < before.rows:  # somebody deleted some
            self._draws = Draws(self.spec, self.study_id)
        if self._tally.waiting:
            self._taken_up_to = 0
        if self._nothing_came_open_since(self._mended_at):
            return Reconciled(lost=0, queued=0, given_up=self._given_up)
        tally = self._tally
        if tally.overdue or (ledger := self._ledger()).to_queue():
            done = self._repair(lease_seconds, Ledger.to_queue)
        else:  # nothing to mend: others need not wait for the study
            done = Reconciled(lost=0, queued=0, given_up=len(ledger.given_up()))
        self._mended_at, self._given_up = (None if done.lost or done.queued else tally), done.given_up
        self._taken_up_to = 0 if done.queued else self._taken_up_to
        return done

    def _nothing_came_open_since(self, earlier: slots.Tally | None) -> bool:
        tally = self._tally
        if tally is None or earlier is None or not tally.nothing_came_open_since(earlier):
            return False
        return not self.spec.sampler.grows_by_results or tally.complete == earlier.complete

    def retry(self, cell: int | None = None) -> int:
        """Queue cells again that were given up (all, or one); return how many rows were added."""
        self._mended_at = None
        return self._repair(
            None, lambda ledger: [ledger.queued(failed.slot, attempt=1) for failed in ledger.given_up(cell)]
        ).queued

    def _repair(self, lease_seconds: float | None, choose: Callable[[Ledger], list[Queued]]) -> Reconciled:
        is_spent = self._is_spent()

        def decide(rows: list[SlotRow]) -> tuple[list[NewTrial], int]:
            ledger = Ledger(self.spec, rows, is_spent=is_spent)
            return new_trials(self.spec, choose(ledger)), len(ledger.given_up())

        return transactions.repair(self.engine, self.study_id, lease_seconds, decide)

    def machine_key(self) -> str | None:
        """Return the kind of machine that the study's times come from: `[machine]`, else the first finished trial's."""
        if self._machine_key is None:
            with reading(self.engine) as connection:
                self._machine_key = own_machine_key(connection, self.study_id)
        return self._machine_key

    def counts(self) -> dict[str, int]:
        """Return how many trials of cells are in each state."""
        return state_counts(self.engine, self.study_id)

    def holds_only_failures(self) -> bool:
        """Whether trials of cells have failed, none is open, and none has finished."""
        return {state for state, count in self.counts().items() if count} == {"FAIL"}

    def foreign_note(self) -> str | None:
        """Return in a sentence which trials of another program nobody counts, None where there are none."""
        return foreign_note(self.name, state_counts(self.engine, self.study_id, of_cells=False))

    def machine_note(self) -> str | None:
        """Return in a sentence how boxes differ whose times count as comparable, None where they do not."""
        with reading(self.engine) as connection:
            return machine_note(machines(connection, self.study_id))

    def summary(self) -> StudySummary:
        return summary_of(self.engine, self.study_id, self.name, self.spec)

    def early_stops(self) -> EarlyStopSummary | None:
        """Return what stopping trials early did, None where the study lets all trials run to their end."""
        if self.spec.stopping.rule == "none":
            return None
        from budgettune.study.early_stop import summary_of_notes

        return summary_of_notes(list(stopping_notes(self.engine, self.study_id).values()))

    def verify(self) -> Verification:
        """Return which cells and repeats lack a complete trial, have more than one, or were given up."""
        return self._ledger().verify()

    def is_finished(self, *, by_last_look: bool = False) -> bool:
        """Whether every cell and repeat is complete or given up, or the study's total is used up and nothing runs.

        Never for a sampled study without an end. With `by_last_look` what `claim` with a lease, or `reconcile`, has
        just found open still counts as open: the answer may be no where it has become yes.
        """
        sampler, tally = self.spec.sampler, self._tally if by_last_look else None
        tally = tally or slots.tally(self.engine, self.study_id, LEASE_SECONDS)
        # What still waits when a study is spent never runs.
        if tally.running or (tally.waiting and not sampler.can_be_spent):
            return False
        if sampler.name != "grid" and sampler.trials is None and not self._is_spent():
            return False
        return self._ledger().left_count() == 0

    def _ledger(self) -> Ledger:
        is_spent = self._is_spent()
        with reading(self.engine) as connection:
            return Ledger(self.spec, slots.slot_rows(connection, self.study_id), is_spent=is_spent)

    def _read_draws(self) -> DrawLedger:
        return self._draws.read_on(self.engine)

    # --- sampled points ---------------------------------------------------------------------------------------------

    def _draw(self, around_draws: Around) -> Claim | None:
        """Reserve a row for the next point, let the sampler draw its params, and queue its repeats."""
        if self._nothing_came_open_since(self._all_drawn_at):
            return None
        tally = self._tally
        if not self._goes_on(around_draws):
            self._all_drawn_at = tally
            return None
        if (reserved := self._reserve()) is None:  # but somebody may have deleted rows, so once more with fresh eyes
            self._draws = Draws(self.spec, self.study_id)
            if (reserved := self._reserve()) is None:
                self._all_drawn_at = None if self._is_spent() else tally
                return None
        try:
            with translated(shown(self.engine.url)):
                params = self._draw_params(reserved, around_draws)
        except NotSearched as error:
            logger.warning("trial %d, which another program queued, is not run: %s", reserved.number, error)
            self.fail(reserved, error.failure_kind, str(error), keeps_params=False)
            return self._draw(around_draws)
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            is_no_fault = isinstance(error, (KeyboardInterrupt, StorageBusy))
            failure_kind = HANDED_BACK if is_no_fault else "sampler"
            self.fail(reserved, failure_kind, message, keeps_params=False)
            if isinstance(error, BudgetTuneError) or not isinstance(error, Exception):
                raise
            raise BudgetTuneError(
                f"study {self.name!r}: its sampler cannot draw a point ({message}): look with `budgettune study "
                f"export` for rows of another program, or make a new study"
            ) from error
        return None if params is None else replace(reserved, params=params)

    def _goes_on(self, around_draws: Around) -> bool:
        """Whether a further point is worth its seconds, as far as one can tell; keep what is expected of it."""
        price = self.spec.sampler.worth
        if price is None or self._read_draws().to_draw() is None or self._draws.is_enqueued:
            return True
        from budgettune.study import sampling

        with translated(shown(self.engine.url)), around_draws():
            prospect = sampling.prospect(self._sampler_storage, self.spec)
        self.storage.engine.dispose()
        if prospect is not None:
            keep_prospect(self.engine, self.study_id, prospect)
        return prospect is None or prospect.is_worth_it(price)

    def _reserve(self) -> Claim | None:
        self._read_draws()  # so that little is left to read while others wait for the study
        return transactions.reserve(self.engine, self.study_id, self._draws.next_point)

    def _draw_params(self, reserved: Claim, around_draws: Around) -> dict[str, Any] | None:
        from budgettune.study import sampling

        asked = sampling.asked_params(self.storage.get_trial(reserved.trial_id), self.spec)
        proposal = asked
        if not self.spec.is_complete(asked):
            with around_draws():
                proposal = sampling.propose(self._sampler_storage, self.spec, reserved.trial_id, asked)
        self.storage.engine.dispose()  # Optuna's connection: one more than the two that a worker may hold
        cell, repeats = reserved.slot.cell, range(1, self.spec.sampler.first_repeats)
        return transactions.fill_reserved(
            self.engine,
            self.study_id,
            reserved.trial_id,
            self._draws.choice(self.engine, proposal, reserved.number, stands=bool(asked)),
            [Queued(Slot(cell, repeat), attempt=1).row_keys(self.spec) for repeat in repeats],
        )

    @cached_property
    def _sampler_storage(self) -> BaseStorage:
        """Optuna's storage behind a cache of finished trials, so that a draw reads only what is new."""
        import optuna

        return optuna.storages.get_storage(self.storage)
