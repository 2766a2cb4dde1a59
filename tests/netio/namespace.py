"""A network of a test's own: a thread in a namespace where two interfaces are joined by a cable."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

CLONE_NEWNET = 0x40000000
NEAR, FAR = "near", "far"


@contextmanager
def network() -> Iterator[ThreadPoolExecutor]:
    """One thread that lives in a fresh network namespace; sockets that it opens stay there. Skips where none can be."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip")
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(_enter).result()
        if reason:
            pytest.skip(f"needs a network namespace of its own: {reason}")
        yield thread


def _enter() -> str:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        return os.strerror(ctypes.get_errno())
    try:
        for command in (f"link add {NEAR} type veth peer name {FAR}", f"link set {NEAR} up", f"link set {FAR} up"):
            ip(command)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    return ""


def ip(command: str) -> None:
    """Run ip(8); only in the thread."""
    # Without addresses of its own an interface says nothing by itself.
    quiet = (
        "for each in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $each; done; " if "link add" in command else ""
    )
    subprocess.run(
        f"ip {command}; status=$?; {quiet}exit $status", shell=True, check=True, capture_output=True, text=True
    )


def sender(interface: str) -> socket.socket:
    """A socket whose frames go out as they are; only in the thread."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind((interface, 0))
    return made
