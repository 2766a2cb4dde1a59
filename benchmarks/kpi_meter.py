"""What processes cost, read from /proc and /sys: CPU time, memory, and the processors' energy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
POWERCAP = Path("/sys/class/powercap")
_TICKS = os.sysconf("SC_CLK_TCK")
_MAPPING = re.compile(r"^(?=[0-9a-f]+-[0-9a-f]+ )", re.MULTILINE)  # where one begins in smaps
_SHARED = ("/memfd:", "/dev/shm/", "/dev/zero")
"""Mappings that are memory and no file: slabs, which only processes of one worker share."""
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of /proc/stat's first line


class Memory(NamedTuple):
    """Bytes of some processes.

    Attributes:
        held: what they would hold now if they ran alone: a page that several of them share counts once, and one that
            they share with others, of a library, counts whole.
        peaks: sum of the most that each has had resident; shared pages count in each.
    """

    held: int
    peaks: int


class Assumed(NamedTuple):
    """A processor taken for one that its host does not name: thermal design power in W, and cores."""

    name: str
    watts: float
    cores: int


ASSUMED = {
    ("GenuineIntel", 6, 106): Assumed("a Xeon Platinum 8380", 270, 40),
    ("GenuineIntel", 6, 143): Assumed("a Xeon Platinum 8480+", 350, 56),
    ("GenuineIntel", 6, 207): Assumed("a Xeon Platinum 8580", 350, 60),
    ("AuthenticAMD", 25, 1): Assumed("an EPYC 7763", 280, 64),
    ("AuthenticAMD", 25, 17): Assumed("an EPYC 9654", 360, 96),
}
"""By vendor, family and model, which a virtual machine sees too: of each generation a usual one of GPU hosts.

Source: the makers' data sheets, thermal design power and cores.
"""
UNKNOWN = Assumed("a processor nobody has looked up", 5, 1)


def family(pid: int, proc: Path = PROC) -> list[int]:
    """A process and all below it."""
    below: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                below.setdefault(int(_stat(int(entry.name), proc)[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:  # it grows meanwhile
        found += below.get(one, [])
    return found


def is_engine(pid: int, proc: Path = PROC) -> bool:
    """Whether this process of a worker runs batches; the others are fronts, or keep processes alive."""
    with suppress(OSError):
        return b"aikoryu.gpu.child" in (proc / str(pid) / "cmdline").read_bytes()
    return False


def cpu_seconds(pids: Iterable[int], proc: Path = PROC) -> float:
    """User and system time of these processes so far, and of the children that they have outlived."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(map(int, _stat(pid, proc)[11:15]))
    return total / _TICKS


def memory(pids: Iterable[int], proc: Path = PROC) -> Memory:
    """Memory of these processes; where the kernel does not tell mappings, what is resident counts in each."""
    own = peaks = 0
    files: dict[str, int] = {}
    for pid in pids:
        with suppress(OSError):
            status = _kib((proc / str(pid) / "status").read_text())
            peaks += status.get("VmHWM", 0)
            try:
                mapped = (proc / str(pid) / "smaps").read_text()
            except OSError:
                own += status.get("VmRSS", 0)
                continue
            anonymous, of_files = _mappings(mapped)
            own += anonymous
            for name, resident in of_files.items():
                files[name] = max(files.get(name, 0), resident)
    return Memory((own + sum(files.values())) * 1024, peaks * 1024)


def _mappings(smaps: str) -> tuple[int, dict[str, int]]:
    """KiB of anonymous and shared memory (its share of what several map), and what is resident of each file."""
    own = 0
    files: dict[str, int] = {}
    for mapping in _MAPPING.split(smaps)[1:]:
        head, _, body = mapping.partition("\n")
        sizes = _kib(body)
        path = head.split(maxsplit=5)[5] if len(head.split(maxsplit=5)) == 6 else ""
        if path.startswith("/") and not path.startswith(_SHARED):
            own += sizes["Anonymous"]
            files[path] = files.get(path, 0) + sizes["Rss"] - sizes["Anonymous"]
        else:
            own += sizes["Pss"]
    return own, files


def busy_seconds(proc: Path = PROC) -> float:
    """CPU time of the whole machine so far in which it was not idle."""
    fields = (proc / "stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[place]) for place in _BUSY) / _TICKS


def _stat(pid: int, proc: Path) -> list[str]:
    """The fields behind the name, which may hold anything: state, parent, …"""
    return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _kib(text: str) -> dict[str, int]:
    """The lines in kB of a file of /proc."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


@dataclass(frozen=True)
class Counter:
    """An energy counter of one processor: its value in µJ, and where it starts again."""

    value: int
    span: int

    def joules_until(self, later: Counter) -> float:
        """Energy between two reads."""
        return ((later.value - self.value) % self.span) / 1e6


class Processors:
    """The energy that CPU time costs.

    Where the machine counts (RAPL), its packages' energy is shared out by CPU time, the idle part with it. Elsewhere a
    CPU that is busy is taken to draw its share of the thermal design power, and an idle one nothing.

    Args:
        powercap: where the kernel shows RAPL's counters.
        proc: where it shows the processors.

    Attributes:
        basis: which of the two holds here, and with what, as a sentence.
        watts: of a busy CPU, as assumed; None where the machine counts.
    """

    def __init__(self, powercap: Path = POWERCAP, proc: Path = PROC) -> None:
        self._powercap = powercap
        self.watts: float | None = None
        if self.read():
            self.basis = "CPU energy: RAPL's package counters, shared out by CPU time."
            return
        told = _processor(proc)
        kind = (told.get("vendor_id", ""), int(told.get("cpu family", 0)), int(told.get("model", 0)))
        taken = ASSUMED.get(kind, UNKNOWN)
        threads = max(1, int(told.get("siblings", 1)) // max(1, int(told.get("cpu cores", 1))))
        self.watts = taken.watts / taken.cores / threads
        self.basis = (
            f"CPU energy is assumed, for the machine shows no RAPL counter: {self.watts:.2f} W a busy CPU and none an "
            f"idle one, as of {taken.name} ({taken.watts:.0f} W thermal design power, {taken.cores} "
            f"core{'s' if taken.cores > 1 else ''}, {threads} CPU{'s' if threads > 1 else ''} a core; {kind[0]} family "
            f"{kind[1]} model {kind[2]})."
        )

    def read(self) -> Sequence[Counter]:
        """The packages' counters now; empty where they are not to be read."""
        return list(self._counters())

    def joules(self, cpu_s: float, busy_s: float, before: Sequence[Counter], after: Sequence[Counter]) -> float:
        """What so much CPU time cost.

        Args:
            cpu_s: CPU time of the processes in question, s.
            busy_s: CPU time of the whole machine meanwhile, s.
            before, after: the packages' counters.
        """
        if self.watts is not None:
            return cpu_s * self.watts
        whole = sum(one.joules_until(other) for one, other in zip(before, after, strict=True))
        return whole * min(1.0, cpu_s / busy_s) if busy_s else 0.0

    def _counters(self) -> Iterator[Counter]:
        for folder in sorted(self._powercap.glob("intel-rapl:*")):  # AMD's have that name too
            with suppress(OSError, ValueError):
                if (folder / "name").read_text().startswith("package"):
                    span = int((folder / "max_energy_range_uj").read_text())
                    yield Counter(int((folder / "energy_uj").read_text()), span)


def _processor(proc: Path) -> dict[str, str]:
    """What the kernel says of the first CPU."""
    first = (proc / "cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
