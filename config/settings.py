"""Everything that can be tuned. A field is declared once, here: its name, default, type, bounds and meaning.

`load` reads the command line, the environment and the TOML file against these declarations; `describe` lists them.
A group made by hand (`BatchSettings(window_s=0)`) is checked in the same way. File names are relative to the working
directory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta

from .sources import Setting, find_file, from_environ, from_file, from_flags

MIB = 2**20
TIB = 2**40

Port = Annotated[int, Meta(ge=0, le=65535)]
Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\Z", title="letters, digits, - and _")]
Prefix = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z", title="words of letters, digits, - and _ joined by dots")
]
Name = Annotated[str, Meta(pattern=r"^\S+\Z", title="a name without spaces")]


@dataclass(frozen=True, slots=True)
class Group:
    """A table of settings; what is not allowed raises `ConfigError` when the group is made."""

    def __post_init__(self) -> None:
        (group,) = (name for name, cls in _groups().items() if cls is type(self))
        for item in dataclasses.fields(self):
            checked = _table()[f"{group}.{item.name}"].check(getattr(self, item.name), "the program")
            # Assigned as well, because the check makes 1 a float and a list a tuple.
            object.__setattr__(self, item.name, checked)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings(Group):
    """How to reach the NATS server, and as whom."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(nats|tls)://[^\s@]+\Z",
            title="nats://host:port or tls://host:port, the user and password under keys of their own",
            description="Address of the server.",
        ),
    ] = "nats://127.0.0.1:4222"
    user: Annotated[str, Meta(description="User name; empty = none.")] = ""
    password: Annotated[str, Meta(description="Password of the user.")] = field(default="", repr=False)
    nkey_seed_file: Annotated[str, Meta(description="File with the seed of an NKey; empty = none.")] = ""
    creds_file: Annotated[str, Meta(description="File with a JWT and its seed; empty = none.")] = ""
    tls_ca: Annotated[str, Meta(description="PEM file that vouches for the server; empty = the system's.")] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of this client's certificate; empty = none.")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key; empty = none.")] = ""
    inbox_prefix: Annotated[Prefix, Meta(description="Subject prefix under which replies are received.")] = "_INBOX"
    connect_timeout_s: Annotated[float, Meta(gt=0, le=3600, description="Longest wait for a connection, in s.")] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(Group):
    """The embedded nats-server, for this machine only."""

    host: Annotated[Literal["127.0.0.1", "::1", "localhost"], Meta(description="Loopback address it listens on.")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="Port it listens on; 0 = any free one.")] = 4222
    store_dir: Annotated[
        str, Meta(description="Folder of its durable data; empty = a temporary one, removed when it stops.")
    ] = ""
    sync_interval: Annotated[
        str,
        Meta(
            pattern=r"^(always|[1-9]\d{0,5}(ms|s|m|h)|)\Z",
            title="always, a time as 10s or 500ms, or nothing",
            description="When durable data is synced to the disk; empty = every two minutes, as nats-server does.",
        ),
    ] = ""
    max_payload_bytes: Annotated[
        int, Meta(ge=1024, le=64 * MIB, description="Largest message, headers included, in bytes.")
    ] = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings(Group):
    """Subjects, frames and calls."""

    prefix: Annotated[Token, Meta(description="First token of every subject.")] = "aikoryu"
    namespace: Annotated[Token, Meta(description="Token that keeps deployments on one server apart.")] = "default"
    timeout_s: Annotated[float, Meta(gt=0, le=86400, description="Deadline of a call that names none, in s.")] = 30.0
    frame_bytes: Annotated[
        int, Meta(ge=1024, le=64 * MIB, description="Size at which coalesced rows are sent as a frame, in bytes.")
    ] = 98304
    reply_prefixes: Annotated[
        tuple[Prefix, ...],
        Meta(min_length=1, description="Inbox prefixes a worker may answer to; _INBOX admits _INBOX.x and _INBOX_a.x."),
    ] = ("_INBOX",)
    partitions: Annotated[
        int,
        Meta(ge=1, le=65536, description="Parts that keys of tensors are dealt to; the same for all on the bus."),
    ] = 64
    presence_ttl_s: Annotated[
        float, Meta(ge=0.3, le=60, description="Longest that agents of a dead process are still found, in s.")
    ] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings(Group):
    """When a window closes, and how much may wait."""

    window_s: Annotated[
        float, Meta(ge=0, le=60, description="Longest a row waits for company while the engine is busy, in s.")
    ] = 0.001
    max_rows: Annotated[int, Meta(ge=1, le=MIB, description="Most rows of one batch.")] = 4096
    max_bytes: Annotated[
        int, Meta(ge=1024, le=TIB, description="Most bytes of one batch, inputs and outputs together.")
    ] = 32 * MIB
    target_s: Annotated[
        float, Meta(gt=0, le=60, description="A batch is sized to take about this long on the device, in s.")
    ] = 0.05
    queue_rows: Annotated[int, Meta(ge=1, le=TIB, description="Most rows waiting; beyond it callers get busy.")] = 65536
    queue_bytes: Annotated[
        int, Meta(ge=1024, le=TIB, description="Most bytes waiting; beyond it callers get busy.")
    ] = 256 * MIB
    lanes: Annotated[int, Meta(ge=1, le=65536, description="Most lanes at once; beyond it callers get busy.")] = 1024
    limit_s: Annotated[
        float, Meta(gt=0, le=86400, description="Longest a batch may run; an engine that takes longer is ended, in s.")
    ] = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSettings(Group):
    """The engine that runs without a GPU."""

    threads: Annotated[
        int, Meta(ge=0, le=4096, description="Threads it computes with; 0 = one fewer than the cores, at least one.")
    ] = 0
    slots: Annotated[
        int, Meta(ge=1, le=64, description="Batches handed to the engine at once: one runs, the others are staged.")
    ] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSettings(Group):
    """The engines that run on GPUs."""

    streams: Annotated[
        int, Meta(ge=1, le=32, description="Batches that run at the same time on one GPU, a stream each.")
    ] = 3
    slots: Annotated[int, Meta(ge=1, le=64, description="Batches a front hands to a GPU's engine at once.")] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings(Group):
    """When an operation that fails on a GPU goes to the CPU at once, and for how long."""

    failures: Annotated[int, Meta(ge=1, le=1000, description="Failures within the window that open the breaker.")] = 3
    window_s: Annotated[float, Meta(gt=0, le=86400, description="Length of the window, in s.")] = 10.0
    cool_s: Annotated[
        float, Meta(gt=0, le=86400, description="How long it stays open before the GPU is tried again, in s.")
    ] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(Group):
    """One worker."""

    device: Annotated[
        str,
        Meta(
            pattern=r"^(auto|cpu|cuda:\d+(,cuda:\d+)*)\Z",
            title="auto, cpu, cuda:0 or several as cuda:0,cuda:1",
            description="Where batches run; auto = every GPU there is, else the CPU.",
        ),
    ] = "auto"
    spare: Annotated[
        Literal["auto", "cpu", "none"],
        Meta(description="Engine that runs what the device cannot, the models loaded again; auto = cpu behind a GPU."),
    ] = "auto"
    reserve: Annotated[
        bool,
        Meta(description="Keep a second, loaded process of each device's engine to take over; its memory twice."),
    ] = False
    fronts: Annotated[
        int, Meta(ge=1, le=256, description="Processes that speak to the bus; they share the engines.")
    ] = 1

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]*\Z",
            title="letters, digits, - and _, or nothing",
            description="Its name; empty = host and process id.",
        ),
    ] = ""
    metrics_port: Annotated[
        Port, Meta(description="Port of /metrics for Prometheus, /healthz and /readyz for probes; 0 = off.")
    ] = 0
    metrics_host: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9.:-]+\Z",
            title="an address or name of this machine, 0.0.0.0 or :: for all",
            description="Address that this port listens on.",
        ),
    ] = "127.0.0.1"
    drain_s: Annotated[
        float, Meta(ge=0, le=3600, description="Longest a stop waits for the rows already accepted, in s.")
    ] = 30.0
    operations: Annotated[
        tuple[Name, ...], Meta(description="Modules or Python files with further operations, imported at start.")
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentSettings(Group):
    """Tensors that agents leave with a worker."""

    partitions: Annotated[
        str,
        Meta(
            pattern=r"^(all|none|\d{1,5}-\d{1,5})\Z",
            title="all, none, or the first and last as 0-31",
            description="Which partitions this worker keeps; no two workers of a namespace may keep the same.",
        ),
    ] = "all"
    directory: Annotated[
        str, Meta(description="Folder in which each worker makes one for them; empty = that of temporary files.")
    ] = ""
    device_bytes: Annotated[
        int, Meta(ge=0, le=TIB, description="Most bytes of them on a device; 0 = half of its memory.")
    ] = 0
    host_bytes: Annotated[
        int, Meta(ge=0, le=1024 * TIB, description="Most bytes of them in the folder; 0 = half of what is free there.")
    ] = 0
    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86400, description="How long one is kept after its last use, in s.")] = (
        3600.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings(Group):
    """Durable work: jobs that outlive workers and servers."""

    in_flight: Annotated[
        int, Meta(ge=0, le=65536, description="Most jobs of one operation a worker has at once; 0 = it takes none.")
    ] = 1024
    max_deliver: Annotated[
        int, Meta(ge=1, le=1000, description="Times a job may fail before it becomes a dead letter.")
    ] = 5
    retry_s: Annotated[
        float, Meta(ge=0, le=60, description="Rest before a failed job is tried again; it doubles each time, in s.")
    ] = 1.0
    ack_wait_s: Annotated[
        float, Meta(ge=0.5, le=3600, description="When the jobs of a worker that fell silent go to others, in s.")
    ] = 30.0
    max_bytes: Annotated[
        int, Meta(ge=MIB, le=TIB, description="Most bytes of jobs waiting; beyond it submitters get busy.")
    ] = 1024 * MIB
    results_bytes: Annotated[
        int, Meta(ge=MIB, le=TIB, description="Most bytes of results kept; beyond it the oldest go.")
    ] = 1024 * MIB
    results_ttl_s: Annotated[float, Meta(ge=60, le=365 * 86400, description="How long a result is kept, in s.")] = (
        86400.0
    )
    replicas: Annotated[
        int, Meta(ge=1, le=5, description="Servers of a cluster that each keep jobs and results; 3 outlives one.")
    ] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings(Group):
    """Context graphs: what agents know, blended over whom they hear."""

    enabled: Annotated[bool, Meta(description="Whether this worker keeps context graphs, in a process of its own.")] = (
        True
    )
    lease_s: Annotated[
        int, Meta(ge=1, le=3600, description="Longest that a graph waits for another keeper when its own dies, in s.")
    ] = 5
    window_rows: Annotated[
        int, Meta(ge=1, le=MIB, description="Most puts and links that are applied to a graph together.")
    ] = 4096
    snapshot_bytes: Annotated[
        int, Meta(ge=MIB, le=TIB, description="Bytes of a graph's log after which a snapshot takes their place.")
    ] = 256 * MIB
    retry_device_s: Annotated[
        float, Meta(gt=0, le=86400, description="When a device that failed under a graph is tried again, in s.")
    ] = 30.0
    limit_s: Annotated[
        float,
        Meta(gt=0, le=86400, description="Longest a window may take on the device before it counts as lost, in s."),
    ] = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings(Group):
    """Which models a worker serves."""

    embed: Annotated[tuple[Name, ...], Meta(description="Embedding models loaded at start.")] = ("all-MiniLM-L6-v2",)
    directory: Annotated[str, Meta(description="Folder of model files; empty = the installed package.")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSettings(Group):
    """What a worker does wrong when it is asked to: for tests, off by default."""

    enabled: Annotated[
        bool, Meta(description="Whether faults may be injected; only on a deployment that may fail.")
    ] = False
    rules: Annotated[
        tuple[Name, ...], Meta(description="Faults in force from the start; docs/faults.md has them.")
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings(Group):
    """What is logged, and for whom."""

    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Meta(description="Least severe level that is logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json"],
        Meta(description="console for people, json for machines; auto = console on a terminal, else json."),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All groups; a TOML table, and the middle of a variable's name, is the group's name here."""

    nats: NatsSettings = field(default_factory=NatsSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    bus: BusSettings = field(default_factory=BusSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    cpu: CpuSettings = field(default_factory=CpuSettings)
    cuda: CudaSettings = field(default_factory=CudaSettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    residents: ResidentSettings = field(default_factory=ResidentSettings)
    jobs: JobSettings = field(default_factory=JobSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    faults: FaultSettings = field(default_factory=FaultSettings)
    log: LogSettings = field(default_factory=LogSettings)


def load(
    file: Path | None = None, environ: Mapping[str, str] = os.environ, flags: Mapping[str, object] = {}
) -> Settings:
    """Read the settings: `flags` win over `AIKORYU_<GROUP>_<KEY>` variables, these over the file, it over the defaults.

    Args:
        file: TOML file of `[group]` tables; None = the one `AIKORYU_CONFIG` names, else `./aikoryu.toml` if it exists.
        environ: environment; lists are written with commas.
        flags: values by dotted key, `{"nats.url": "nats://10.0.0.1:4222"}`, as text or typed.

    Raises:
        ConfigError: a key is unknown or a value is not allowed, in any source, overridden or not.
    """
    table = _table()
    path = file or find_file(environ)
    values = (from_file(path, table) if path else {}) | from_environ(environ, table) | from_flags(flags, table)
    given: dict[str, dict[str, Any]] = {group: {} for group in _groups()}
    for key, value in values.items():
        group, _, name = key.partition(".")
        given[group][name] = value
    return Settings(**{group: cls(**given[group]) for group, cls in _groups().items()})


def describe() -> Iterator[tuple[str, object, str, str]]:
    """Yield (key, default, what is allowed, meaning) of every setting, in the order of declaration."""
    for setting in _table().values():
        yield setting.key, setting.default, setting.allowed, setting.doc


@cache
def _groups() -> dict[str, type[Any]]:
    return get_type_hints(Settings)


@cache
def _table() -> dict[str, Setting]:
    """Every setting by its key, as the annotations of the groups declare it."""
    settings = (
        Setting(
            key=f"{group}.{item.name}",
            type=hint,
            default=item.default,
            doc=next(meta.description for meta in hint.__metadata__ if meta.description),
            secret=not item.repr,
        )
        for group, cls in _groups().items()
        for item in dataclasses.fields(cls)
        for hint in [get_type_hints(cls, include_extras=True)[item.name]]
    )
    return {setting.key: setting for setting in settings}
