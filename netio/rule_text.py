"""Rules as people write them, one a line:

    drop  tcp from 10.0.0.0/8 port 1024-65535 to 192.168.0.36 port 80 flags S/SA name no-web   # a comment

`docs/rules.md` tells the format. What is wrong with a line is said with what to write instead.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator

from .packets import NO_VLAN
from .rules import ANY_PORT, BadRules, Problem, Rule, RuleSet

PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "sctp": 132}
WITHOUT_PORTS = ("icmp", "igmp", "gre", "esp", "ah", "icmp6")
FLAGS = "FSRPAUEW"
"""FIN, SYN, RST, PSH, ACK, URG, ECE, CWR: from bit 0 up, as pf and tcpdump call them."""
VLAN_IDS = 4095
TAGGED = 0xF000
"""These bits of a VLAN id are 0, and 1 of `NO_VLAN`."""

_WORD = re.compile(r"[A-Za-z0-9_.:/+-]{1,64}\Z")


def read(text: str) -> RuleSet:
    """The rules of a text in our own format.

    Raises:
        BadRules: each bad line is named, with what to write instead.
    """
    return RuleSet.of(read_lines(text, parse))


def write(rules: Iterable[Rule]) -> str:
    """The text that `read` reads back as these rules."""
    return "".join(f"{written(rule)}\n" for rule in rules)


def read_lines(text: str, parse_line: Callable[[str], Rule]) -> list[Rule]:
    """The rules of the lines that hold more than a comment.

    Raises:
        BadRules: `parse_line` raised ValueError for some of them.
    """
    rules = []
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if words:
            try:
                rules.append(parse_line(words))
            except ValueError as error:
                problems.append(Problem(number, str(error)))
    if problems:
        raise BadRules(problems)
    return rules


def parse(line: str) -> Rule:
    """The rule of one line without its comment.

    Raises:
        ValueError: it is none; the message says what to write instead.
    """
    words = iter(line.split())
    label = _word("a label", next(words))
    protocol_word = next(words, "")
    protocol, protocol_mask = _protocol(protocol_word)
    parts = _parts(words)
    if "from" not in parts or "to" not in parts:
        raise ValueError("write both `from` and `to`, with `any` for every address: drop tcp from any to 10.0.0.0/8")
    from_4_or_6, source, source_length = address(parts["from"])
    to_4_or_6, destination, destination_length = address(parts["to"])
    if from_4_or_6 and to_4_or_6 and from_4_or_6 != to_4_or_6:
        raise ValueError("one address is IPv4, the other IPv6: write `any` for one of them, or two of one version")
    ports = [_ports(parts.get(f"{side} port", "any")) for side in ("from", "to")]
    if ports != [ANY_PORT, ANY_PORT] and protocol_word in WITHOUT_PORTS:
        raise ValueError(f"{protocol_word} has no ports: leave `port` out")
    tcp_flags, tcp_flags_mask = _flags(parts.get("flags", "any"))
    if tcp_flags_mask and protocol_word not in ("tcp", "6"):
        raise ValueError(f"only TCP has flags: write `tcp` instead of {protocol_word!r}, or leave `flags` out")
    vlan, vlan_mask = _vlan(parts.get("vlan", "any"))
    return Rule(
        label=label,
        family=from_4_or_6 or to_4_or_6,
        source=source,
        source_length=source_length,
        destination=destination,
        destination_length=destination_length,
        source_ports=ports[0],
        destination_ports=ports[1],
        protocol=protocol,
        protocol_mask=protocol_mask,
        vlan=vlan,
        vlan_mask=vlan_mask,
        tcp_flags=tcp_flags,
        tcp_flags_mask=tcp_flags_mask,
        name=_word("a name", parts["name"]) if "name" in parts else "",
    )


def written(rule: Rule) -> str:
    """The line that `parse` reads back as this rule."""
    words = [rule.label, _protocol_word(rule.protocol, rule.protocol_mask)]
    sides = (("from", rule.source, rule.source_length), ("to", rule.destination, rule.destination_length))
    for (side, prefix, length), ports in zip(sides, (rule.source_ports, rule.destination_ports), strict=True):
        words += [side, prefix_text(rule.family, prefix, length)]
        if ports != ANY_PORT:
            words += ["port", f"{ports[0]}-{ports[1]}" if ports[0] != ports[1] else str(ports[0])]
    if rule.vlan_mask:
        words += ["vlan", _vlan_word(rule.vlan, rule.vlan_mask)]
    if rule.tcp_flags_mask:
        words += ["flags", f"{_letters(rule.tcp_flags)}/{_letters(rule.tcp_flags_mask)}"]
    if rule.name:
        words += ["name", rule.name]
    return " ".join(words)


def address(word: str) -> tuple[int, int, int]:
    """Version, address and length of a prefix; version 0 for `any`.

    Raises:
        ValueError: it is no prefix, or has bits beyond its length.
    """
    if word == "any":
        return 0, 0, 0
    version, prefix, length = prefix_of(word)
    cleared = truncated(version, prefix, length)
    if cleared != prefix:
        raise ValueError(f"{word} has bits beyond /{length}: write {prefix_text(version, cleared, length)}")
    return version, prefix, length


def prefix_of(word: str) -> tuple[int, int, int]:
    """Version, address and length of `192.0.2.0/24`, `2001:db8::/32` or one address, whatever its bits.

    Raises:
        ValueError: it is no prefix.
    """
    name, slash, digits = word.partition("/")
    version = 6 if ":" in name else 4
    bits = 128 if version == 6 else 32
    try:
        packed = socket.inet_pton(socket.AF_INET6 if version == 6 else socket.AF_INET, name)
    except OSError:
        raise ValueError(f"{word!r} is no address: write 10.0.0.0/8, 2001:db8::/32 or any") from None
    if slash and not (digits.isascii() and digits.isdigit() and int(digits) <= bits):
        raise ValueError(f"{word!r} has no length of 0 to {bits} after its slash")
    return version, int.from_bytes(packed), int(digits) if slash else bits


def truncated(version: int, prefix: int, length: int) -> int:
    """The prefix with the bits beyond its length cleared."""
    beyond = (128 if version == 6 else 32) - length
    return prefix >> beyond << beyond


def prefix_text(version: int, prefix: int, length: int) -> str:
    """The prefix as `address` reads it back."""
    if not version:
        return "any"
    if version == 6:
        return f"{socket.inet_ntop(socket.AF_INET6, prefix.to_bytes(16))}/{length}"
    return f"{socket.inet_ntop(socket.AF_INET, prefix.to_bytes(4))}/{length}"


def number(word: str, most: int, what: str) -> int:
    """A number of 0 to `most`, decimal or hexadecimal (0x).

    Raises:
        ValueError: it is none.
    """
    base = 16 if word[:2] in ("0x", "0X") else 10
    try:
        value = int(word, base) if word.isascii() and word.isalnum() else -1
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise ValueError(f"{word!r} is no {what}: write a number of 0 to {most}")
    return value


def _parts(words: Iterator[str]) -> dict[str, str]:
    """What follows the protocol, by its keyword; `from port` and `to port` are the two ports.

    Raises:
        ValueError: a keyword is unknown, said twice or without what it names.
    """
    parts: dict[str, str] = {}
    side = ""
    for keyword in words:
        if keyword not in ("from", "to", "port", "vlan", "flags", "name"):
            raise ValueError(f"{keyword!r} is not known here: write from, to, port, vlan, flags or name")
        key = keyword
        if keyword == "port":
            if not side:
                raise ValueError("`port` stands after the address it belongs to: from any port 53")
            key = f"{side} port"
        side = keyword if keyword in ("from", "to") else ""
        if key in parts:
            raise ValueError(f"`{keyword}` is said twice: write a rule for each")
        value = next(words, "")
        if not value:
            raise ValueError(f"nothing follows `{keyword}`")
        parts[key] = value
    return parts


def _word(what: str, word: str) -> str:
    if not _WORD.match(word):
        raise ValueError(f"{word!r} is not {what}: write up to 64 letters, digits, and any of _ . : / + -")
    return word


def _protocol(word: str) -> tuple[int, int]:
    if word == "any":
        return 0, 0
    if word in PROTOCOLS:
        return PROTOCOLS[word], 0xFF
    if word[:1].isdigit():
        return _masked(word, 0xFF, "protocol")
    raise ValueError(f"{word!r} is no protocol: after the label write any, {', '.join(PROTOCOLS)}, or a number")


def _protocol_word(protocol: int, mask: int) -> str:
    if mask == 0xFF:
        return next((name for name, value in PROTOCOLS.items() if value == protocol), str(protocol))
    return f"{protocol}/0x{mask:02x}" if mask else "any"


def _masked(word: str, most: int, what: str) -> tuple[int, int]:
    """Value and mask of `6` or `6/0xfe`."""
    value_word, slash, mask_word = word.partition("/")
    value = number(value_word, most, what)
    mask = number(mask_word, most, f"mask of a {what}") if slash else most
    if value & ~mask:
        raise ValueError(f"{word!r} has bits beyond its mask: write 0x{value & mask:x}/0x{mask:x}")
    return value, mask


def _ports(word: str) -> tuple[int, int]:
    if word == "any":
        return ANY_PORT
    if "," in word:
        raise ValueError(f"{word!r} are several ranges: write a rule for each")
    low_word, dash, high_word = word.partition("-")
    low = number(low_word, 0xFFFF, "port")
    high = number(high_word, 0xFFFF, "port") if dash else low
    if low > high:
        raise ValueError(f"{word!r} ends before it begins: write {high}-{low}")
    return low, high


def _vlan(word: str) -> tuple[int, int]:
    if word == "any":
        return 0, 0
    if word == "none":
        return NO_VLAN, 0xFFFF
    value, mask = _masked(word, VLAN_IDS, "VLAN id")
    return value, mask | TAGGED


def _vlan_word(vlan: int, mask: int) -> str:
    if vlan == NO_VLAN:
        return "none"
    return str(vlan) if mask == 0xFFFF else f"{vlan}/0x{mask & VLAN_IDS:x}"


def _flags(word: str) -> tuple[int, int]:
    if word == "any":
        return 0, 0
    values, slash, mask = word.partition("/")
    if not slash or not set(values + mask) <= set(FLAGS) or not set(values) <= set(mask):
        raise ValueError(
            f"{word!r} are no flags: write those that must be set, a slash and those looked at, all of {FLAGS}: S/SA"
        )
    return _bits(values), _bits(mask)


def _bits(letters: str) -> int:
    return sum(1 << FLAGS.index(letter) for letter in set(letters))


def _letters(bits: int) -> str:
    return "".join(letter for bit, letter in enumerate(FLAGS) if bits >> bit & 1)
