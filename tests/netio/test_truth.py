"""Every packet of the real captures, against tshark's reading of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.packets import Error

from . import truth

IPCOMP = "108"

LINK_COLUMNS = {"ts_ns", "interface", "wire_len", "cap_len", "eth_type"}

AGAINST_THE_LAYER_BELOW = {"LINKTYPE_IPV4_invalid.pcap", "kday1.pcap"}
"""tshark takes what the version nibble says, though link type or ethertype say IPv4; we say BAD_VERSION."""

ETHERNET = 1


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
@pytest.mark.parametrize("path", truth.captures(), ids=lambda path: path.name)
def test_every_packet_agrees_with_tshark(path: Path) -> None:
    with open_capture(path) as capture:
        index = capture.index
        packets = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
        assert not capture.truncated
    theirs, ours = truth.tshark_columns(path), truth.our_columns(index, packets)
    assert len(index) == len(theirs["frame"])
    if path.name in AGAINST_THE_LAYER_BELOW:
        assert packets.error.tolist() == [Error.BAD_VERSION]
        ours = {name: ours[name] for name in LINK_COLUMNS}
    # What tshark did not reach is empty.
    stopped = ["1" in pair for pair in zip(theirs["malformed"], theirs["short"], strict=True)]
    for name in ours.keys() & theirs.keys():
        wrong = []
        said = truth.plain(name, theirs[name])
        differing = [] if ours[name] == said else [row for row, value in enumerate(ours[name]) if value != said[row]]
        for row in differing:
            if said[row] == "" and stopped[row]:
                continue
            if not excused(name, said[row], theirs["o_proto"][row], int(index.link[row])):
                wrong.append((row + 1, ours[name][row], said[row], Error(int(packets.error[row])).name))
        assert not wrong, f"{name}: {len(wrong)} packets differ, as (frame, ours, tshark's, our error): {wrong[:5]}"


def excused(name: str, said: str, protocol: str, link: int) -> bool:
    """The differences that are meant; each says why."""
    if protocol == IPCOMP:
        # tshark unpacks what is compressed; the packet itself shows no more than that it is.
        return name == "n_ip" or name.startswith(("i_", "tcp_", "tunnel"))
    if name == "eth_type":
        # Linux cooked captures have an ethertype of their own, which tshark keeps in another field.
        return said == "" and link != ETHERNET
    # tshark's list has the ids of VXLAN, Geneve and GTP, ours keys of GRE as well.
    return name == "tunnel_id" and said == ""
