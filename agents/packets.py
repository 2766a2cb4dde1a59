"""Packets: their headers, the rules they fall under, and the back ends that take their flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ..bus.client import Client
from ..bus.pending import RowsFailed
from ..netio.packets import HEADER_DTYPES, PACKET_DTYPES, Headers, Packets
from .frames import ETHERNET, Columns, PacketSource, batches

Array: TypeAlias = "NDArray[Any]"


class Network:
    """What workers do with packets.

    Packets come as whatever holds them: the path of a capture, bytes, packets of scapy, or an Arrow table with a column
    `frame` (see `agents.frames`). Every call may be sent again after a lost connection.

    Args:
        client: asks the workers.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

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
            columns: which columns are wanted, `error`, `outer.dport` or `inner.src_low`: all of them are 185 bytes a
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

    async def _ask(
        self, operation: str, columns: Columns, parameters: Mapping[str, Any], timeout_s: float | None
    ) -> dict[str, Any]:
        try:
            return await self._client.call_many(operation, columns, parameters, timeout_s=timeout_s, idempotent=True)
        except RowsFailed as error:  # one question: what befell its first packet befell it
            raise next(iter(error.errors.values())) from None


def _joined(parts: Sequence[Mapping[str, Array]], name: str) -> Array:
    """A column of all parts' rows."""
    if not parts:
        dtypes = PACKET_DTYPES | HEADER_DTYPES
        return np.empty(0, dtypes[name.rpartition(".")[2]])
    return np.concatenate([part[name] for part in parts])
