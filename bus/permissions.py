"""Who may publish and subscribe to what, and the nats-server configuration that says so.

Callers ask, agents also serve their own handlers and hear topics, workers serve operations, an operator makes the
streams, and a recorder, where there is to be one, listens. Each user has an inbox of its own: under the default
`_INBOX.>` anybody could read the answers to others. `docs/security.md` says what follows from it; its tables are tested
against a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .discovery import AGENTS, KEEPERS, NAME
from .jobs import JobSubjects
from .leases import LEASES
from .partition_log import LOG
from .snapshots import SNAPSHOT
from .subjects import Subjects, check_tokens

WORKER = "worker"
OPERATOR = "operator"
RECORDER = "recorder"

# What agents keep, to coordinate and of their own: the last word of a bucket's or of a stream's name.
LOCKS = "locks"
SHARED = "shared"
TASKS = "tasks"
BURIED = "buried"
STATE = "state"

# The system of context graphs, and the token below a worker's inbox where the processes that keep them have theirs.
CONTEXT = "context"
KEPT_APART = "keepers"

# How often, and for how long after it came, an agent may answer a request. One answer would not do: the question
# whether the caller still listens is a message to the same inbox, and a frame's rows may be answered one by one.
ANSWERS = {"max": 1024, "expires": "10m"}

# What the server holds every connection to. A client that does not read is cut off at `max_pending` bytes.
LIMITS = {"max_connections": 4096, "max_subscriptions": 16384, "max_pending": 64 * 2**20}


@dataclass(frozen=True)
class User:
    """What one user may do.

    Attributes:
        name: one subject token, unique on the bus.
        publish: subjects it may publish to, but for those of `never`.
        subscribe: subjects it may subscribe to; `subject queue` only as one of that queue group.
        answers: it may also publish to the reply subjects of requests that reached it.
        takes: it may subscribe as one of a queue group, whose other members then get less.
    """

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never: tuple[str, ...] = ()
    answers: bool = False
    takes: bool = True

    def config(self, public_key: str) -> dict[str, Any]:
        """The user as the server's configuration has it, known by its public NKey."""
        permissions: dict[str, Any] = {
            "publish": {"allow": self.publish, "deny": self.never},
            "subscribe": {"allow": self.subscribe},
        }
        if not self.takes:
            permissions["subscribe"]["deny"] = ["> >"]  # any subject, in any group
        if self.answers:
            permissions["allow_responses"] = ANSWERS
        return {"nkey": public_key, "permissions": permissions}


def inbox(name: str) -> str:
    """The inbox prefix of a user, its setting `nats.inbox_prefix`."""
    return f"_INBOX_{name}"


def user_of(inbox_prefix: str) -> str:
    """Whose inbox prefix this is; empty for none of such a user."""
    user = inbox_prefix.removeprefix("_INBOX_")
    return "" if user == inbox_prefix or "." in user else user


def users(
    subjects: Subjects,
    callers: Iterable[str],
    agents: Iterable[str],
    systems: Iterable[str],
    *,
    records: bool = False,
) -> list[User]:
    """Every user of a bus.

    Args:
        subjects: the bus's subject tree.
        callers, agents: their names.
        systems: what workers serve, by the first token of operations' names.
        records: there is a recorder.

    Raises:
        ValueError: a name is not one subject token, or two users have it.
    """
    callers, agents, systems = list(callers), list(agents), list(systems)
    names = [*callers, *agents, WORKER, OPERATOR, RECORDER]
    for name in names:
        check_tokens(name, "user")
        if "." in name:
            raise ValueError(f"user {name!r}: its name cannot have a dot, which parts subjects")
        if names.count(name) > 1:
            raise ValueError(f"two users are called {name!r}: rename one ({', '.join(names[-3:])} are always taken)")
    return [
        *(caller(subjects, name) for name in callers),
        *(agent(subjects, name) for name in agents),
        worker(subjects, systems, [*callers, *agents, OPERATOR]),
        operator(subjects),
        *([recorder(subjects, systems, [*callers, *agents])] if records else []),
    ]


def caller(subjects: Subjects, name: str) -> User:
    """Asks workers and agents, at once or for later, and hears nothing but the answers, and which agents there are."""
    return User(
        name,
        _asks(subjects),
        (_all(name), f"{subjects.presence}.*"),
        never=(f"{subjects.root}.topic.>", f"{subjects.presence}.*", *_not_asked(subjects)),
    )


def agent(subjects: Subjects, name: str) -> User:
    """A caller that also serves its handlers, and tells and hears topics.

    It may answer those who asked it only. For a worker, which answers thousands of frames a second, the server would
    remember too many of them: about 200 bytes each until they expire.
    """
    return User(
        name,
        (*_asks(subjects), *_coordinates(subjects), *_remembers(subjects, name)),
        (
            *(_all(name), f"{subjects.root}.agent.{name}.>", f"{subjects.root}.topic.>"),
            *(subjects.presence, f"{subjects.presence}.*"),
            *(subjects.control, f"{subjects.control}.{name}.*", *_told(AGENTS)),
            *(_kept_under(subjects, kind) for kind in (LOCKS, SHARED)),
        ),
        never=_not_asked(subjects),
        answers=True,
    )


def worker(subjects: Subjects, systems: Iterable[str], askers: Iterable[str]) -> User:
    """Serves operations of `systems` as one of their queue groups, and answers the inboxes of `askers`."""
    served = [f"{subjects.operation(system)}{rest} {system}" for system in systems for rest in ("", ".>")]
    return User(
        WORKER,
        (*map(_all, askers), *_outcomes(subjects), *_takes(subjects), *_keeps(subjects), *_hands_over(subjects)),
        (
            *(_all(WORKER), subjects.control, f"{subjects.control}.*", subjects.faults),
            *(*served, *_told(NAME), *_told(KEEPERS), _kept_under(subjects, LEASES)),
            # Who keeps a graph hears all that is said to it: in a queue group a stranger would get a part.
            f"{subjects.operation(CONTEXT)}.*.*",
        ),
    )


def operator(subjects: Subjects) -> User:
    """Makes streams, looks after them and removes them; has workers that are set to do so misbehave.

    Nobody else may: who makes a stream may have it record any subject, inboxes included.
    """
    return User(OPERATOR, ("$JS.API.>", subjects.faults), (_all(OPERATOR),))


def recorder(subjects: Subjects, systems: Iterable[str], askers: Iterable[str]) -> User:
    """Hears what is asked of `systems`, and all that is answered to `askers`; publishes nothing.

    Whose answer is to which request, only the requests tell: no narrower right would do.
    """
    asked = [f"{subjects.operation(system)}{rest}" for system in systems for rest in ("", ".>")]
    return User(RECORDER, (), (*asked, *map(_all, askers)), never=(">",), takes=False)


def server_config(
    keys: Mapping[str, str],
    users: Iterable[User],
    *,
    port: int,
    max_payload: int,
    store_dir: str,
    tls_cert: str = "",
    tls_key: str = "",
) -> str:
    """The configuration of a nats-server that admits these users and nobody else.

    Args:
        keys: public NKeys, by user.
        users: who may connect.
        port: where it listens: on loopback only, unless it has a certificate.
        max_payload: largest message, headers included, bytes.
        store_dir: folder of JetStream's data.
        tls_cert, tls_key: PEM files of its certificate; with them it admits encrypted connections only.
    """
    own: dict[str, Any] = {
        "host": "0.0.0.0" if tls_cert else "127.0.0.1",
        "port": port,
        "max_payload": max_payload,
        **LIMITS,
        "jetstream": {"store_dir": store_dir},
    }
    if tls_cert:
        own["tls"] = {"cert_file": tls_cert, "key_file": tls_key}
    lines = ["# Made by `aikoryu auth init`; docs/security.md says what each user may do, and what is not bounded."]
    lines += [f"{key}: {_value(value)}" for key, value in own.items()]
    lines += ["accounts {", "  AIKORYU {", "    jetstream: enabled", "    users: ["]
    for user in users:
        lines += [f"      # {user.name}", f"      {_value(user.config(keys[user.name]))}"]
    return "\n".join([*lines, "    ]", "  }", "}", ""])


_VERBS = ("PING", "INFO", "STATS")


def _told(service: str) -> list[str]:
    """What is asked of whoever is of a service's name (ADR-32)."""
    return [f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", f".{service}", f".{service}.*")]


def _all(name: str) -> str:
    return f"{inbox(name)}.>"


def _asks(subjects: Subjects) -> tuple[str, ...]:
    """What whoever asks publishes: requests, jobs and looks for their results, and discovery's questions."""
    names = JobSubjects(subjects)
    looks = (f"$JS.API.DIRECT.GET.{names.results}", f"$JS.API.STREAM.INFO.{names.jobs}")
    return (f"{subjects.root}.>", *looks, *(f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", ".>")))


def _outcomes(subjects: Subjects) -> tuple[str, ...]:
    """What becomes of jobs, for workers to say."""
    names = JobSubjects(subjects)
    return (names.result("*"), names.dead_letter("*", ">"))


def _not_asked(subjects: Subjects) -> tuple[str, ...]:
    """What is under the root, and not asked by callers and agents."""
    return (*_outcomes(subjects), *_between_keepers(subjects), subjects.faults)


def _between_keepers(subjects: Subjects) -> tuple[str, ...]:
    """What keepers of context graphs ask one another."""
    return tuple(f"{subjects.operation(CONTEXT)}.{asked}" for asked in ("move", "yield.*"))


def _hands_over(subjects: Subjects) -> list[str]:
    """What a keeper publishes to hand a graph to another: it asks, withdraws what it asked, and answers."""
    return [*_between_keepers(subjects), subjects.control, f"{inbox(WORKER)}.{KEPT_APART}.>"]


def _takes(subjects: Subjects) -> list[str]:
    """What a worker publishes to take jobs, and to learn whether one has its result."""
    names = JobSubjects(subjects)
    consumers = [f"$JS.API.CONSUMER.{verb}.{names.jobs}.>" for verb in ("CREATE", "MSG.NEXT")]
    made = [f"$JS.API.STREAM.INFO.{name}" for name in (names.jobs, names.results, names.dead)]
    return [*consumers, *made, f"$JS.API.DIRECT.GET.{names.results}", f"$JS.ACK.{names.jobs}.>"]


def _keeps(subjects: Subjects) -> list[str]:
    """What a worker publishes to hold leases, and to write and read logs and snapshots."""
    verbs = ("STREAM.INFO", "STREAM.MSG.GET", "STREAM.PURGE", "DIRECT.GET")
    return [
        *_bucket(subjects, LEASES),
        *(_kept_under(subjects, kind) for kind in (LOG, SNAPSHOT)),
        *(f"$JS.API.{verb}.{subjects.stream(kind)}" for kind in (LOG, SNAPSHOT) for verb in verbs),
    ]


def _coordinates(subjects: Subjects) -> list[str]:
    """What an agent publishes to hold locks, share values, and put, claim and bury tasks."""
    tasks, dead = subjects.stream(TASKS), subjects.stream(BURIED)
    return [
        *_bucket(subjects, LOCKS),
        *_bucket(subjects, SHARED),
        f"$JS.API.DIRECT.GET.KV_{subjects.stream(SHARED)}",
        *(_kept_under(subjects, kind) for kind in (TASKS, BURIED)),
        *(f"$JS.API.{verb}.{dead}" for verb in ("STREAM.INFO", "DIRECT.GET")),
        f"$JS.API.STREAM.INFO.{tasks}",
        *(f"$JS.API.CONSUMER.{verb}.{tasks}.>" for verb in ("CREATE", "MSG.NEXT")),
        f"$JS.ACK.{tasks}.>",
    ]


def _remembers(subjects: Subjects, name: str) -> list[str]:
    """What an agent publishes to keep its states, and to read them."""
    states = subjects.stream(STATE)
    return [f"{subjects.kept(STATE)}.{name}.>", *(f"$JS.API.STREAM.{verb}.{states}" for verb in ("INFO", "MSG.GET"))]


def _bucket(subjects: Subjects, kind: str) -> list[str]:
    """What is published to change the keys of a bucket, and to read them."""
    name = subjects.stream(kind)
    return [f"$KV.{name}.>", *(f"$JS.API.STREAM.{verb}.KV_{name}" for verb in ("INFO", "MSG.GET"))]


def _kept_under(subjects: Subjects, kept: str) -> str:
    return f"{subjects.kept(kept)}.>"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
