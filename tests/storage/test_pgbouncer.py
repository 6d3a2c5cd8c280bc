"""Through a real PgBouncer in transaction mode: all that a study needs, by few connections to the server."""

import configparser
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from wsgiref.util import setup_testing_defaults

import psycopg
import pytest
import sqlalchemy as sa

from benchmarks.support import local_pgbouncer
from benchmarks.support.noop_workers import connections_beside
from budgettune import api
from budgettune.dashboard.app import make_app
from budgettune.errors import StorageBusy, StorageError
from budgettune.spec.study_spec import load_spec
from budgettune.storage import patience
from budgettune.storage.connection import open_engine, open_storage, reading, schema_lock, writing
from budgettune.storage.studies import find_study
from budgettune.storage.url import parse_url
from budgettune.study.handle import create_study, delete_study, load_study
from budgettune.study.summary import list_studies
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag
from budgettune.worker.watchdog import Heartbeat
from tests.study.test_processes import EIGHTY, claim_all, create_at_once, run_at_once
from tests.support.processes import wait_until
from tests.support.studies import grid, let_lease_run_out, lost_claim, records, result, sampled, work_off

pytestmark = [
    pytest.mark.pgbouncer,
    pytest.mark.skipif(local_pgbouncer.program() is None, reason="pgbouncer is not installed"),
]
TINY = ["train.epochs=1", "train.batch_size=256", "pruning.strategy=random", "clock.warmup_steps=1"]
DOCUMENTED = Path(__file__).parents[2] / "docs" / "many-boxes.md"


@pytest.fixture
def pooled(postgresql_url):
    """Return what starts a PgBouncer before an empty database, and returns the database's URL through it."""
    started = []

    def start(users=None, **settings):
        context = local_pgbouncer.pooled(postgresql_url, users=users, settings={**local_pgbouncer.CONFIG, **settings})
        started.append(context)
        return context.__enter__()

    yield start
    for context in started:
        context.__exit__(None, None, None)


@pytest.fixture
def url(pooled):
    return pooled()


def of_one(url, number):
    """Return the same URL, with an engine of its own in this process."""
    return f"{url}?application_name=worker-{number}"


def test_four_processes_make_tables_and_one_study_at_once(url):
    assert len(set(run_at_once(create_at_once, url, 4))) == 1
    with load_study(url) as study:
        assert study.counts()["WAITING"] == 4


def test_many_who_wait_for_tables_leave_the_connections_to_the_one_who_makes_them(pooled):
    url, made, wrong = pooled(default_pool_size="2"), [], []

    def create(number):
        try:
            made.append(create_study(grid(), of_one(url, number), skip_if_exists=True).study_id)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert made == made[:1] * 12


def test_processes_share_a_grid_and_run_every_cell_once(url):
    with create_study(grid(search=EIGHTY), url) as study:
        shares = run_at_once(claim_all, url, 3)
        assert sorted(cell for share in shares for cell in share) == list(range(80))
        assert study.verify().whole


def test_processes_share_a_sampled_study_without_overshoot_or_repetition(url):
    with create_study(sampled("tpe", trials=15), url) as study:
        shares = run_at_once(claim_all, url, 2)
        assert sorted(cell for share in shares for cell in share) == list(range(15))
        assert len({tuple(record.params.items()) for record in records(study)}) == 15
        assert study.verify().whole


def test_sixty_workers_with_connections_of_their_own_share_two_of_the_server(postgresql_url, pooled):
    url, wrong, cells = pooled(default_pool_size="2"), [], []
    create_study(grid(search=EIGHTY, repeats=2), url).close()

    def work(number):
        try:
            with load_study(of_one(url, number)) as study:
                while (claim := study.claim()) is not None:
                    with Heartbeat(study, claim, 3600):
                        assert study.complete(claim, result())
                    cells.append(claim.slot)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(60)]
    most = 0
    with psycopg.connect(postgresql_url, autocommit=True) as own:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, connections_beside(own))
    assert wrong == []
    assert len(cells) == len(set(cells)) == 160
    assert most <= 2
    assert load_study(url).verify().whole


def test_twelve_threads_draw_the_points_of_a_sampled_study_once(pooled):
    url, wrong, cells = pooled(default_pool_size="2"), [], []
    create_study(sampled("random", trials=30), url).close()

    def work(number):
        try:
            with load_study(of_one(url, number)) as study:
                while (claim := study.claim()) is not None:
                    assert study.complete(claim, result())
                    cells.append(claim.cell)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(cells) == list(range(30))
    assert load_study(url).verify().whole


def test_nothing_asks_for_a_second_connection_while_it_has_one(postgresql_url, pooled, tmp_path):
    """Hundreds that held one each and waited for another would wait for ever."""
    open_engine(postgresql_url, create=True)
    url = pooled(default_pool_size="1", query_wait_timeout="3")
    tiny = ["train.epochs=2", "train.batch_size=256", "pruning.strategy=random", "clock.warmup_steps=1"]
    digits = load_spec("digits").with_overrides(
        [*tiny, "search={prune_rate = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]}", "stopping.rule=dominance"]
    )
    create_study(digits, url).close()
    assert run_worker(url, None, WorkerOptions(device="cpu")).completed == 6
    for study in (create_study(grid("grid"), url), create_study(sampled("tpe", trials=3), url)):
        study.fail(study.claim(), "error", "broken")
        lost_claim(study)
        work_off(study)
        assert study.verify().whole
        assert study.retry() == 0
        assert study.is_of(find_study(study.engine, study.name))
        assert study.summary()
        assert study.machine_note() is None
        assert study.early_stops() is None
    assert len(list_studies(url)) == 3
    assert api.pareto_front("digits", storage=url)
    assert api.recommend("digits", "1h", storage=url)
    api.write_report("digits", tmp_path / "report.html", storage=url)
    storage = open_storage(url, read_only=True)
    assert len(storage.get_all_studies()) == 3
    delete_study(url, "grid")


def test_leases_run_out_and_late_results_count_through_it(url):
    with create_study(grid(max_attempts=9), url) as study:
        claim = study.claim()
        assert study.heartbeat(claim.trial_id)
        assert study.reconcile().lost == 0
        let_lease_run_out(study)
        assert study.reconcile().lost == 1
        assert not study.heartbeat(claim.trial_id)
        assert study.complete(claim, result()) is True
        lost_claim(study)
        study.fail(study.claim(), "error", "broken")
        study.hand_back(study.claim())
        work_off(study)
        assert study.verify().whole
        with schema_lock(parse_url(url)):
            pass


def test_a_worker_trains_and_answers_and_pages_are_read_through_it(url):
    create_study(load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"]), url).close()
    assert run_worker(url, None, WorkerOptions(device="cpu", heartbeat_seconds=0.05)).completed == 1
    assert api.best_under_budget("digits", "1h", storage=url)[0].number == 0
    assert [each.name for each in list_studies(url)] == ["digits"]
    environ, status = {"PATH_INFO": "/api/studies"}, []
    setup_testing_defaults(environ)
    environ["HTTP_HOST"] = "127.0.0.1"
    page = b"".join(make_app(url)(environ, lambda code, headers, *_: status.append(code)))
    assert status == ["200 OK"]
    assert b"digits" in page


def test_a_session_keeps_no_setting_of_ours_for_the_next_client(postgresql_url, pooled):
    url = pooled(default_pool_size="1")
    open_engine(postgresql_url, create=True)
    names = ("TIME ZONE", "lock_timeout", "idle_in_transaction_session_timeout", "default_transaction_read_only")
    with psycopg.connect(postgresql_url) as plain:
        usual = [plain.execute(f"SHOW {name}").fetchone() for name in names]
    storage = open_storage(url, read_only=True)
    assert storage.get_all_studies() == []
    with reading(open_engine(url)) as connection:
        assert connection.execute(sa.text("SHOW lock_timeout")).scalar() == "1min"
    with psycopg.connect(url) as other:
        assert [other.execute(f"SHOW {name}").fetchone() for name in names] == usual
    with writing(open_engine(url)) as connection:  # a transaction for reading alone was before it in the session
        connection.execute(sa.text("DELETE FROM studies"))
    storage.engine.dispose()


def test_settings_of_other_clients_reach_no_transaction_of_ours(postgresql_url, pooled):
    url = pooled(default_pool_size="1")
    open_engine(postgresql_url, create=True)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SET lock_timeout = '1ms'")
        other.execute("SET timezone = 'Asia/Tokyo'")
    with reading(open_engine(url)) as connection:
        assert connection.execute(sa.text("SHOW lock_timeout")).scalar() == "1min"
        assert connection.execute(sa.text("SHOW TIME ZONE")).scalar() == "UTC"


def test_no_statement_is_prepared_by_name(postgresql_url, pooled):
    url = pooled(default_pool_size="1")
    open_engine(postgresql_url, create=True)
    with create_study(grid(), url) as study:
        for _ in range(10):
            study.counts()
    with psycopg.connect(url, prepare_threshold=None) as other:
        assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_pooler_that_takes_no_more_clients_is_waited_for(postgresql_url, pooled, monkeypatch, caplog):
    url = pooled(max_client_conn="1")
    create_study(grid(), postgresql_url).close()
    other = psycopg.connect(url)
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: other.close()))
    assert api.load_study(storage=url).counts()["WAITING"] == 4
    assert "raise the limits of the pooler" in caplog.text


def test_a_worker_waits_from_its_start_on_for_a_full_server_behind_the_pooler(postgresql_url, pooled, caplog):
    """The pooler says to the first who ask that the server is full, and lets the next ones wait without an answer."""
    create_study(load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"]), postgresql_url).close()
    role = f"late_{postgresql_url.partition('test_')[2][:12]}"
    with psycopg.connect(postgresql_url, autocommit=True) as own:
        own.execute(f"CREATE ROLE {role} LOGIN SUPERUSER CONNECTION LIMIT 0")
        own.execute(f"ALTER ROLE {role} NOSUPERUSER; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        own.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        url = pooled(users={role: "secret"}, auth_type="scram-sha-256", server_login_retry="1")
        url = url.replace("postgres@", f"{role}:secret@") + "?connect_timeout=2"

        class Relieved(StopFlag):
            waits = 0

            def wait(self, seconds=None):
                self.waits += 1
                if self.waits == 3:
                    own.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
                return super().wait(seconds)

        assert run_worker(url, None, WorkerOptions(device="cpu"), stop=Relieved()).completed == 1
        own.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert "the server has no connection left for this user" in caplog.text


def test_a_pooler_whose_connections_are_all_in_use_for_too_long_is_busy(pooled):
    url = pooled(default_pool_size="1", query_wait_timeout="1")
    with psycopg.connect(url) as other:
        other.execute("SELECT 1")
        with pytest.raises(StorageBusy, match="raise the limits of the pooler"):
            open_engine(url)
    wait_until(lambda: psycopg.connect(url).close() is None)


def test_the_documented_file_works_with_users_and_passwords(postgresql_url, pooled):
    text = DOCUMENTED.read_text(encoding="utf-8")
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(re.search(r"```ini\n(.*?)```", text, re.DOTALL)[1])
    role = f"anna_{postgresql_url.partition('test_')[2][:12]}"
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(re.search(r"```sql\n(.*?)```", text, re.DOTALL)[1].replace("anna", role))
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    settings = dict(parser["pgbouncer"])
    assert settings["pool_mode"] == "transaction"
    url = pooled(users={role: "secret"}, **settings).replace("postgres@", f"{role}:secret@")
    with create_study(grid(), url) as study:
        work_off(study)
        assert study.verify().whole
    with pytest.raises(StorageError, match="wrong user or password"):
        open_engine(url.replace("secret", "public"))
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
