"""Who may come in: names and passwords, plain or hashed, and a lock for those who keep guessing.

A hash is written `scrypt$N$r$p$SALT$DIGEST`, salt and digest in base64 (scrypt: RFC 7914).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from budgettune.errors import UsageError

_SCHEME = "scrypt"
_DIGEST_BYTES = 32
_MOST_MEMORY_BYTES = 256 * 2**20
HOW_TO_WRITE = "write user:password, the password plain or as `budgettune.dashboard.passwords.hash_password` returns it"


@dataclass(frozen=True)
class Cost:
    """What one scrypt takes: 16 MiB and some 50 ms by default."""

    n: int = 2**14
    r: int = 8
    p: int = 1

    def digest(self, password: str, salt: bytes) -> bytes:
        """Return the hash of a password."""
        return hashlib.scrypt(
            password.encode(),
            salt=salt,
            n=self.n,
            r=self.r,
            p=self.p,
            maxmem=2 * _MOST_MEMORY_BYTES,
            dklen=_DIGEST_BYTES,
        )

    def is_sane(self) -> bool:
        """Whether scrypt takes these numbers, and a login stays within a fraction of a gigabyte."""
        power_of_two = self.n > 1 and self.n & (self.n - 1) == 0
        return power_of_two and self.r > 0 and 0 < self.p <= 16 and 128 * self.n * self.r <= _MOST_MEMORY_BYTES


@dataclass(frozen=True)
class HashedPassword:
    """A password that cannot be read back."""

    cost: Cost
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> Self:
        """Return the hash of a plain password under a new salt."""
        cost, salt = Cost(), secrets.token_bytes(16)
        return cls(cost, salt, cost.digest(password, salt))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` wrote, or raise ValueError."""
        scheme, n, r, p, salt, digest = text.split("$")
        parsed = cls(Cost(int(n), int(r), int(p)), _decoded(salt), _decoded(digest))
        if scheme != _SCHEME or not parsed.cost.is_sane() or not parsed.salt or len(parsed.digest) != _DIGEST_BYTES:
            raise ValueError("not a hash that hash_password wrote")
        return parsed

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        return f"{_SCHEME}${self.cost.n}${self.cost.r}${self.cost.p}${salt}${digest}"


def hash_password(password: str) -> str:
    """Return the text that stands for a password in a password file."""
    return str(HashedPassword.of(password))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


class Passwords:
    """Users and their passwords.

    Checking costs the same for a known and an unknown name. A login that was right once is remembered by a keyed hash,
    so that a page that polls does not pay for scrypt each time.
    """

    def __init__(self, users: dict[str, HashedPassword]) -> None:
        self._users = users
        self._costs = sorted({user.cost for user in users.values()}, key=lambda cost: (cost.n, cost.r, cost.p))
        self._decoy_salt = secrets.token_bytes(16)
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()  # never longer than the users: only right passwords enter
        # One at a time: a crowd of guesses would take gigabytes, and the cores from the training beside us.
        self._turn = threading.Lock()

    @classmethod
    def from_lines(cls, lines: Iterable[str], source: str) -> Self:
        """Return the users of `user:password` lines; empty lines and those that begin with # are left out.

        Raises:
            UsageError: naming the line, never its text, where one is malformed or a name comes twice.
        """
        users: dict[str, HashedPassword] = {}
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip() or line.startswith("#"):
                continue
            name, _, password = line.partition(":")
            if not name or not password:
                raise UsageError(f"{source}, line {number}: no user and password: {HOW_TO_WRITE}")
            if name in users:
                raise UsageError(f"{source}, line {number}: the same user twice: keep one line")
            users[name] = _hashed(password, f"{source}, line {number}")
        if not users:
            raise UsageError(f"{source}: no user in it: {HOW_TO_WRITE}")
        return cls(users)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Return the users of a file, or raise UsageError."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UsageError(f"password file {path}: {error.strerror}: give a file with user:password lines") from None
        except UnicodeDecodeError:
            raise UsageError(f"password file {path}: not UTF-8 text: save it as UTF-8") from None
        return cls.from_lines(text.splitlines(), f"password file {path}")

    def check(self, user: str, password: str) -> bool:
        """Return whether the user has that password."""
        mark = hmac.digest(self._key, f"{user}:{password}".encode(), "sha256")
        if mark in self._known:
            return True
        with self._turn:
            right = self._matches(user, password)
        if right:
            self._known.add(mark)
        return right

    def _matches(self, user: str, password: str) -> bool:
        """Hash once at every cost that the file has, whoever asks: the time tells nothing about a name."""
        account = self._users.get(user)
        right = False
        for cost in self._costs:
            is_own = account is not None and account.cost == cost
            digest = cost.digest(password, account.salt if is_own and account else self._decoy_salt)
            right |= hmac.compare_digest(digest, account.digest if is_own and account else bytes(_DIGEST_BYTES))
        return right


def _hashed(password: str, place: str) -> HashedPassword:
    if not password.startswith(f"{_SCHEME}$"):
        return HashedPassword.of(password)
    try:
        return HashedPassword.parse(password)
    except ValueError:
        raise UsageError(f"{place}: the hash is damaged: write it again with hash_password") from None


class Lockout:
    """Makes those who guess wait: longer with each wrong password from the same address, and never for ever.

    A right password does not wipe the slate: who has an account could otherwise guess another's in turn with it.

    Args:
        free_tries: wrong passwords without a wait.
        longest_wait_seconds: where the doubling ends; after a quiet time as long, all is forgotten.
        most_addresses: to keep in mind; beyond it the one that was quiet for longest is forgotten.
        clock: seconds.
    """

    def __init__(
        self,
        free_tries: int = 5,
        longest_wait_seconds: float = 900.0,
        most_addresses: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_tries = free_tries
        self._longest_wait_seconds = longest_wait_seconds
        self._most_addresses = most_addresses
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float, float]] = OrderedDict()  # count, last, open again at
        self._lock = threading.Lock()

    def wait_seconds(self, address: str) -> float:
        """Return how long this address has to wait before its next try counts; 0 where it need not."""
        with self._lock:
            _, _, opens = self._failures.get(_network(address), (0, 0.0, 0.0))
        return max(opens - self._clock(), 0.0)

    def failed(self, address: str) -> None:
        """Note a wrong password."""
        now, network = self._clock(), _network(address)
        with self._lock:
            count, last, _ = self._failures.pop(network, (0, now, 0.0))
            count = 1 if now - last > self._longest_wait_seconds else count + 1
            # The exponent is bounded before the power is taken: counts grow for as long as somebody guesses.
            wait = 2.0 ** min(count - self._free_tries, 30) if count >= self._free_tries else 0.0
            self._failures[network] = (count, now, now + min(wait, self._longest_wait_seconds))
            while len(self._failures) > self._most_addresses:
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
