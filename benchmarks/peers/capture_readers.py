"""Peers that read captures: `python capture_readers.py PEER FILE`, by whichever interpreter has the peer.

It prints "ready" once the peer is imported, waits for a line, reads, and prints packets, wall and CPU seconds as JSON.
Nothing of Aikoryu is imported.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module

Read = Callable[[str], int]


def dpkt() -> Read:
    """Ethernet, IP and transport headers of each packet as objects."""
    pcap, ethernet = import_module("dpkt.pcap"), import_module("dpkt.ethernet")

    def read(path: str) -> int:
        with open(path, "rb") as file:
            return sum(1 for _ in map(ethernet.Ethernet, (frame for _, frame in pcap.Reader(file))))

    return read


def scapy() -> Read:
    """Each packet with all its layers as objects."""
    import_module("scapy.layers.all")
    reader = import_module("scapy.utils").PcapReader

    def read(path: str) -> int:
        with reader(path) as packets:
            return sum(1 for _ in packets)

    return read


def scapy_raw() -> Read:
    """Bytes and time of each packet; no header is read."""
    reader = import_module("scapy.utils").RawPcapReader

    def read(path: str) -> int:
        with reader(path) as packets:
            return sum(1 for _ in packets)

    return read


def nfstream() -> Read:
    """Flows of the file, without nDPI and without statistics: the least it does, by as many processes as it likes."""
    streamer = import_module("nfstream").NFStreamer

    def read(path: str) -> int:
        flows = streamer(source=path, n_dissections=0, statistical_analysis=False)
        return sum(flow.bidirectional_packets for flow in flows)

    return read


PEERS: dict[str, Callable[[], Read]] = {
    "dpkt": dpkt,
    "scapy": scapy,
    "scapy-raw": scapy_raw,
    "nfstream": nfstream,
}


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def serve(read: Read, path: str) -> None:
    """Read the file once when told to, and say what it took."""
    print("ready", flush=True)
    sys.stdin.readline()
    before, start = cpu_s(), time.perf_counter()
    packets = read(path)
    print(json.dumps({"packets": packets, "wall_s": time.perf_counter() - start, "cpu_s": cpu_s() - before}))


if __name__ == "__main__":
    serve(PEERS[sys.argv[1]](), sys.argv[2])
