"""The rule sets of one engine, compiled: once a version, and kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from ...bus.columns import Array
from ...netio.classify import Classifier, compile_rules
from ..device import Device
from ..directory import directory_of
from ..origin import Seen
from .kernels import DeviceClassifier, PacketKernels
from .rule_store import RuleInfo, RuleStore

MOST_COMPILED = 64


@dataclass(frozen=True, eq=False)
class Compiled:
    """One version of a rule set, ready on this engine.

    Attributes:
        info: name, version and digest.
        classifier: finds first matches on the host.
        on_device: the same on a GPU, where the kernels are.
        seen: the file that it was read from.
    """

    info: RuleInfo
    classifier: Classifier
    on_device: DeviceClassifier | None
    seen: Seen

    def labels(self, rows: Array) -> list[str]:
        """The label of each rule, and nothing where the row is -1."""
        rules = self.classifier.rules
        names = [*rules.labels, ""]
        return [names[label] for label in np.append(rules.label, len(rules.labels))[rows].tolist()]


class RuleSets:
    """Rule sets by name. Several threads may use it at once.

    Args:
        directory: where the worker keeps what outlives an engine; empty for a folder that goes with the process.

    Attributes:
        kernels: that classify on a GPU; None where there is none, or no CuPy.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._store: RuleStore | None = None
        self.kernels: PacketKernels | None = None

    def open(self, device: Device) -> None:
        """Make ready on the engine's device. Idempotent."""
        if self._store is not None:
            return
        self._store = RuleStore(directory_of(self, self._directory) / "rules")
        self.kernels = PacketKernels.on(device)

    @property
    def store(self) -> RuleStore:
        """Their files."""
        assert self._store is not None, "opened before the first batch"
        return self._store

    def compiled(self, name: str) -> Compiled:
        """The version of a set that is there now. What was returned stays as it is, whatever is put meanwhile.

        Raises:
            BadValue: that is no name.
            BadParameter: nothing has been put under it.
        """
        seen = self.store.seen(name)
        with self._lock:
            found = self._compiled.get(name)
            if found is not None and found.seen == seen:
                self._compiled.move_to_end(name)
                return found
        info, rules = self.store.read(name)
        if found is not None and found.info.digest == info.digest:
            made = replace(found, info=info, seen=seen)
        else:
            classifier = compile_rules(rules)
            prepared = None if self.kernels is None else self.kernels.prepared(classifier)
            made = Compiled(info, classifier, prepared, seen)
        with self._lock:
            self._compiled[name] = made
            self._compiled.move_to_end(name)
            while len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        return made

    def relieve(self) -> None:
        """Let go of what is compiled; it is compiled again when it is asked for."""
        with self._lock:
            self._compiled.clear()
