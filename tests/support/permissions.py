"""Permissions that bind the tests too, which may run as root."""

import ctypes
import os
import sys
from contextlib import contextmanager

VERSION_3 = 0x20080522  # of the kernel's structure
OVERRIDES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root past permissions


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def read_only(folder, *, folder_too=True):
    """Let this thread read the files of a folder, and write none: nor make any, with `folder_too`."""
    paths = [*folder.iterdir(), *([folder] if folder_too else [])]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with without_overrides():
            yield
    finally:
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)


@contextmanager
def without_overrides():
    """Bind this thread by permissions."""
    if os.geteuid() or sys.platform != "linux":
        yield
        return
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(VERSION_3, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0].effective
    try:
        sets[0].effective = before & ~OVERRIDES
        assert libc.capset(ctypes.byref(header), sets) == 0
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0
