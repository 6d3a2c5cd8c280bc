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

import optuna
import pytest

from budgettune.dashboard import webserver
from budgettune.dashboard.access import LARGEST_BODY_BYTES
from budgettune.dashboard.app import PASSWORD_VARIABLE, find_passwords, make_app, serve
from budgettune.dashboard.passwords import HashedPassword, Lockout, Passwords, hash_password
from budgettune.dashboard.webserver import listen
from budgettune.errors import StorageError, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import open_storage
from budgettune.study.handle import create_study

METRICS = ["train_seconds", "test_accuracy"]


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
            self.headers = dict(response.getheaders())
            self.body = response.read()
            return response.status

    def json(self):
        return json.loads(self.body)

    def raw(self, *parts, pause=0.0):
        """Send bytes as they are; return the status line."""
        with socket.create_connection((self.host, int(self.port)), timeout=20) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            return connection.makefile("rb").readline()


@contextlib.contextmanager
def served(app):
    """Serve a WSGI callable on a free port in a thread; yield its client."""
    with listen(app, "127.0.0.1", 0) as (server, address):
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Client(address)
        finally:
            server.shutdown()
            thread.join()


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
    assert reader("POST", "/api/studies", b"x" * (LARGEST_BODY_BYTES + 1)) == 413
    head = b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\n"
    assert b"411" in reader.raw(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b"400" in reader.raw(head + b"Content-Length: -1\r\n\r\n")
    assert b"413" in reader.raw(head + b"Content-Length: 99999999999999999999\r\n\r\n")
    assert reader("GET", "/healthz") == 200


def test_garbage_does_not_stop_the_server(reader):
    assert b"414" in reader.raw(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
    assert b"200" not in reader.raw(b"\x16\x03\x01\x00\r\n\r\n")
    assert b"431" in reader.raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
    assert b"431" in reader.raw(b"GET / HTTP/1.1\r\nAuthorization: Basic " + b"A" * 100_000 + b"\r\n\r\n")
    assert reader("GET", "/healthz") == 200


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET /static/..%2fsecret HTTP/1.1\r\nHost: localhost\r\n\r\n", "no such path"),
        (b"BREW /api/studies HTTP/1.1\r\nHost: localhost\r\n\r\n", "unknown method"),
        (b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", "over"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", "414"),
        (b"\x16\x03\x01\x1b[31m\r\n\r\n", "400"),
    ],
)
def test_an_attack_is_refused_and_logged_in_a_line_and_the_server_lives(reader, caplog, request_bytes, reason):
    status = reader.raw(request_bytes)
    assert b" 2" not in status
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("budgettune")]
    assert "refused" in line
    assert reason in line
    assert line.isprintable()
    assert reader("GET", "/healthz") == 200


def test_who_drips_bytes_is_cut_off(url, monkeypatch):
    monkeypatch.setattr(webserver, "REQUEST_SECONDS", 0.3)
    with served(make_app(url)) as client, socket.create_connection((client.host, int(client.port))) as connection:
        connection.settimeout(5)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 4:
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 3
        assert client("GET", "/healthz") == 200


def test_connections_are_bounded_and_given_back(url, monkeypatch):
    monkeypatch.setattr(webserver, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(webserver, "REQUEST_SECONDS", 0.5)
    with served(make_app(url)) as client:
        idle = [socket.create_connection((client.host, int(client.port))) for _ in range(2)]
        time.sleep(0.1)
        with pytest.raises((http.client.HTTPException, OSError)):
            client("GET", "/healthz")
        for connection in idle:
            connection.close()
        time.sleep(0.3)
        assert client("GET", "/healthz") == 200


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
    passwords = Passwords.from_lines(["ada:correct horse", f"bob:{hash_password('pa:ss')}"], "test")
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
    monkeypatch.setattr(Passwords, "_matches", None)  # calling it would fail the request
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


def test_a_hash_can_be_read_back_and_hides_the_password():
    text = hash_password("correct horse")
    assert "horse" not in text
    assert text != hash_password("correct horse")
    passwords = Passwords.from_lines([f"ada:{text}"], "test")
    assert passwords.check("ada", "correct horse")
    assert not passwords.check("ada", "wrong horse")


def test_an_unknown_name_costs_as_much_hashing_as_a_known_one(monkeypatch):
    passwords = Passwords.from_lines(["ada:one", f"bob:{hash_password('two')}"], "test")
    costs = []
    cost = type(HashedPassword.of("x").cost)
    original = cost.digest
    monkeypatch.setattr(cost, "digest", lambda self, *rest: costs.append(self) or original(self, *rest))
    for name in ("ada", "bob", "eve"):
        assert not passwords.check(name, "guess")
    assert len(costs) == 3
    assert len(set(costs)) == 1


def test_a_login_that_was_right_is_not_hashed_again(monkeypatch):
    passwords = Passwords.from_lines(["ada:one"], "test")
    assert passwords.check("ada", "one")
    monkeypatch.setattr(Passwords, "_matches", None)
    assert passwords.check("ada", "one")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["ada"], "line 1"),
        (["# nobody", "", ":secret"], "line 3"),
        (["ada:secret", "ada:other"], "twice"),
        ([], "no user"),
        (["ada:scrypt$broken"], "damaged"),
        (["ada:scrypt$3$8$1$AAAA$AAAA"], "damaged"),
        (["ada:scrypt$1099511627776$8$1$AAAA$" + base64.b64encode(bytes(32)).decode()], "damaged"),
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(url, number):
    script = f"import sys; from budgettune.dashboard.app import serve; sys.exit(serve({url!r}, port=0))"
    environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stderr.readline()
        client = Client(line.split(" on ")[1].split()[0])
        assert client("GET", "/api/studies") == 200
        process.send_signal(number)
        assert process.wait(timeout=10) == number
        assert process.stderr.read() == ""
