"""Where a device keeps flows that have not ended: a slot each, found by key."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from ...netio.flow_key import WORDS as KEY_WORDS
from .device_flow_runs import DeviceRuns, sorted_rows
from .flow_layout import SLOTS, WORDS
from .kernels import PacketKernels

if TYPE_CHECKING:
    from torch import Tensor


class DeviceFlowSlots:
    """Slots for records on the device, all of whose memory is taken at once.

    The index is that of `netio.flow_index`: linear probing, the lower half of the hash and the slot plus one in eight
    bytes. Hashes are computed again where they are needed.

    Args:
        kernels: of the device.
        capacity: how many.

    Attributes:
        seed: of the hashes.
        records: (capacity, WORDS) int64, each of `flow_record.RECORD`.
        begun, latest: (capacity,) int64, the clock at the first and the last packet of each flow.
        states: (capacity,) uint8, of `SLOTS`.
        used: slots from here on were never used.
    """

    def __init__(self, kernels: PacketKernels, capacity: int) -> None:
        import torch

        bits = max(4, (2 * capacity - 1).bit_length())
        place = kernels.device.place
        # Whoever sends the packets must not be able to choose keys that crowd the index.
        self.seed = secrets.randbits(64)
        self.records = torch.empty((capacity, WORDS), dtype=torch.int64, device=place)
        self.begun = torch.zeros(capacity, dtype=torch.int64, device=place)
        self.latest = torch.zeros(capacity, dtype=torch.int64, device=place)
        self.states = torch.zeros(capacity, dtype=torch.uint8, device=place)
        self.used = 0
        self._kernels = kernels
        self._index = torch.zeros(1 << bits, dtype=torch.int64, device=place)
        self._at = (64 - bits, (1 << bits) - 1)
        self._gone = 0
        # The first `_free_count` of these were used, and are free again.
        self._free = torch.empty(capacity, dtype=torch.int64, device=place)
        self._free_count = 0

    def __len__(self) -> int:
        """How many are taken."""
        return self.used - self._free_count

    @property
    def capacity(self) -> int:
        return len(self.states)

    @property
    def bytes(self) -> int:
        """Of the device's memory."""
        columns = (self.records, self.begun, self.latest, self.states, self._index, self._free)
        return sum(column.nbytes for column in columns)

    def taken(self) -> Tensor:
        """All slots that are taken: (n,) int64."""
        return self.states[: self.used].nonzero().flatten()

    def find(self, runs: DeviceRuns) -> Tensor:
        """The slot of each run's flow: (runs,) int64, -1 for none."""
        import torch

        slots = torch.empty_like(runs.begin)
        given = (runs.begin, len(runs.begin), runs.order, runs.keys, runs.hashes)
        self._kernels.launch("find_flows", len(slots), *given, self._index, *self._at, self.records, slots)
        return slots

    def take(self, count: int) -> Tensor:
        """Slots for new flows: (count,) int64. `add` is told of them when their records are there."""
        import torch

        reused = min(count, self._free_count)
        self._free_count -= reused
        first, self.used = self.used, self.used + count - reused
        fresh = torch.arange(first, self.used, device=self._free.device)
        return torch.cat([self._free[self._free_count :][:reused], fresh])

    def add(self, slots: Tensor) -> None:
        """Lets `find` find the flows of these slots, which differ from all that it finds."""
        given = (slots, len(slots), self.records, self.seed, self._index, *self._at)
        self._kernels.launch("index_flows", len(slots), *given)

    def free(self, slots: Tensor) -> None:
        """Forgets the flows of these slots, which are others' then."""
        count = len(slots)
        given = (slots, count, self.records, self.seed, self._index, *self._at, self.states)
        self._kernels.launch("forget_flows", count, *given)
        self._free[self._free_count :][:count] = slots
        self._free_count += count
        # At most: some places of the index are taken again.
        self._gone += count
        if self._gone > len(self._index) // 4:
            self._index.zero_()
            self._gone = 0
            self.add(self.taken())

    def put(self, records: Tensor, begun: Tensor, latest: Tensor, is_empty: Tensor) -> None:
        """Adds flows that were another table's, (n,) each, whose keys no flow here has."""
        slots = self.take(len(records))
        self.records[slots] = records
        self.begun[slots], self.latest[slots] = begun, latest
        self.states[slots] = SLOTS["LIVE"] + is_empty.to(self.states.dtype)
        self.add(slots)

    def empty(self, slots: Tensor) -> None:
        """Empties records of flows that go on."""
        self._kernels.launch("empty_flows", len(slots), slots, len(slots), self.records, self.states)

    def due(self, now_ns: int, idle_ns: int, active_ns: int) -> Tensor:
        """What time has made of each slot that was used: (used,) uint8, of `flow_layout.DUE`; time-outs may be 0."""
        import torch

        due = torch.empty(self.used, dtype=torch.uint8, device=self.states.device)
        limits = (self.used, now_ns % 2**64, idle_ns, active_ns)
        self._kernels.launch("find_due_flows", self.used, *limits, self.begun, self.latest, self.states, due)
        return due

    def oldest(self, number: int, kept: Tensor) -> Tensor:
        """The flows without packets for longest, of equal ones those that began first: slots, at most `number`.

        Args:
            number: at least 1.
            kept: (k,) int64, slots that are none of them.
        """
        import torch

        may_go = self.states[: self.used] > SLOTS["OPEN"]
        may_go[kept] = False
        slots = may_go.nonzero().flatten()
        number = min(number, len(slots))
        latest = self.latest[slots]
        bound = torch.topk(latest, number, largest=False, sorted=False).values.max()
        older, tied = slots[latest < bound], slots[latest == bound]
        # By serial number, which records without packets do not have, and then by key, as `FlowTable` does.
        first = sorted_rows(self.records[tied, : KEY_WORDS + 1])
        return torch.cat([older, tied[first[: number - len(older)]]])
