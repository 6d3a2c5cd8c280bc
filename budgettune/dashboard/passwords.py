"""Who may come in: users with plain or bcrypt passwords, and a lock for those who keep guessing."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import bcrypt

from budgettune.errors import UsageError
from budgettune.files import read_text

BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}")
"""A hash as htpasswd writes it, with its cost: each step of it doubles the time of a check."""
ANY_HASH = re.compile(r"\$\w+\$|\{SHA\}|scrypt\$")
PLAIN_COST = 10
HOW_TO_WRITE = "write user:password, or the line that `htpasswd -nB user` makes"


class Passwords:
    """Users and their passwords.

    Checking costs the same for a known and an unknown name. A login that was right once is remembered by a keyed hash,
    so that a page that polls does not pay for bcrypt each time.

    Args:
        users: password of each by name, plain or hashed.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        costs = [int(match[1]) for password in users.values() if (match := BCRYPT.fullmatch(password))]
        cost = max(costs, default=PLAIN_COST)
        self._hashes = {
            name: password.encode() if BCRYPT.fullmatch(password) else _hashed(password, cost)
            for name, password in users.items()
        }
        self._decoy = _hashed(secrets.token_hex(16), cost)
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()  # never longer than the users: only right passwords enter
        # One at a time: a crowd of guesses would take the cores from the training beside us.
        self._turn = threading.Lock()

    @classmethod
    def from_lines(cls, lines: Iterable[str], source: str) -> Self:
        """Return the users of `user:password` lines; empty lines and those that begin with # are left out.

        Raises:
            UsageError: naming the line, never its text, where one is malformed or a name comes twice.
        """
        users: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip() or line.startswith("#"):
                continue
            name, _, password = line.partition(":")
            if fault := _fault(name, password, users):
                raise UsageError(f"{source}, line {number}: {fault}")
            users[name] = password
        if not users:
            raise UsageError(f"{source}: no user in it: {HOW_TO_WRITE}")
        return cls(users)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Return the users of a file, or raise UsageError."""
        try:
            text = read_text(path)
        except OSError as error:
            raise UsageError(f"password file {path}: {error.strerror}: give a file with user:password lines") from None
        return cls.from_lines(text.splitlines(), f"password file {path}")

    def check(self, user: str, password: str) -> bool:
        """Return whether the user has that password."""
        mark = hmac.digest(self._key, f"{user}:{password}".encode(), "sha256")
        if mark in self._known:
            return True
        try:
            with self._turn:
                right = bcrypt.checkpw(password.encode(), self._hashes.get(user, self._decoy))
        except ValueError:  # it is longer than bcrypt looks
            return False
        if right:
            self._known.add(mark)
        return right


def _fault(name: str, password: str, users: Mapping[str, str]) -> str | None:
    """Return what is wrong with a line, without its secret."""
    if not name or not password:
        return f"no user and password: {HOW_TO_WRITE}"
    if name in users:
        return "the same user twice: keep one line"
    if ANY_HASH.match(password) and not BCRYPT.fullmatch(password):
        return "the hash is damaged, or not one of bcrypt: make a new line with `htpasswd -nB user`"
    if len(password.encode()) > 72:
        return "the password is over 72 bytes, and bcrypt looks no further: choose a shorter one"
    return None


def _hashed(password: str, cost: int) -> bytes:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost))


@dataclass(eq=False)
class Lockout:
    """Makes those who guess wait: longer with each wrong password from the same address, and never for ever.

    A right password does not wipe the slate: who has an account could otherwise guess another's in turn with it.
    """

    free_tries: int = 5  # wrong passwords without a wait
    longest_wait_seconds: float = 900.0  # where the doubling ends; after a quiet time as long, all is forgotten
    most_addresses: int = 10_000  # to keep in mind; beyond it the one that was quiet for longest is forgotten
    clock: Callable[[], float] = time.monotonic
    # By address: how many, when the last, and when it may try again.
    _failures: OrderedDict[str, tuple[int, float, float]] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def wait_seconds(self, address: str) -> float:
        """Return how long this address has to wait before its next try counts; 0 where it need not."""
        with self._lock:
            _, _, opens = self._failures.get(_network(address), (0, 0.0, 0.0))
        return max(opens - self.clock(), 0.0)

    def failed(self, address: str) -> None:
        """Note a wrong password."""
        now, network = self.clock(), _network(address)
        with self._lock:
            count, last, _ = self._failures.pop(network, (0, now, 0.0))
            count = 1 if now - last > self.longest_wait_seconds else count + 1
            # The exponent is bounded before the power is taken: counts grow for as long as somebody guesses.
            wait = 2.0 ** min(count - self.free_tries, 30) if count >= self.free_tries else 0.0
            self._failures[network] = (count, now, now + min(wait, self.longest_wait_seconds))
            while len(self._failures) > self.most_addresses:
                self._failures.popitem(last=False)

    def __len__(self) -> int:
        return len(self._failures)


def _network(address: str) -> str:
    """Return what counts as one address: an IPv6 user has a whole /64 of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
