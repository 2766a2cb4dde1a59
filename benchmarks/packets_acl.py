"""DPDK's ACL library as a peer: `dpdk-test-acl` (Debian: apt install dpdk-dev) on the same rules and keys."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from aikoryu.netio.keys import Keys
from aikoryu.netio.rules import RuleSet

NAME = "DPDK ACL"
PROGRAM = "dpdk-test-acl"
ROOM_MIB = 6000  # 100,000 rules are built in less; pages are taken as they are used
LIMIT_S = 90.0
WIDE = "avx512x32"
_RATE = re.compile(r"@lcore \d+: .* ([\d.]+) pkt/sec")
_ANSWER = re.compile(r"ipv4_5tuple: \d+, category: 0, result: (\d+)")


def missing() -> str | None:
    """Why it cannot run here; None if it can."""
    return None if shutil.which(PROGRAM) else f"{PROGRAM} is not on PATH: apt install dpdk-dev"


class Acl:
    """A rule set and keys in files, as the program reads them.

    Args:
        folder: where to write.
        rules: of IPv4, without VLANs and flags.
        keys: of IPv4.
    """

    def __init__(self, folder: Path, rules: RuleSet, keys: Keys) -> None:
        self._rules, self._trace, self._keys = folder / "rules", folder / "trace", len(keys)
        self._rules.write_text("".join(_rule_lines(rules)))
        columns = (keys.source_low, keys.destination_low, keys.source_port, keys.destination_port, keys.protocol)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self._trace.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))

    def rate(self, cores: Sequence[int], least_s: float, algorithm: str = "avx2") -> float:
        """Lookups/s on so many cores together, each of which asks for all keys again and again.

        Args:
            cores: numbers of the cores.
            least_s: about how long they shall be at it at 5 M/s, s.
            algorithm: of the library.

        Raises:
            RuntimeError: the program failed; its last lines are the message.
        """
        times = max(1, round(least_s * 5e6 / self._keys))
        said = self._run(cores, algorithm, f"--iter={times}", "--verbose=0")
        found = [float(rate) for rate in _RATE.findall(said)]
        if len(found) != len(cores):
            raise RuntimeError(f"{PROGRAM} says of {len(found)} of {len(cores)} cores how fast they are: {said[-300:]}")
        return sum(found)

    def answers(self) -> list[int]:
        """The first rule that matches each key, -1 for none."""
        found = [int(number) for number in _ANSWER.findall(self._run((0,), "avx2", "--iter=1", "--verbose=2"))]
        return [-1 if number == 0xFFFF_FFFF else number for number in found]

    def _run(self, cores: Sequence[int], algorithm: str, *more: str) -> str:
        command = [
            *(PROGRAM, "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "-m", str(ROOM_MIB)),
            *(
                "-l",
                ",".join(map(str, cores)),
                *(("--force-max-simd-bitwidth=512",) if algorithm == WIDE else ()),
                "--",
            ),
            *(f"--rulesf={self._rules}", f"--tracef={self._trace}", f"--tracenum={self._keys}", "--rulenum=200000"),
            *(f"--alg={algorithm}", *more),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"{PROGRAM} ended with status {done.returncode}: {(done.stderr + done.stdout)[-300:]}")
        return done.stdout


@contextmanager
def prepared(rules: RuleSet, keys: Keys) -> Iterator[Acl]:
    """A rule set and keys in a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="acl-") as folder:
        yield Acl(Path(folder), rules, keys)


def _rule_lines(rules: RuleSet) -> Iterator[str]:
    """ClassBench's form."""
    columns = (
        *(map(IPv4Address, end[:, 1].tolist()) for end in (rules.source, rules.destination)),
        *(rules.source_length.tolist(), rules.destination_length.tolist()),
        *(rules.source_port_low.tolist(), rules.source_port_high.tolist()),
        *(rules.destination_port_low.tolist(), rules.destination_port_high.tolist()),
        *(rules.protocol.tolist(), rules.protocol_mask.tolist()),
    )
    form = "@{0}/{2}\t{1}/{3}\t{4} : {5}\t{6} : {7}\t0x{8:02x}/0x{9:02X}\t0x0000/0x0000\t\n"
    return (form.format(*row) for row in zip(*columns, strict=True))
