"""Rule sets for benchmarks, in the manner of ClassBench: those of ../shared/data, or made here from a seed; and keys.

Generator and numbers are our own; the numbers are rounded so that protocols, port classes, prefix lengths and the rules
that match one header come out close to what sets of the original tool show.

Source:
    Taylor and Turner, ClassBench, INFOCOM 2005.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aikoryu.netio.keys import Keys
from aikoryu.netio.packet_index import Array
from aikoryu.netio.rules import RuleSet
from benchmarks.packets_captures import DATA

if TYPE_CHECKING:
    from torch import Tensor

SETS = ("acl1", "fw1", "ipc1")
SIZES = (1_000, 10_000, 100_000)
FOLDER = DATA / "rules"
SEEDS = {"acl1": 1, "fw1": 2, "ipc1": 3}
NEAR, ANY = 0.15, 0.05  # of keys: changed in one place after they were drawn from a rule; drawn from nowhere
ANY_PROTOCOLS = (6, 17, 6, 1, 47)
WITH_PORTS = (6, 17, 132)

_ALL, _HIGH = (0, 65535), (1024, 65535)


@dataclass(frozen=True)
class Profile:
    """What rules of a kind look like.

    Attributes:
        protocols: shares by protocol, 0 for any.
        ports: by protocol, shares of pairs of port classes: any, high, one port, a range.
        single: source and destination ports that rules name.
        ranges: port ranges that rules name.
        lengths: lengths of both prefixes, with their shares.
        hosts: factor and exponent of the number of source and of destination addresses.
        networks: of the addresses, large ones and their parts, for 500 addresses.
        spread: how likely a prefix is one bit off, and then another.
        same: share of rules whose ends are in one network.
    """

    protocols: Mapping[int, float]
    ports: Mapping[int, Mapping[str, float]]
    single: tuple[tuple[int, ...], tuple[int, ...]]
    ranges: tuple[tuple[int, int], ...]
    lengths: tuple[tuple[int, int, float], ...]
    hosts: tuple[tuple[float, float], tuple[float, float]]
    networks: tuple[int, int]
    spread: float
    same: float


PROFILES = {
    "acl1": Profile(
        {6: 0.873, 0: 0.083, 1: 0.032, 17: 0.012},
        {6: {"any one": 0.63, "any any": 0.22, "any range": 0.15}, 17: {"any one": 0.9, "any range": 0.1}},
        (
            (20, 53, 80, 123),
            (1521, 1433, 135, 5555, 6000, 21, 443, 80, 25, 5631, 1489, 512, 2049, 3306, 5432, 8080, 389),
        ),
        ((1300, 1349), (1700, 1750), (2200, 2210), (5001, 65535), (7500, 7599), (8000, 8100), (20000, 20010)),
        (
            *((32, 32, 0.50), (31, 32, 0.12), (32, 31, 0.12), (31, 31, 0.03), (23, 32, 0.03), (30, 32, 0.025)),
            *((32, 30, 0.025), (32, 24, 0.025), (32, 22, 0.03), (32, 23, 0.02), (32, 25, 0.02), (24, 32, 0.02)),
            *((22, 23, 0.01), (23, 16, 0.01), (29, 21, 0.01), (0, 8, 0.003), (0, 0, 0.002)),
        ),
        ((0.35, 0.90), (3.5, 0.58)),
        (6, 40),
        0.24,
        0.15,
    ),
    "fw1": Profile(
        {6: 0.56, 17: 0.335, 47: 0.055, 1: 0.04, 0: 0.01},
        {
            6: {"any one": 0.72, "any any": 0.17, "high high": 0.07, "high one": 0.03, "high range": 0.01},
            17: {
                **{"any one": 0.43, "one any": 0.28, "any any": 0.06, "high high": 0.10},
                **{"one one": 0.07, "one high": 0.05, "range high": 0.01},
            },
        },
        (
            (53, 123, 161, 67, 69, 88, 750, 162, 514),
            (22, 80, 25, 53, 123, 21, 443, 23, 161, 110, 88, 69, 119, 143, 179),
        ),
        ((33434, 33600), (6000, 6063)),
        (
            *((0, 32, 0.30), (1, 31, 0.06), (32, 0, 0.13), (32, 32, 0.09), (0, 30, 0.06), (0, 28, 0.04), (0, 21, 0.02)),
            *((16, 0, 0.02), (28, 0, 0.05), (30, 0, 0.05), (29, 0, 0.03), (27, 0, 0.02), (0, 0, 0.015)),
            *((28, 32, 0.05), (30, 32, 0.04), (0, 24, 0.02), (24, 0, 0.015)),
        ),
        ((0.8, 0.93), (0.75, 0.98)),
        (12, 30),
        0.33,
        0.05,
    ),
    "ipc1": Profile(
        {17: 0.37, 0: 0.345, 6: 0.266, 1: 0.011, 51: 0.003, 50: 0.002, 47: 0.003},
        {
            6: {
                "any one": 0.62,
                "any high": 0.16,
                "any any": 0.06,
                "one any": 0.10,
                "any range": 0.05,
                "high any": 0.01,
            },
            17: {
                **{"any one": 0.52, "one any": 0.32, "any high": 0.05, "range any": 0.05, "any range": 0.03},
                **{"one one": 0.02, "any any": 0.01},
            },
        },
        (
            (53, 123, 161, 20, 69, 500, 514, 1645, 1812, 137),
            (53, 80, 443, 25, 123, 161, 22, 23, 21, 110, 143, 500, 514),
        ),
        ((20, 23), (109, 110), (20, 21), (1645, 1646), (5000, 5001), (137, 139), (6000, 6063)),
        (
            *((32, 32, 0.17), (32, 25, 0.04), (25, 32, 0.04), (24, 32, 0.07), (32, 24, 0.06), (24, 24, 0.06)),
            *((23, 32, 0.07), (32, 26, 0.04), (26, 32, 0.03), (25, 25, 0.04), (26, 26, 0.03), (22, 24, 0.03)),
            *((24, 16, 0.03), (27, 28, 0.03), (0, 32, 0.02), (32, 0, 0.015), (0, 16, 0.01), (16, 0, 0.01)),
            *((0, 0, 0.005), (28, 27, 0.03)),
        ),
        ((1.1, 0.68), (1.1, 0.76)),
        (10, 60),
        0.33,
        0.25,
    ),
}


def load(name: str, size: int) -> tuple[RuleSet, str]:
    """A set of so many rules, and where it is from: `shared` or `generated`."""
    short = f"{size // 1000}k"
    path = FOLDER / f"{name}_{short}.npz"
    if size % 1000 == 0 and path.exists():
        with np.load(path) as arrays:
            return _rule_set({key: arrays[key] for key in _ARRAYS}), "shared"
    return make(name, size), "generated"


_ARRAYS = ("src", "src_len", "dst", "dst_len", "sp_lo", "sp_hi", "dp_lo", "dp_hi", "proto", "proto_mask")


def make(name: str, size: int) -> RuleSet:
    """A set of so many different rules, the same each time; specific rules tend to come first."""
    profile, random = PROFILES[name], np.random.default_rng((SEEDS[name], size))
    pools = [_addresses(random, max(8, int(factor * size**power)), profile) for factor, power in profile.hosts]
    rows = np.empty((0, len(_ARRAYS)), np.int64)
    while len(rows) < size:
        rows = np.concatenate([rows, _drawn(random, size, profile, pools)])
        _, first = np.unique(rows, axis=0, return_index=True)
        rows = rows[np.sort(first)]
    rows = rows[:size]
    ports = np.log2((rows[:, 5] - rows[:, 4] + 1) * (rows[:, 7] - rows[:, 6] + 1.0))
    scope = 64 - rows[:, 1] - rows[:, 3] + ports + 8 * (rows[:, 9] == 0)
    order = np.argsort(scope + random.normal(0, 6, size), kind="stable")
    return _rule_set(dict(zip(_ARRAYS, rows[order].T, strict=True)))


def _drawn(random: np.random.Generator, count: int, profile: Profile, pools: list[Array]) -> Array:
    protocol = _picked(random, profile.protocols, count)
    ports = np.tile(np.array([*_ALL, *_ALL]), (count, 1))
    for number, classes in profile.ports.items():
        rows = np.flatnonzero(protocol == number)
        chosen = _picked(random, classes, len(rows))
        for side in (0, 1):
            name = np.array([each.split()[side] for each in chosen.tolist()], dtype=object)
            ports[rows, 2 * side : 2 * side + 2] = _ports(random, name, profile, side)
    pair = random.choice(len(profile.lengths), count, p=_shares([each[2] for each in profile.lengths]))
    lengths = np.array([each[:2] for each in profile.lengths])[pair]
    steps = random.geometric(1 - profile.spread, (count, 2)) - 1
    lengths = np.clip(np.where(lengths > 16, lengths - steps, lengths + steps), 0, 32)
    ends = [pool[_ranked(random, len(pool), count, 0.35)] for pool in pools]
    ends[1] = np.where(random.random(count) < profile.same, ends[0] & ~0xFFFF | ends[1] & 0xFFFF, ends[1])
    ends = [end >> 32 - lengths[:, side] << 32 - lengths[:, side] for side, end in enumerate(ends)]
    mask = np.where(protocol == 0, 0, 255)
    return np.column_stack([ends[0], lengths[:, 0], ends[1], lengths[:, 1], ports, protocol, mask])


def _ports(random: np.random.Generator, name: Array, profile: Profile, side: int) -> Array:
    found = np.tile(np.array(_ALL), (len(name), 1))
    found[name == "high"] = _HIGH
    one, ranged = np.flatnonzero(name == "one"), np.flatnonzero(name == "range")
    single = np.array(profile.single[side])
    found[one] = single[_ranked(random, len(single), len(one), 0.7)][:, None]
    found[ranged] = np.array(profile.ranges)[random.integers(0, len(profile.ranges), len(ranged))]
    return found


def _addresses(random: np.random.Generator, count: int, profile: Profile) -> Array:
    """Addresses in groups, as the networks of a site: (n,) int64."""
    scale = max(1.0, count / 500)
    tops = random.integers(1 << 8, 224 << 8, max(2, int(profile.networks[0] * scale**0.5))) << 16
    parts = max(4, int(profile.networks[1] * scale**0.7))
    nets = tops[_ranked(random, len(tops), parts)] | random.integers(0, 256, parts) << 8
    found: Array = nets[_ranked(random, parts, count)] | random.integers(0, 256, count)
    return found


def _ranked(random: np.random.Generator, of: int, count: int, power: float = 0.8) -> Array:
    """Places of which the first are the most frequent."""
    return random.choice(of, count, p=_shares(np.arange(1, of + 1) ** -power))


def _picked(random: np.random.Generator, shares: Mapping[Any, float], count: int) -> Array:
    return np.array(list(shares))[random.choice(len(shares), count, p=_shares(list(shares.values())))]


def _shares(weights: Any) -> Array:
    found: Array = np.asarray(weights, float) / np.sum(weights)
    return found


def _rule_set(arrays: Mapping[str, Array]) -> RuleSet:
    size = len(arrays["src"])
    zeros = np.zeros(size, np.uint8)
    return RuleSet(
        family=np.full(size, 4, np.uint8),
        source=_halves(arrays["src"]),
        destination=_halves(arrays["dst"]),
        source_length=arrays["src_len"],
        destination_length=arrays["dst_len"],
        source_port_low=arrays["sp_lo"],
        source_port_high=arrays["sp_hi"],
        destination_port_low=arrays["dp_lo"],
        destination_port_high=arrays["dp_hi"],
        protocol=arrays["proto"] & arrays["proto_mask"],
        protocol_mask=arrays["proto_mask"],
        vlan=zeros,
        vlan_mask=zeros,
        tcp_flags=zeros,
        tcp_flags_mask=zeros,
        label=zeros,
    )


def _halves(addresses: Array) -> Array:
    return np.stack([np.zeros(len(addresses), np.uint64), addresses.astype(np.uint64)], axis=1)


@dataclass(frozen=True, eq=False)
class KeyColumns:
    """Keys of IPv4 packets, on a device: (n,) each, as `packets.classify` takes them.

    Attributes:
        source, destination: uint32.
        source_port, destination_port: uint16.
        protocol: uint8.
    """

    source: Tensor
    destination: Tensor
    source_port: Tensor
    destination_port: Tensor
    protocol: Tensor

    @classmethod
    def drawn(cls, rules: RuleSet, count: int, device: str, seed: int = 0) -> KeyColumns:
        """Keys in random order: each drawn from some rule, and some of them then changed.

        Args:
            rules: of IPv4.
            count: how many.
            device: where they are made and lie.
            seed: the same gives the same on the same device.
        """
        import torch

        generator = torch.Generator(device).manual_seed(seed)

        def below(end: int, size: int = count) -> Tensor:
            return torch.randint(0, end, (size,), generator=generator, device=device)

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator, device=device) < share

        def of(values: Array) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)[rule]

        rule = below(len(rules))
        is_corner = chance(0.5)  # at one end of the prefix and of the range
        ends, ports = [], []
        for side in ("source", "destination"):
            free = (1 << 32 - of(getattr(rules, f"{side}_length"))) - 1
            corner = free * below(2)
            ends.append(of(getattr(rules, side)[:, 1]) | torch.where(is_corner, corner, below(1 << 32) & free))
            least, most = of(getattr(rules, f"{side}_port_low")), of(getattr(rules, f"{side}_port_high"))
            inside = least + below(1 << 30) % (most - least + 1)
            ports.append(torch.where(is_corner, torch.where(below(2) == 0, least, most), inside))
        protocols = torch.tensor(ANY_PROTOCOLS, device=device)[below(len(ANY_PROTOCOLS))]
        protocol = torch.where(of(rules.protocol_mask) == 0, protocols, of(rules.protocol))
        has_ports = torch.isin(protocol, torch.tensor(WITH_PORTS, device=device))
        for place, low in enumerate((rules.source_port_low, rules.destination_port_low)):
            ports[place] = torch.where(has_ports | (of(low) > 0), ports[place], 0)
        changed, flip = torch.where(chance(NEAR), below(4), 4), 1 << below(32)
        ends = [torch.where(changed == place, end ^ flip, end) for place, end in enumerate(ends)]
        ports[1] = torch.where(changed == 2, (ports[1] + 1) & 0xFFFF, ports[1])
        protocol = torch.where(changed == 3, torch.where(protocol == 6, 17, 6), protocol)
        anywhere = chance(ANY)
        ends = [torch.where(anywhere, below(1 << 32), end) for end in ends]
        ports = [torch.where(anywhere, below(1 << 16), port) for port in ports]
        protocol = torch.where(anywhere, below(256), protocol)
        return cls(
            ends[0].to(torch.uint32),
            ends[1].to(torch.uint32),
            ports[0].to(torch.uint16),
            ports[1].to(torch.uint16),
            protocol.to(torch.uint8),
        )

    def __len__(self) -> int:
        return len(self.protocol)

    def first(self, rows: int) -> KeyColumns:
        """So many of them."""
        return KeyColumns(*(column[:rows] for column in self._columns))

    def host(self) -> Keys:
        """The same as netio has them."""
        return Keys.ipv4(*(column.cpu().numpy() for column in self._columns))

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        return self.source, self.destination, self.source_port, self.destination_port, self.protocol
