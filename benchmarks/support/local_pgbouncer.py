"""A PgBouncer of our own before a PostgreSQL server, for tests and benchmarks: Debian's package `pgbouncer`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

START_SECONDS = 30.0
PORTS = 5  # another program may take one that was free

CONFIG: Mapping[str, str] = {"pool_mode": "transaction", "default_pool_size": "8", "max_client_conn": "5000"}


def program() -> str | None:
    """Return the path of the installed `pgbouncer`, None where there is none."""
    return shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))


@contextmanager
def pooled(
    server_url: str, *, users: Mapping[str, str] | None = None, settings: Mapping[str, str] = CONFIG
) -> Iterator[str]:
    """Start a PgBouncer before a server, yield the URL of the same database through it, and stop it.

    Args:
        server_url: of a local server, by its socket's folder.
        users: who may come in, with their passwords; None for everybody, as the user of the server's URL.
        settings: of the section `[pgbouncer]`; it listens on this box alone, whatever they say.

    Raises:
        FileNotFoundError: where it is not installed.
        RuntimeError: where it does not start, with what it said.
    """
    executable = program()
    if executable is None:
        raise FileNotFoundError("pgbouncer is not installed")
    as_other = []
    if os.geteuid() == 0:  # which it refuses to run as; the server's own user may use the socket
        owner = _socket_folder(server_url).stat()
        as_other = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="budgettune-pgbouncer-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for attempt in range(PORTS):
            port = _free_port()
            file, log, userlist = folder / "pgbouncer.ini", folder / f"log-{attempt}", folder / "userlist.txt"
            userlist.write_text("".join(f'"{name}" "{password}"\n' for name, password in (users or {}).items()))
            own = {"listen_addr": "127.0.0.1", "listen_port": str(port), "unix_socket_dir": ""}
            own |= {"auth_type": "any"} if users is None else {"auth_file": str(userlist)}
            file.write_text(_config(server_url, {**settings, **own}, forces_user=users is None))
            with log.open("wb") as output:
                process = subprocess.Popen([*as_other, executable, str(file)], stdout=output, stderr=output)
            try:
                if _answers(process, port):
                    yield _through(server_url, port)
                    return
            finally:
                process.terminate()
                process.wait(10)
        raise RuntimeError(f"pgbouncer does not start: {log.read_text(errors='replace')[-1_000:]}")


def _config(server_url: str, settings: Mapping[str, str], *, forces_user: bool) -> str:
    parts = urlsplit(server_url)
    user = f" user={parts.username}" if forces_user else ""
    server = f"* = host={_socket_folder(server_url)} port={parts.port or 5432}{user}"
    return "\n".join(["[databases]", server, "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())])


def _socket_folder(server_url: str) -> Path:
    return Path(parse_qs(urlsplit(server_url).query)["host"][0])


def _through(server_url: str, port: int) -> str:
    parts = urlsplit(server_url)
    return f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it takes connections; false where it has ended instead."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process.poll() is None
        except OSError:
            time.sleep(0.05)
    return False
