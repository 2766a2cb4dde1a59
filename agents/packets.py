"""Packets: their headers, their protocols, the rules they fall under, and the back ends that take their flows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ..bus.client import Client
from ..bus.pending import RowsFailed
from ..netio.flow_cuts import Timeouts
from ..netio.flow_key import KeyChoice
from ..netio.flow_table import CAPACITY
from ..netio.flows import Flows
from ..netio.keys import Keys
from ..netio.labels import Labels
from ..netio.packets import HEADER_DTYPES, NO_VLAN, PACKET_DTYPES, Headers, Packets
from .flow_chunks import TimedSource
from .flows import CHUNK_PACKETS, flows_by_worker
from .frames import ETHERNET, Columns, PacketSource, batches
from .rules import Rules

Array: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, eq=False)
class Classes:
    """What packets were found to be.

    Attributes:
        rule: (n,) int32, the first rule that matches each packet, counted from 0; -1 for none.
        version: (n,) uint32, of the rule set; packets of one batch have one.
        label: of each packet's rule, empty where there is none; None unless labels were asked for.
    """

    rule: Array
    version: Array
    label: list[str] | None


class Network:
    """What workers do with packets.

    Packets come as whatever holds them: the path of a capture, bytes, packets of scapy, or an Arrow table with a column
    `frame` (see `agents.frames`). Every call may be sent again after a lost connection.

    Args:
        client: asks the workers.
        partitions: as the settings' `bus.partitions`, the same for everybody on the bus.

    Attributes:
        rules: named rule sets.
    """

    def __init__(self, client: Client, partitions: int) -> None:
        self.rules = Rules(client, partitions)
        self._client = client
        self._partitions = partitions

    @overload
    async def dissect(
        self, packets: PacketSource, *, columns: None = None, link: int = ETHERNET, timeout_s: float | None = None
    ) -> Packets: ...

    @overload
    async def dissect(
        self, packets: PacketSource, *, columns: Sequence[str], link: int = ETHERNET, timeout_s: float | None = None
    ) -> dict[str, Array]: ...

    async def dissect(
        self,
        packets: PacketSource,
        *,
        columns: Sequence[str] | None = None,
        link: int = ETHERNET,
        timeout_s: float | None = None,
    ) -> Packets | dict[str, Array]:
        """The headers of packets.

        Args:
            packets: n of them.
            columns: which columns are wanted, `error`, `outer.dport` or `inner.src_low`: all of them are 179 bytes a
                packet.
            link: link type of packets that come without one.
            timeout_s: how long to wait for each 16,384 packets, s.

        Returns:
            All columns as `netio.packets.Packets`; or those asked for, by name, (n,) each.

        Raises:
            BadParameter: there is no such column.
            BadColumn: `packets` holds none.
            BadCapture: the file is no capture.
        """
        parameters: dict[str, Any] = {"columns": list(columns)} if columns else {}
        parts = [await self._ask("packets.dissect", part, parameters, timeout_s) for part in batches(packets, link)]
        if columns is not None:
            return {name: _joined(parts, name) for name in dict.fromkeys(columns)}
        return Packets(
            **{name: _joined(parts, name) for name in PACKET_DTYPES},
            outer=Headers(**{name: _joined(parts, f"outer.{name}") for name in HEADER_DTYPES}),
            inner=Headers(**{name: _joined(parts, f"inner.{name}") for name in HEADER_DTYPES}),
        )

    async def classify(
        self,
        packets: PacketSource | Keys,
        *,
        rules: str,
        headers: Literal["outer", "inner"] = "outer",
        labels: bool = False,
        link: int = ETHERNET,
        timeout_s: float | None = None,
    ) -> Classes:
        """The first rule that each packet falls under.

        Args:
            packets: n of them, or their keys, a fraction of their bytes: `Keys.of` makes them of dissected packets.
            rules: name of a set that was put.
            headers: of packets in tunnels, which of their IP headers is looked at.
            labels: ask for the label of each rule too.
            link: link type of packets that come without one.
            timeout_s: how long to wait for each 16,384 packets, s.

        Raises:
            BadParameter: there is no set of this name.
            BadColumn: `packets` holds none.
            BadCapture: the file is no capture.
        """
        parameters: dict[str, Any] = {"rules": rules}
        if isinstance(packets, Keys):
            columns: Iterable[Columns] = [key_columns(packets)] if len(packets) else []
        else:
            columns = batches(packets, link)
            parameters |= {"headers": headers} if headers != "outer" else {}
        parameters |= {"labels": True} if labels else {}
        operation = self.rules.operation("classify", rules)
        parts = [await self._ask(operation, part, parameters, timeout_s) for part in columns]
        return Classes(
            np.concatenate([np.empty(0, np.int32), *(part["rule"] for part in parts)]),
            np.concatenate([np.empty(0, np.uint32), *(part["version"] for part in parts)]),
            [label for part in parts for label in part["label"]] if labels else None,
        )

    async def label(
        self,
        packets: PacketSource,
        *,
        headers: Literal["outer", "inner"] = "inner",
        link: int = ETHERNET,
        timeout_s: float | None = None,
    ) -> Labels:
        """The protocol that each packet carries, each looked at alone: `Labels.of_flows` brings flows together.

        Args:
            packets: n of them.
            headers: of packets in tunnels, whether what is carried is named or what carries it.
            link: link type of packets that come without one.
            timeout_s: how long to wait for each 16,384 packets, s.

        Raises:
            BadColumn: `packets` holds none.
            BadCapture: the file is no capture.
        """
        parameters: dict[str, Any] = {"headers": headers} if headers != "inner" else {}
        parts = [await self._ask("packets.label", part, parameters, timeout_s) for part in batches(packets, link)]
        return Labels(
            np.concatenate([np.empty(0, np.uint16), *(part["protocol"] for part in parts)]),
            np.concatenate([np.empty(0, np.uint8), *(part["how"] for part in parts)]),
        )

    async def balance(
        self, flows: Keys, backends: Mapping[str, float], *, slots: int | None = None, timeout_s: float | None = None
    ) -> Array:
        """The back end that takes each flow: the same for every packet of a direction, and for everybody who asks.

        Args:
            flows: n of them; addresses, ports and protocol are looked at.
            backends: weights by name, 0 for one that is to get no flows.
            slots: of the Maglev table, a prime number; 100 for each back end keep shares within 1 %. 65,537 by default.
            timeout_s: how long to wait, s.

        Returns:
            (n,) str, a name each.

        Raises:
            BadParameter: no back end has a weight above 0, or `slots` is no prime or too small.
        """
        names = np.array(sorted(backends), np.str_)
        if not len(flows):
            return names[:0]
        parameters: dict[str, Any] = {"backends": dict(backends)} | ({} if slots is None else {"slots": slots})
        answer = await self._ask("packets.balance", key_columns(flows, flow=True), parameters, timeout_s)
        chosen: Array = names[answer["backend"]]
        return chosen

    def flows(
        self,
        packets: TimedSource | AsyncIterable[Any],
        *,
        table: str | None = None,
        key: KeyChoice | None = None,
        timeouts: Timeouts | None = None,
        capacity: int = CAPACITY,
        link: int = ETHERNET,
        chunk: int = CHUNK_PACKETS,
        timeout_s: float = 30.0,
    ) -> AsyncGenerator[Flows, None]:
        """The flows of packets as they end, each once, kept in a table of a worker's; see docs/flows.md.

        What is lost with an engine is sent again. Flows of a capture, or of packets in memory, end by the packets' own
        time. Those of an async iterator, which gives packets as they come, also end by a clock that goes on from there.
        All flows that are left end with the source.

        Args:
            packets: the path of a capture, an open one, `agents.flow_chunks.Timed`, packets of scapy, an Arrow table
                with the columns `frame` and `time`; or an async iterator of these or of an interface's blocks.
            table: letters, digits, `_` and `-`; senders that name the same table share its flows. By default a new one.
            key: what names a flow; by default the ends of the innermost header.
            timeouts: when flows end; 120 s and 1,800 s by default.
            capacity: most flows at a time.
            link: link type of packets that come without one.
            chunk: most packets sent at once.
            timeout_s: for how long nothing may go on before it is given up, s.

        Returns:
            An async iterator.

        Raises:
            BadParameter: there is a table of this name that was made in another way, or the name is none.
            BadColumn: `packets` holds none, or no times.
            BadCapture: the file is no capture.
            NoWorker: nobody keeps flows.
            NotWritten: the worker cannot write the table down, and no more can be kept here.
            Forgotten: an answer was lost, and its flows made room for those of others who share the table.
        """
        return flows_by_worker(
            self._client,
            self._partitions,
            packets,
            table,
            key or KeyChoice(),
            timeouts or Timeouts(),
            capacity,
            link,
            chunk,
            timeout_s,
        )

    async def _ask(
        self, operation: str, columns: Columns, parameters: Mapping[str, Any], timeout_s: float | None
    ) -> dict[str, Any]:
        try:
            return await self._client.call_many(operation, columns, parameters, timeout_s=timeout_s, idempotent=True)
        except RowsFailed as error:  # one question: what befell its first packet befell it
            raise next(iter(error.errors.values())) from None


def key_columns(keys: Keys, *, flow: bool = False) -> Columns:
    """Keys as columns, in as few bytes as they need.

    Args:
        keys: of packets.
        flow: leave out what does not tell flows apart.
    """
    if (keys.version == 4).all():
        columns: Columns = {
            "source": keys.source_low.astype(np.uint32),
            "destination": keys.destination_low.astype(np.uint32),
        }
    else:
        columns = {
            "source": np.stack([keys.source_high, keys.source_low], axis=1),
            "destination": np.stack([keys.destination_high, keys.destination_low], axis=1),
        }
        if (keys.version != 6).any():
            columns["version"] = keys.version
    columns |= {name: getattr(keys, name) for name in ("source_port", "destination_port", "protocol")}
    if not flow and (keys.vlan != NO_VLAN).any():
        columns["vlan"] = keys.vlan
    if not flow and keys.tcp_flags.any():
        columns["tcp_flags"] = keys.tcp_flags
    return columns


def _joined(parts: Sequence[Mapping[str, Array]], name: str) -> Array:
    """A column of all parts' rows."""
    if not parts:
        dtypes = PACKET_DTYPES | HEADER_DTYPES
        return np.empty(0, dtypes[name.rpartition(".")[2]])
    return np.concatenate([part[name] for part in parts])
