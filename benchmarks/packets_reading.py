"""Captures read by Aikoryu and by others: packets/s by the clock, and CPU time a packet."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.ours import NAME
from benchmarks.packets_captures import Tiles
from benchmarks.processes import ROOT

ONE, TWO, FLOWS = f"{NAME}, 1 process", f"{NAME}, 2 processes", f"{NAME}, flows"
TSHARK = "tshark, fields"
PEERS_VARIABLE = "BENCH_PEERS"
"""The interpreter that has the peers, where it is not this one."""
READER = ROOT / "benchmarks" / "peers" / "capture_readers.py"
FIELDS = (
    *("frame.time_epoch", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "ip.proto"),
    *("tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "tcp.flags"),
)
SPARED = ("tcp.desegment_tcp_streams", "tcp.analyze_sequence_numbers", "ip.defragment")
LIMIT_S = 300.0


@dataclass(frozen=True)
class Peer:
    """Somebody else who reads captures.

    Attributes:
        name: in the record.
        title: what it does, for people.
        share: of the packets of a run that it gets, so that it takes about as long.
        distribution: that it needs; tshark needs its program.
        reader: its name in `peers/capture_readers.py`.
    """

    name: str
    title: str
    share: float
    distribution: str = ""
    reader: str = ""


PEERS = (
    Peer(TSHARK, "tshark -T fields: times, addresses, ports, flags; no reassembly, no name look-ups", 0.015),
    Peer("dpkt", "dpkt: Ethernet, IP and transport objects", 0.03, "dpkt", "dpkt"),
    Peer("scapy, PcapReader", "scapy: all layers as objects", 0.002, "scapy", "scapy"),
    Peer("scapy, RawPcapReader", "scapy: bytes and times alone, no header is read", 0.1, "scapy", "scapy-raw"),
    Peer("nfstream", "nfstream: flows, without nDPI and statistics", 0.05, "nfstream", "nfstream"),
)


def interpreter() -> str:
    """The interpreter that has the peers."""
    return os.environ.get(PEERS_VARIABLE, sys.executable)


@cache
def peer_versions() -> dict[str, str | None]:
    """Versions of the peers there are; None for what is missing."""
    names = sorted({peer.distribution for peer in PEERS if peer.distribution})
    code = (
        "import json, sys\nfrom importlib.metadata import PackageNotFoundError, version\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: found[name] = None\nprint(json.dumps(found))"
    )
    said = subprocess.run((interpreter(), "-c", code, *names), capture_output=True, text=True, check=True).stdout
    tshark = None
    if path := shutil.which("tshark"):
        first = subprocess.run((path, "--version"), capture_output=True, text=True, check=False).stdout.splitlines()[0]
        tshark = next((word.rstrip(".") for word in first.split() if word[0].isdigit()), first)
    found: dict[str, str | None] = json.loads(said)
    return found | {"tshark": tshark}


def entrants() -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    there = peer_versions()
    missing = {peer.name: peer.distribution or "tshark" for peer in PEERS if not there[peer.distribution or "tshark"]}
    return [peer for peer in PEERS if peer.name not in missing], {
        name: f"not installed: {what}" for name, what in missing.items()
    }


class Files:
    """One capture in files of several lengths, which are written when they are first read.

    Args:
        tiles: the capture.
        folder: where they go.
        name: of the capture.
    """

    def __init__(self, tiles: Tiles, folder: Path, name: str) -> None:
        self._tiles = tiles
        self._folder = folder
        self._name = name

    def of(self, packets: int) -> Path:
        """A file of so many packets, which the system has in memory after this."""
        path = self._folder / f"{self._name}-{packets}.pcap"
        if not path.exists():
            self._tiles.write(path, packets)
        return path


def ours(what: str, path: Path, packets: int, processes: int = 1) -> dict[str, Any]:
    """One sample of `packets_reader`; its start is not in it."""
    parts = [(str(part), str(processes)) for part in range(processes)]
    command = (sys.executable, "-m", "benchmarks.packets_reader", what, str(path))
    # A packet without an IP header is part of no flow.
    return _sample([(*command, *part) for part in parts], packets, counts=what != "flows")


def theirs(peer: Peer, path: Path, packets: int) -> dict[str, Any]:
    """One sample of a peer; of tshark with its start, 0.2 s."""
    if peer.name == TSHARK:
        return _tshark(path, packets)
    command = (interpreter(), str(READER), peer.reader, str(path))
    return _sample([command], packets, counts=peer.distribution != "nfstream")


def _sample(commands: Sequence[Sequence[str]], packets: int, counts: bool) -> dict[str, Any]:
    """What processes took that begin together, and whether they found all packets."""
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for command in commands
    ]
    try:
        for child in children:
            if _line(child) != "ready":
                raise RuntimeError(f"{' '.join(commands[0][:4])} did not start; what it said is above")
        start = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        found = [json.loads(_line(child)) for child in children]
        wall_s = time.perf_counter() - start
    finally:
        for child in children:
            child.kill()
            child.communicate()
    lacking = packets - sum(each["packets"] for each in found) if counts else 0
    return _figures(packets, wall_s, sum(each["cpu_s"] for each in found), lacking)


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _tshark(path: Path, packets: int) -> dict[str, Any]:
    fields = [word for name in FIELDS for word in ("-e", name)]
    spared = [word for name in SPARED for word in ("-o", f"{name}:FALSE")]
    command = ("tshark", "-n", "-r", str(path), *spared, "-T", "fields", *fields)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=LIMIT_S)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"tshark ended with status {done.returncode}: {done.stderr.decode()[-300:]}")
    return _figures(packets, wall_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def _figures(packets: int, wall_s: float, cpu_s: float, lacking: int = 0) -> dict[str, Any]:
    figures = {"rows_per_s": round(packets / wall_s), "cpu_us": round(cpu_s / packets * 1e6, 4), "packets": packets}
    return record.sample(abs(lacking), **figures)
