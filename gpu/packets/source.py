"""The source of the kernels: the `.cu` files beside this one, behind what is made of netio's own tables.

It needs no header, so NVRTC compiles it; and nothing in it needs a GPU but `blockIdx` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import cache
from importlib.resources import files

import numpy as np

from ...netio import tcp_state
from ...netio.dissect import MAX_PASSES, REPEATED
from ...netio.flow_batch import Reason
from ...netio.flow_key import HAS_PORTS, UNTAGGED, WORDS
from ...netio.flow_record import FIRST, FLAGS, MOST_REPEATS, RECORD
from ...netio.layers import kinds
from ...netio.layers.kinds import Kind
from ...netio.layers.tunnels import MAX_GTP_EXTENSIONS
from ...netio.layers.walk import MAX_IP_HEADERS, MAX_TAGS, PARTIAL_COLUMNS
from ...netio.layers.wireless import MAX_PRESENT_WORDS
from ...netio.packets import HEADER_DTYPES, NO_LABEL, NO_VLAN, PACKET_DTYPES, Error, Tunnel
from ..compiled import NUMBERS
from .flat import ENUMS, NO_RULE
from .flow_layout import ARRIVAL, BEGINS, DUE, PART, SLOTS

FILES = ("dissect.cu", "classify.cu", "flows.cu")

_TYPES = {"uint8": "u8", "bool": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "int64": "i64"}

_OUT = """\
// Columns of an answer in one piece of memory: column `number` begins at byte `places[number]` times `capacity`, a
// multiple of 8, and is not wanted where that is negative.
struct Out {
    u8* data;
    u64 capacity;
    const i32* places;
};

template <class T>
__device__ static inline void store(const Out& out, u64 row, u32 number, T value) {
    const i32 place = out.places[number];
    if (place >= 0) ((T*)(out.data + (u64)place * out.capacity))[row] = value;
}
"""


@cache
def source() -> str:
    """All kernels, as C++."""
    texts = [files(__package__).joinpath(name).read_text() for name in FILES]
    return "\n".join([NUMBERS, *_prelude(), *_flow_prelude(), *texts])


@cache
def kernel_names() -> tuple[str, ...]:
    """What can be launched."""
    return tuple(re.findall(r"__global__ void (\w+)\(", source()))


def _prelude() -> Iterable[str]:
    """Numbers, tables and columns that netio and the kernels have in common."""
    limits = {
        "MAX_IP_HEADERS": MAX_IP_HEADERS,
        "MAX_TAGS": MAX_TAGS,
        "MAX_PASSES": MAX_PASSES,
        "MAX_GTP_EXTENSIONS": MAX_GTP_EXTENSIONS,
        "MAX_PRESENT_WORDS": MAX_PRESENT_WORDS,
        "NO_VLAN": NO_VLAN,
        "NO_LABEL": f"{NO_LABEL}u",
        "OUTER": len(PACKET_DTYPES),
        "INNER": len(PACKET_DTYPES) + len(HEADER_DTYPES),
    }
    yield "\n".join(f"#define {name} {value}" for name, value in limits.items())
    yield _constants("Kind", {name: value for name, value in vars(Kind).items() if name.isupper()})
    yield _constants("Error", _members(Error))
    yield _constants("Tunnel", _members(Tunnel))
    yield _table("after_link", kinds.LINKS)
    yield _table("after_ethertype", kinds.ETHERTYPES)
    yield _table("after_ppp", kinds.PPP_PROTOCOLS)
    yield _table("after_family", kinds.FAMILIES)
    yield _table("after_nibble", kinds.NIBBLES)
    yield _table("after_ipv4", kinds.TRANSPORTS)
    yield _table("after_ipv6", kinds.TRANSPORTS | kinds.EXTENSIONS)
    yield _table("after_port", kinds.UDP_PORTS)
    yield _table("is_repeated", dict.fromkeys(sorted(REPEATED), 1))
    yield _OUT
    yield _struct("Plain", PACKET_DTYPES)
    yield _struct("Header", HEADER_DTYPES)
    yield _stores("store_plain(const Out& out, u64 row, const Plain& it)", "0", PACKET_DTYPES)
    yield _stores("store_header(const Out& out, u64 row, u32 first, const Header& it)", "first", HEADER_DTYPES)
    cleared = "\n".join(f"    it.{name} = 0;" for name in PARTIAL_COLUMNS)
    yield f"__device__ static inline void clear_partial(Header& it) {{\n{cleared}\n}}"
    yield f"#define NO_RULE {NO_RULE}"
    for name, members in ENUMS.items():
        yield _constants(name, members)


def _flow_prelude() -> Iterable[str]:
    """The same of flows."""
    limits = {
        "KEY_WORDS": WORDS,
        "FIRST": FIRST,
        "FLAGS": FLAGS,
        "MOST_REPEATS": MOST_REPEATS,
        "REPEATED_KINDS": len(tcp_state.REPEATED),
        "UNTAGGED": f"{UNTAGGED}ull",
        "TCP": tcp_state.TCP,
        "UDP": tcp_state.UDP,
    }
    yield "\n".join(f"#define {name} {value}" for name, value in limits.items())
    yield _constants("Letter", _members(tcp_state.Kind))
    yield _constants("Reason", _members(Reason))
    yield _constants("Slot", SLOTS)
    yield _constants("Begins", BEGINS)
    yield _constants("Due", DUE)
    yield _table("has_ports", dict.fromkeys(np.flatnonzero(HAS_PORTS).tolist(), 1))
    yield _table("repeated_place", {kind: place + 1 for place, kind in enumerate(tcp_state.REPEATED)})
    # By the lowest five flags, and whether there is payload.
    flags = np.arange(64, dtype=np.uint16)
    kinds_of = tcp_state.kinds(np.full(64, tcp_state.TCP, np.uint8), flags & np.uint16(31), flags >> np.uint16(5))
    yield f"__device__ static const u8 tcp_kinds[64] = {{{', '.join(map(str, kinds_of.tolist()))}}};"
    yield _record("Record", RECORD)
    yield _record("Part", PART, {RECORD: "Record"})
    yield _record("Arrival", ARRIVAL)


def _members(numbers: type[IntEnum]) -> dict[str, int]:
    return {member.name: member.value for member in numbers}


def _constants(name: str, members: Mapping[str, int]) -> str:
    return "\n".join(f"constexpr u32 {name}_{member} = {value};" for member, value in members.items())


def _table(name: str, values: Mapping[int, int]) -> str:
    """A function of a number: a few comparisons, of which a warp makes the same for all its packets."""
    cases = " ".join(f"case {number}: return {value};" for number, value in values.items())
    return f"__device__ static inline u32 {name}(u32 number) {{ switch (number) {{ {cases} }} return 0; }}"


def _struct(name: str, dtypes: Mapping[str, np.dtype[np.generic]]) -> str:
    fields = "".join(f"    {_TYPES[dtype.name]} {field};\n" for field, dtype in dtypes.items())
    return f"struct {name} {{\n{fields}}};"


def _record(name: str, dtype: np.dtype[np.void], structs: Mapping[np.dtype[np.void], str] | None = None) -> str:
    """The struct that lies in memory as rows of the dtype do."""
    fields = ""
    for field, (member, *_) in (dtype.fields or {}).items():
        kind, sizes = member.base, "".join(f"[{size}]" for size in member.shape)
        fields += f"    {(structs or {}).get(kind) or _TYPES[kind.name]} {field}{sizes};\n"
    return f'struct {name} {{\n{fields}}};\nstatic_assert(sizeof({name}) == {dtype.itemsize}, "{name}");'


def _stores(signature: str, first: str, dtypes: Mapping[str, np.dtype[np.generic]]) -> str:
    lines = "".join(f"    store(out, row, {first} + {number}, it.{name});\n" for number, name in enumerate(dtypes))
    return f"__device__ static void {signature} {{\n{lines}}}"
