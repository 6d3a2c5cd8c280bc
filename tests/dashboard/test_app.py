"""The dashboard over real HTTP on a real database: who gets in, what they see, and what nobody may do."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import bcrypt
import optuna
import pytest
from waitress.trigger import trigger

from budgettune.dashboard import app as server
from budgettune.dashboard.app import (
    LARGEST_BODY_BYTES,
    PASSWORD_VARIABLE,
    PROXY_VARIABLE,
    find_passwords,
    listen,
    make_app,
    serve,
)
from budgettune.dashboard.passwords import Lockout, Passwords
from budgettune.errors import StorageError, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import open_storage
from budgettune.study.handle import create_study

METRICS = ["train_seconds", "test_accuracy"]
HTPASSWD = "$2y$05$6fMYN8hUQHsOW4EeeOZB0.h.xwmVuyTjFFNPgscVnb69ayg7rk6Y6"  # of pa:ss, as htpasswd -nB writes it


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Return a database with one finished study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/study.db"
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage, study_name="tiny", directions=["minimize", "maximize"])
    storage.set_study_system_attr(study._study_id, "study:metric_names", METRICS)  # what set_metric_names does
    scale = {"scale": optuna.distributions.FloatDistribution(1.0, 1.4)}
    study.add_trials(
        [
            optuna.trial.create_trial(params={"scale": 1.0 + n / 10}, distributions=scale, values=[n + 1.0, n / 4])
            for n in range(4)
        ]
    )
    storage.engine.dispose()
    return url


class Client:
    """Speaks HTTP to one server."""

    def __init__(self, address):
        self.host, self.port = address.removeprefix("http://").rstrip("/").split(":")

    def __call__(self, method, path, body=None, *, login=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if login is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        with contextlib.closing(http.client.HTTPConnection(self.host, int(self.port), timeout=20)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            self.headers = response.headers
            self.body = response.read()
            return response.status

    def json(self):
        return json.loads(self.body)

    def raw(self, request):
        """Send bytes as they are; return the status line."""
        with self.connected() as connection:
            with contextlib.suppress(OSError):  # it may hang up before it has all
                connection.sendall(request)
            return connection.makefile("rb").readline()

    def connected(self):
        return socket.create_connection((self.host, int(self.port)), timeout=20)


@contextlib.contextmanager
def served(app, **options):
    """Serve a WSGI callable on a free port; yield its client."""
    with listen(app, "127.0.0.1", 0, **options) as address:
        yield Client(address)


@pytest.fixture(scope="module")
def reader(url):
    """Return a client of a dashboard as it comes: on loopback, no password, read-only."""
    with served(make_app(url)) as client:
        yield client


def test_the_api_shows_the_study_its_front_and_its_metric_names(reader):
    assert reader("GET", "/api/studies") == 200
    (study,) = reader.json()["study_summaries"]
    assert study["study_name"] == "tiny"
    assert reader("GET", f"/api/studies/{study['study_id']}") == 200
    detail = reader.json()
    assert detail["objective_names"] == METRICS
    assert len(detail["trials"]) == len(detail["best_trials"]) == 4


def test_the_page_and_its_script_load(reader):
    assert reader("GET", "/") == 302
    assert reader("GET", "/dashboard/studies/1") == 200
    assert b"Optuna Dashboard" in reader.body
    assert "script-src 'self'" in reader.headers["Content-Security-Policy"]
    assert reader("GET", "/static/bundle.js", Accept_Encoding="gzip") == 200
    assert len(reader.body) > 100_000
    assert reader("HEAD", "/static/bundle.js") == 200
    assert reader.body == b""


def test_a_study_of_ours_has_its_objectives_named_and_a_note_with_its_file(sqlite_url):
    spec = StudySpec.from_toml(
        'name = "mine | \'yours\'"\n[search]\nscale = [1.0, 1.4]\n"train.optimizer" = ["adam", "sgd"]\n'
        '"train.lr" = { low = 1e-4, high = 1e-2, log = true }\n[sampler]\nname = "tpe"\ntrials = 3\n'
    )
    study = create_study(spec, sqlite_url)
    with served(make_app(sqlite_url)) as client:
        assert client("GET", f"/api/studies/{study.study_id}") == 200
        detail = client.json()
    assert detail["objective_names"] == METRICS
    note = detail["note"]["body"]
    assert "| `train.lr` | 0.0001 to 0.01, log scale |" in note
    assert "budgettune best 'mine | '" in note
    assert StudySpec.from_toml(note.partition("```toml\n")[2].partition("```")[0]) == spec


def test_new_trials_appear_while_it_runs(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    with served(make_app(url)) as client:
        assert client("GET", "/api/studies/1") == 200
        assert client.json()["trials"] == []
        study.add_trial(optuna.trial.create_trial(values=[1.0, 0.5]))
        time.sleep(2.1)  # optuna-dashboard itself looks again after two seconds
        assert client("GET", "/api/studies/1") == 200
        assert len(client.json()["trials"]) == 1
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies"),
        ("POST", "/api/studies/1/rename"),
        ("PUT", "/api/studies/1/note"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/studies/1/preference/x"),
    ],
)
def test_nothing_can_be_changed(reader, method, path):
    assert reader(method, path, b'{"study_name": "x"}', Content_Type="application/json") == 403
    assert "--allow-write" in reader.json()["reason"]
    assert reader("GET", "/api/studies") == 200
    assert len(reader.json()["study_summaries"]) == 1


@pytest.mark.parametrize(
    "path", ["/incompatible-rdb-schema", "/artifacts/1/aa", "/sql-profiler", "/api/llm/x", "/nothing", "/api/metaX"]
)
def test_pages_that_nobody_has_looked_at_stay_shut(reader, path):
    assert reader("GET", path) == 404


@pytest.mark.parametrize(
    "path", ["/static/../_app.py", "/static/%2e%2e/_app.py", "/static/..%2f_app.py", "/static/..%5c_app.py", "/a%00b"]
)
def test_paths_that_climb_are_refused(reader, path):
    assert reader("GET", path) == 400


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "BREW", "PROPFIND"])
def test_unknown_methods_are_refused(reader, method):
    assert reader(method, "/api/studies") == 405


def test_every_answer_carries_security_headers(reader):
    for path in ("/api/studies", "/dashboard", "/nothing", "/static/bundle.js"):
        reader("GET", path)
        assert reader.headers["X-Content-Type-Options"] == "nosniff"
        assert reader.headers["X-Frame-Options"] == "DENY"
        assert reader.headers["Content-Security-Policy"] or path.startswith("/static")
        assert "Python" not in reader.headers["Server"]
    reader("GET", "/api/studies")
    assert reader.headers["Cache-Control"] == "no-store"


def test_without_a_password_it_answers_to_local_names_only(reader):
    assert reader("GET", "/api/studies", Host="rebound.example") == 403
    assert reader("GET", "/api/studies", Host="localhost:9") == 200
    assert reader("GET", "/api/studies", Host="[::1]:9") == 200
    assert reader("GET", "/api/studies", Host="localhost.example") == 403


def test_oversized_and_shapeless_bodies_are_refused(reader):
    assert reader("POST", "/api/studies", b"x" * LARGEST_BODY_BYTES) == 403
    head = b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (LARGEST_BODY_BYTES // 2, b"x" * (LARGEST_BODY_BYTES // 2))
    assert b"403" in reader.raw(chunked + b"0\r\n\r\n")
    assert b"413" in reader.raw(chunked + 3 * chunk)
    assert b"400" in reader.raw(chunked + b"-1\r\n\r\n")
    assert b"501" in reader.raw(head + b"Transfer-Encoding: gzip\r\n\r\n")
    assert b"400" in reader.raw(head + b"Content-Length: -1\r\n\r\n")
    assert b"413" in reader.raw(head + b"Content-Length: %d\r\n\r\n" % (LARGEST_BODY_BYTES + 1))
    assert b"413" in reader.raw(head + b"Content-Length: 99999999999999999999\r\n\r\n")
    assert reader("GET", "/healthz") == 200


def test_garbage_does_not_stop_the_server(reader):
    assert b"431" in reader.raw(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
    assert b"200" not in reader.raw(b"\x16\x03\x01\x00\r\n\r\n")
    assert b"431" in reader.raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4_000 + b"\r\n")
    assert b"431" in reader.raw(b"GET / HTTP/1.1\r\nAuthorization: Basic " + b"A" * 100_000 + b"\r\n\r\n")
    assert reader("GET", "/healthz") == 200


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET /static/..%2fsecret HTTP/1.1\r\nHost: localhost\r\n\r\n", "no such path"),
        (b"BREW /api/studies HTTP/1.1\r\nHost: localhost\r\n\r\n", "unknown method"),
        (b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", "413"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", "431"),
        (b"\x16\x03\x01\x1b[31m\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nX: \x1b[31m\ny\r\n\r\n", "400"),
    ],
)
def test_an_attack_is_refused_and_logged_in_a_line_and_the_server_lives(reader, caplog, request_bytes, reason):
    status = reader.raw(request_bytes)
    assert b" 2" not in status
    (line,) = [record.getMessage() for record in caplog.records]
    assert "refused" in line
    assert reason in line
    assert line.isprintable()
    assert reader("GET", "/healthz") == 200


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"", b""), (b"", b"G"), (b"GET / HTTP/1.1\r\n", b"X"), (b"POST / HTTP/1.1\r\nContent-Length: 999\r\n\r\n", b"x")],
    ids=["silent", "first line", "header", "body"],
)
@pytest.mark.slow
def test_who_drips_bytes_is_cut_off(url, monkeypatch, first, drip):
    monkeypatch.setattr(server, "QUIET_SECONDS", 1)
    with served(make_app(url)) as client, client.connected() as connection:
        began = time.monotonic()
        connection.sendall(first)
        connection.settimeout(0.1)
        while time.monotonic() - began < 10:
            with contextlib.suppress(TimeoutError):
                connection.sendall(drip)
                if not connection.recv(1):
                    break
        assert time.monotonic() - began < 8
        assert client("GET", "/healthz") == 200


def test_those_who_drip_bytes_keep_no_others_waiting(reader):
    with contextlib.ExitStack() as stack:
        for _ in range(2 * server.THREADS):
            stack.enter_context(reader.connected()).sendall(b"GET /")
        assert reader("GET", "/healthz") == 200


def test_connections_are_bounded_and_given_back(url, monkeypatch, caplog):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    with served(make_app(url)) as client:
        idle = [client.connected() for _ in range(2)]
        time.sleep(0.2)
        with client.connected() as late:
            late.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            late.settimeout(0.5)
            with pytest.raises(TimeoutError):
                late.recv(1)
            for connection in idle:
                connection.close()
            late.settimeout(20)
            assert b"200" in late.makefile("rb").readline()
        assert client("GET", "/healthz") == 200
    assert {record.name for record in caplog.records} == {"waitress"}
    assert "connection limit" in caplog.text


def test_a_connection_serves_one_request_after_another(reader):
    with contextlib.closing(http.client.HTTPConnection(reader.host, int(reader.port), timeout=20)) as connection:
        for method, path, status in (
            ("GET", "/api/studies", 200),
            ("HEAD", "/nothing", 404),
            ("HEAD", "/healthz", 200),
            ("GET", "/healthz", 200),
        ):
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_a_page_that_fails_is_logged_and_its_visitor_learns_nothing(caplog):
    with served(lambda environ, start: 1 / 0) as client:
        assert client("GET", "/%1b%0asecret") == 500
        assert b"ZeroDivisionError" not in client.body
    # On a busy box waitress may warn at the end that a thread still runs.
    (record,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert record.getMessage().isprintable()
    assert record.exc_info[0] is ZeroDivisionError


def test_many_visitors_at_once_are_served(reader):
    statuses = []

    def visit():
        client = Client(f"http://{reader.host}:{reader.port}/")
        statuses.extend(client("GET", "/api/studies/1") for _ in range(5))

    threads = [threading.Thread(target=visit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 100


@pytest.fixture
def guarded(url):
    """Return a client of a dashboard that asks for a password, and its clock."""
    now = [0.0]
    passwords = Passwords.from_lines(["ada:correct horse", f"bob:{HTPASSWD}"], "test")
    app = make_app(url, passwords=passwords, lockout=Lockout(clock=lambda: now[0]))
    with served(app) as client:
        client.now = now
        yield client


def test_the_password_opens_the_dashboard_and_nothing_else_does(guarded):
    assert guarded("GET", "/api/studies") == 401
    assert guarded.headers["WWW-Authenticate"].startswith("Basic ")
    assert guarded("GET", "/dashboard") == 401
    assert guarded("GET", "/static/bundle.js") == 401
    assert guarded("GET", "/api/studies", login="ada:correct horse") == 200
    assert guarded("GET", "/api/studies", login="bob:pa:ss") == 200
    assert guarded("GET", "/api/studies", login="ada:pa:ss") == 401
    assert guarded("GET", "/api/studies", login="eve:correct horse") == 401


def test_health_needs_no_password_and_tells_nothing(guarded):
    assert guarded("GET", "/healthz") == 200
    assert guarded.json() == {"status": "ok"}


def test_a_password_does_not_make_it_writable(guarded):
    assert guarded("DELETE", "/api/studies/1", login="ada:correct horse") == 403


def test_with_a_password_any_host_name_will_do(guarded):
    assert guarded("GET", "/api/studies", login="ada:correct horse", Host="box.example:8080") == 200


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic YWRh", "Bearer abc", "Basic " + "A" * 6_000, "Basic /////w=="]
)
def test_broken_credentials_are_wrong_passwords(guarded, header):
    assert guarded("GET", "/api/studies", Authorization=header) in (401, 431)
    assert guarded("GET", "/api/studies", login="ada:correct horse") == 200


def test_a_huge_password_is_wrong_without_being_hashed(guarded, monkeypatch):
    monkeypatch.setattr(bcrypt, "checkpw", None)  # calling it would fail the request
    assert guarded("GET", "/api/studies", login=f"ada:{'x' * 5_000}") == 401
    assert guarded("GET", "/healthz") == 200


def test_an_empty_password_is_wrong(guarded):
    assert guarded("GET", "/api/studies", login="ada:") == 401
    assert guarded("GET", "/api/studies", login=":") == 401


def test_guessing_is_locked_out_even_for_the_right_password_and_opens_again(guarded):
    for _ in range(5):
        assert guarded("GET", "/api/studies", login="ada:guess") == 401
    assert guarded("GET", "/api/studies", login="ada:correct horse") == 429
    assert int(guarded.headers["Retry-After"]) >= 1
    assert guarded("GET", "/healthz") == 200
    guarded.now[0] += 2.0
    assert guarded("GET", "/api/studies", login="ada:correct horse") == 200


def test_visitors_behind_a_trusted_proxy_wait_each_for_themselves(url, caplog):
    app = make_app(url, passwords=Passwords.from_lines(["ada:one"], "test"))
    guesser, visitor = "203.0.113.9, 192.0.2.1", "192.0.2.2"  # only what the proxy adds at the end counts
    with served(app, trusted_proxy="127.0.0.1") as client:
        statuses = [client("GET", "/api/studies", login="ada:guess", X_Forwarded_For=guesser) for _ in range(6)]
        assert statuses == [401] * 5 + [429]
        assert client("GET", "/api/studies", login="ada:one", X_Forwarded_For=visitor) == 200
        assert client("GET", "/", login="ada:one", X_Forwarded_For=visitor, X_Forwarded_Proto="https") == 302
        assert client.headers["Location"].startswith("https://")
        for hostile in ('"\x1b[31m', "\x1b[31m"):
            assert client("GET", "/nothing", X_Forwarded_For=hostile) in (400, 401)
    assert "from 192.0.2.1:" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("proxy", [None, "192.0.2.7"])
def test_who_is_no_trusted_proxy_cannot_take_another_address(url, proxy):
    app = make_app(url, passwords=Passwords.from_lines(["ada:one"], "test"))
    with served(app, trusted_proxy=proxy) as client:
        for number in range(5):
            assert client("GET", "/api/studies", login="ada:guess", X_Forwarded_For=f"192.0.2.{number}") == 401
        assert client("GET", "/api/studies", login="ada:one", X_Forwarded_For="192.0.2.9") == 429


@pytest.mark.parametrize(("proxy", "status"), [("127.0.0.1", 200), ("*", 200), ("0:0::1", 429), (None, 429)])
def test_the_proxy_comes_from_an_argument_or_the_environment(url, monkeypatch, proxy, status):
    monkeypatch.setenv(PASSWORD_VARIABLE, "ada:one")
    monkeypatch.setenv(PROXY_VARIABLE, proxy or "")
    addresses, statuses = [], []

    def visit():
        client = Client(addresses[0])
        for number in range(5):
            client("GET", "/api/studies", login="ada:guess", X_Forwarded_For=f"192.0.2.{number}")
        statuses.append(client("GET", "/api/studies", login="ada:one", X_Forwarded_For="192.0.2.9"))

    serve(url, port=0, ready=addresses.append, until=visit)
    assert statuses == [status]


def test_a_proxy_that_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match=r"trusted proxy .* is not an address"):
        serve(url, port=0, trusted_proxy="proxy.example")


@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_ipv6_address_is_served_and_shown_in_brackets(url, host):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this box has no IPv6")
    with listen(make_app(url), host, 0) as address:
        port = int(address.removeprefix(f"http://[{host}]:").rstrip("/"))
        for name in ("::1", "127.0.0.1") if host == "::" else ("::1",):
            with contextlib.closing(http.client.HTTPConnection(name, port, timeout=20)) as connection:
                connection.request("GET", "/api/studies")
                assert connection.getresponse().status == 200


def test_a_trusted_proxy_that_comes_by_ipv4_to_an_ipv6_socket_is_known(url):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this box has no IPv6")
    visitors = []

    def app(environ, start):
        visitors.append(environ["REMOTE_ADDR"])
        start("204 No Content", [])
        return []

    with listen(app, "::", 0, trusted_proxy="127.0.0.1") as address:
        client = Client(address.replace("[::]", "127.0.0.1"))
        assert client("GET", "/", X_Forwarded_For="192.0.2.1") == 204
    assert visitors == ["192.0.2.1"]


def test_a_page_without_a_login_does_not_lock_anybody_out(guarded):
    for _ in range(8):
        assert guarded("GET", "/api/studies") == 401
    assert guarded("GET", "/api/studies", login="ada:correct horse") == 200


def test_writing_is_possible_when_asked_for_but_not_from_other_sites(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url, create=True)
    optuna.create_study(storage=storage, study_name="doomed")
    with served(make_app(url, allow_write=True)) as client:
        assert client("DELETE", "/api/studies/1", Origin="http://evil.example") == 403
        assert client("DELETE", "/api/studies/1", Sec_Fetch_Site="cross-site") == 403
        assert client("GET", "/api/studies") == 200
        assert len(client.json()["study_summaries"]) == 1
        own = f"http://{client.host}:{client.port}"
        assert client("DELETE", "/api/studies/1", b"{}", Origin=own, Content_Type="application/json") == 204
        assert client("GET", "/api/studies") == 200
        assert client.json()["study_summaries"] == []
    storage.engine.dispose()


def test_the_wait_doubles_ends_and_is_forgotten():
    now = [0.0]
    lockout = Lockout(free_tries=2, longest_wait_seconds=10.0, clock=lambda: now[0])
    waits = []
    for _ in range(7):
        lockout.failed("10.0.0.1")
        waits.append(lockout.wait_seconds("10.0.0.1"))
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert lockout.wait_seconds("10.0.0.2") == 0.0
    now[0] = 30.0
    lockout.failed("10.0.0.1")
    assert lockout.wait_seconds("10.0.0.1") == 0.0


def test_guessers_cannot_fill_the_memory_and_an_ipv6_network_counts_as_one():
    lockout = Lockout(free_tries=2, most_addresses=100)
    for number in range(1_000):
        lockout.failed(f"10.0.{number // 250}.{number % 250}")
    assert len(lockout) == 100
    lockout.failed("2001:db8::1")
    lockout.failed("2001:db8::ffff")
    assert lockout.wait_seconds("2001:db8::2") > 0
    lockout.failed("::ffff:192.0.2.1")
    lockout.failed("192.0.2.1")
    assert lockout.wait_seconds("192.0.2.1") > 0


@pytest.mark.parametrize("prefix", ["$2y$", "$2b$", "$2a$"])
def test_a_line_of_htpasswd_lets_its_user_in(prefix):
    passwords = Passwords.from_lines([f"ada:{HTPASSWD.replace('$2y$', prefix)}", ""], "test")
    assert passwords.check("ada", "pa:ss")
    for wrong in ("pa:s", "pa:sss", "", HTPASSWD, "pa:ss" + "x" * 68, "é"):
        assert not passwords.check("ada", wrong)
    assert not passwords.check("eve", "pa:ss")


def test_a_password_as_long_as_bcrypt_looks_is_right_and_a_longer_guess_is_wrong():
    passwords = Passwords.from_lines([f"ada:{'x' * 72}"], "test")
    assert passwords.check("ada", "x" * 72)
    assert not passwords.check("ada", "x" * 73)


@pytest.mark.parametrize("lines", [["ada:one"], ["ada:one", f"bob:{HTPASSWD}"]], ids=["plain", "with a hash"])
def test_an_unknown_name_costs_as_much_hashing_as_a_known_one(monkeypatch, lines):
    passwords = Passwords.from_lines(lines, "test")
    costs, checkpw = [], bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda guess, kept: costs.append(kept[4:6]) or checkpw(guess, kept))
    for name in ("ada", "bob", "eve"):
        assert not passwords.check(name, "guess")
    assert len(costs) == 3
    assert len(set(costs)) == 1


def test_a_login_that_was_right_is_not_hashed_again(monkeypatch):
    passwords = Passwords.from_lines(["ada:one"], "test")
    assert passwords.check("ada", "one")
    monkeypatch.setattr(bcrypt, "checkpw", None)
    assert passwords.check("ada", "one")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["ada"], "line 1"),
        (["# nobody", "", ":secret"], "line 3"),
        (["ada:secret", "ada:other"], "twice"),
        ([], "no user"),
        (["ada:" + HTPASSWD[:-1] + "!"], "line 1: the hash is damaged"),
        (["ada:" + HTPASSWD + "secret"], "htpasswd -nB"),
        (["ada:" + HTPASSWD.replace("$05$", "$31$")], "htpasswd -nB"),  # a login would take days
        (["ada:scrypt$16384$8$1$secret$secret"], "htpasswd -nB"),
        (["ada:$apr1$secret$secret"], "htpasswd -nB"),
        (["ada:{SHA}secret"], "htpasswd -nB"),
        (["ada:" + "secret" * 13], "line 1: the password is over 72 bytes"),
    ],
)
def test_a_password_file_that_cannot_work_is_refused_by_line_without_its_secret(tmp_path, lines, reason):
    file = tmp_path / "passwords"
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=reason) as caught:
        find_passwords(file)
    assert "secret" not in str(caught.value)


def test_a_missing_password_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        find_passwords(tmp_path / "none")


def test_the_password_can_come_from_the_environment(monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    assert find_passwords(None) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "ada:one")
    assert find_passwords(None).check("ada", "one")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_an_open_address_without_a_password_is_refused(url, host, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="--password-file"):
        serve(url, host=host, port=0)


def test_a_missing_database_and_a_taken_port_say_what_to_do(tmp_path, url):
    with pytest.raises(StorageError, match="study create"):
        serve(f"sqlite:///{tmp_path}/none.db", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="--port"):
        serve(url, port=taken.getsockname()[1])
    with pytest.raises(UsageError, match="--port"):
        serve(url, port=99_999)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(url, number, status):
    command = [sys.executable, "-m", "budgettune", "dashboard", "--port", "0", "--storage", url]
    environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stderr.readline()
        client = Client(line.split(" on ")[1].split()[0])
        assert client("GET", "/api/studies") == 200
        with client.connected() as idle:
            idle.sendall(b"GET /")
            process.send_signal(number)
            assert process.wait(timeout=10) == status
        assert process.stderr.read() == ""


def test_a_visitor_who_takes_nothing_keeps_no_thread_when_the_server_ends():
    def large(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x" * 2**22] * 8

    before = set(threading.enumerate())
    with listen(large, "127.0.0.1", 0) as address:
        visitor = socket.create_connection(("127.0.0.1", urlsplit(address).port))
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert visitor.recv(1)
        time.sleep(0.5)  # until what a connection holds is full, and its thread waits
    visitor.close()
    assert set(threading.enumerate()) <= before


def test_a_server_that_is_woken_by_a_thread_while_it_ends_ends_well(monkeypatch):
    pull = trigger._physical_pull

    def woken_before(own):
        pull(own)
        time.sleep(0.1)  # in which the server does all that it was to do
        pull(own)

    with listen(lambda environ, start_response: [], "127.0.0.1", 0):
        monkeypatch.setattr(trigger, "_physical_pull", woken_before)
