"""`aikoryu auth`: users of a NATS server and their seeds, and the streams that none but the operator may make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

import uvloop

from ..agents import open_transport
from ..agents.coordination import streams as coordination_streams
from ..bus.jetstream import JetStream
from ..bus.jobs import JobSubjects, streams
from ..bus.lease_bucket import LeaseBucket
from ..bus.leases import LEASES
from ..bus.partition_log import log_stream
from ..bus.permissions import CONTEXT, OPERATOR, RECORDER, WORKER, User, inbox, server_config, users
from ..bus.snapshots import snapshot_stream
from ..bus.subjects import Subjects, queue_group
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed

CONFIG = "nats-server.conf"

_DESCRIPTION = """\
Say who may do what on a NATS server. docs/security.md has the whole of it.

  aikoryu auth init DIRECTORY
  aikoryu auth streams --set nats.nkey_seed_file=DIRECTORY/operator.seed \\
    --set nats.inbox_prefix=_INBOX_operator"""

_INIT = """\
Write, into DIRECTORY, the configuration of a NATS server and a seed for each of
its users, by which the server knows them:

  callers    ask workers and agents, and hear nothing but the answers
  agents     are callers that serve their own handlers, hear topics, and
             coordinate
  worker     serves operations, and answers
  operator   makes the streams: `aikoryu auth streams`
  recorder   with --recorder: hears all that is asked and answered, for
             `aikoryu record`

Without a certificate the server listens on this machine only.

  aikoryu auth init auth
  aikoryu auth init auth --callers alice bob --agents planner
  aikoryu auth init auth --tls-cert server.crt --tls-key server.key
  aikoryu auth init auth --callers alice bob carol --update"""

_STREAMS = """\
Make the streams of durable work, of context graphs, and those that agents
coordinate by, on a NATS server where workers and agents may not, unless they
are there. `aikoryu auth init` prints the settings of its operator.

  aikoryu auth streams --set nats.nkey_seed_file=auth/operator.seed \\
    --set nats.inbox_prefix=_INBOX_operator"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "auth", "users and their rights, for a NATS server", _DESCRIPTION)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = add_command(actions, "init", "write a server's configuration and its users' seeds", _INIT)
    init.add_argument("directory", type=Path, metavar="DIRECTORY", help="where they go; made if it is not there")
    init.add_argument("--callers", nargs="+", default=["caller"], metavar="NAME", help="default: one, caller")
    init.add_argument("--agents", nargs="+", default=["agent"], metavar="NAME", help="default: one, agent")
    init.add_argument("--recorder", action="store_true", help="one more user, who hears requests and all answers")
    init.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM file of the server's certificate")
    init.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file of the certificate's key")
    init.add_argument(
        "--update", action="store_true", help="write the configuration anew; seeds that are there stay as they are"
    )
    init.add_argument(
        "--operations",
        action="append",
        metavar="FILE_OR_MODULE",
        help="what the workers will be given, for the operations in it; repeatable",
    )
    add_settings(init)
    init.set_defaults(run=run)
    make = add_command(actions, "streams", "make the streams of durable work, as the operator", _STREAMS)
    add_settings(make, nats=True)
    make.set_defaults(run=make_streams)


def run(options: argparse.Namespace) -> int:
    """Write the files, and say what to do next."""
    settings = settings_of(options)
    files = _certificate(options.tls_cert, options.tls_key)
    try:
        subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        systems = _systems(settings)
        admitted = users(subjects, options.callers, options.agents, systems, records=options.recorder)
    except ValueError as error:
        raise Failed(str(error)) from None
    directory: Path = options.directory
    try:
        keys = _keys(directory, [user.name for user in admitted], update=options.update)
        config = server_config(
            keys,
            admitted,
            port=settings.server.port,
            max_payload=settings.server.max_payload_bytes,
            store_dir=settings.server.store_dir or str(directory.resolve() / "jetstream"),
            **files,
        )
        _replace(directory / CONFIG, config)
    except OSError as error:
        raise Failed(f"{error.filename} cannot be written ({error.strerror}): correct its name or rights") from None
    print(_what_next(directory, settings, admitted, options.callers + options.agents, encrypted=bool(files)))
    return 0


def make_streams(options: argparse.Namespace) -> int:
    """Make what is missing, and name it."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    uvloop.run(_make_streams(settings))
    return 0


async def _make_streams(settings: Settings) -> None:
    subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
    transport = await open_transport(settings)
    try:
        async with JetStream(transport) as jetstream:
            durable = streams(JobSubjects(subjects), settings.jobs)
            leases = LeaseBucket(jetstream, subjects, LEASES).config
            owned = [leases, log_stream(subjects), snapshot_stream(subjects)]
            for config in [*durable, *owned, *coordination_streams(jetstream, subjects)]:
                await jetstream.ensure_stream(config)
                print(f"{config['name']} is there.")
    finally:
        await transport.close()


def _certificate(cert: Path | None, key: Path | None) -> dict[str, str]:
    if cert is None and key is None:
        return {}
    if cert is None or key is None:
        raise Failed("a certificate and its key go together: give --tls-cert FILE and --tls-key FILE")
    for file in (cert, key):
        if not file.is_file():
            raise Failed(f"{file}: no such file; docs/security.md says how openssl makes a certificate and its key")
    return {"tls_cert": str(cert.resolve()), "tls_key": str(key.resolve())}


def _systems(settings: Settings) -> list[str]:
    """The systems that workers with these settings serve."""
    from ..gpu.registry import Catalogue, load

    try:
        operations = load(Catalogue(modules=settings.worker.operations))
    except (ImportError, ValueError) as error:
        raise Failed(str(error)) from error
    # Which models there are is the workers' to know; context graphs are kept by a process of its own.
    return sorted({queue_group(name) for name in operations} | {"models", CONTEXT})


def _keys(directory: Path, names: Iterable[str], *, update: bool) -> dict[str, str]:
    """The public key of each user, whose seeds are made where there is none."""
    seeds = {name: _seed_file(directory, name) for name in names}
    if not update:
        for path in (directory / CONFIG, *seeds.values()):
            if path.exists():
                raise Failed(
                    f"{path} is there already: name another directory, or say --update to write the configuration "
                    "anew and keep the seeds"
                )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {name: _public_key(path) for name, path in seeds.items()}


def _public_key(path: Path) -> str:
    import nkeys  # here, because every command is loaded to list them

    try:
        # Readable by its owner alone from the first moment, and never written over.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        seed = path.read_bytes().strip()
    else:
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        with os.fdopen(descriptor, "wb") as file:
            file.write(seed)
    try:
        return str(nkeys.from_seed(bytearray(seed)).public_key.decode())
    except (nkeys.NkeysError, ValueError):
        raise Failed(f"{path} holds no NKey seed: restore it, or remove it to have a new one made") from None


def _replace(path: Path, text: str) -> None:
    """Write a file whole: a server that is told to read it again never finds half of it."""
    draft = path.with_suffix(".new")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def _seed_file(directory: Path, name: str) -> Path:
    return directory / f"{name}.seed"


def _what_next(directory: Path, settings: Settings, admitted: list[User], askers: list[str], *, encrypted: bool) -> str:
    port = settings.server.port
    shared = {"nats.url": f"tls://HOST:{port}" if encrypted else f"nats://127.0.0.1:{port}"}
    if encrypted:
        shared["nats.tls_ca"] = "CA.pem"
    shared |= {
        f"bus.{name}": getattr(settings.bus, name)
        for name in ("prefix", "namespace")
        if getattr(settings.bus, name) != getattr(Settings().bus, name)
    }

    def flags(name: str, **more: str) -> str:
        own = {"nats.nkey_seed_file": str(_seed_file(directory, name)), "nats.inbox_prefix": inbox(name)}
        return " ".join(f"--set {quote(f'{key}={value}')}" for key, value in {**shared, **own, **more}.items())

    operations = "".join(f" --operations {quote(module)}" for module in settings.worker.operations)
    prefixes = ",".join(map(inbox, [*askers, OPERATOR, WORKER]))  # a worker asks itself for the jobs it has taken
    lines = [
        f"{directory} holds {CONFIG}, and the seeds of {', '.join(user.name for user in admitted)}.",
        "Who has a seed is that user: give each to its user alone.",
        "",
        "Start the server:",
        f"  nats-server -c {quote(str(directory / CONFIG))}",
        "",
        "Make the streams of durable work, once:",
        f"  aikoryu auth streams {flags(OPERATOR)}",
        "",
        "Start a worker:",
        f"  aikoryu {WORKER}{operations} {flags(WORKER, **{'bus.reply_prefixes': prefixes})}",
        "",
        "Callers and agents have settings of their own, here for a look at the bus:",
        *(f"  aikoryu ls {flags(name)}" for name in askers),
    ]
    if RECORDER in (user.name for user in admitted):
        heard = flags(RECORDER, **{"bus.reply_prefixes": ",".join(map(inbox, askers))})
        lines += ["", "Record what is asked and answered:", f"  aikoryu record FILE --subjects 'matrix.>' {heard}"]
    if encrypted:
        lines += ["", "HOST is a name in the certificate, CA.pem the file of the authority that signed it."]
    return "\n".join(lines)
