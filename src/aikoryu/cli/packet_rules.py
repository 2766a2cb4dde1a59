"""`aikoryu packets rules`: rule sets looked at in files, and put on the bus."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from ..agents import Bus, connect
from ..config import configure_logging
from ..netio.rule_formats import detect, read_rules
from ..netio.rule_report import report
from ..netio.rule_text import written
from ..netio.rules import BadRules, RuleSet
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .table import table

FORMATS = {"aikoryu": "our own format", "classbench": "ClassBench", "dpdk": "DPDK"}

_DESCRIPTION = """\
Look at rule sets in files, and put them on the bus. docs/rules.md tells the
formats: our own, ClassBench's and DPDK's.

  aikoryu packets rules check edge.rules
  aikoryu packets rules put edge edge.rules
  aikoryu packets rules list"""

_CHECK = """\
Read the rules of a file, without a bus: bad lines are named with what to write
instead, and rules that the set could do without with those that make them so.
The exit status is 1 if there are any.

  aikoryu packets rules check edge.rules"""

_PUT = """\
Let a name stand for the rules of a file, on the worker that keeps it; packets
are classified by it from their next batch on.

  aikoryu packets rules put edge edge.rules
  aikoryu packets rules put edge edge.rules --nats nats://10.0.0.1:4222"""

_LIST = """\
List the rule sets that workers on the bus keep.

  aikoryu packets rules list"""

_DELETE = """\
Let a name stand for no rules.

  aikoryu packets rules delete edge"""


@dataclass(frozen=True)
class RuleFile:
    """The rules of a file.

    Attributes:
        rules: the set.
        lines: number of each rule's line, from 1.
        form: what its format is called.
    """

    rules: RuleSet
    lines: list[int]
    form: str

    @classmethod
    def read(cls, path: Path) -> RuleFile:
        """The rules of a file.

        Raises:
            Failed: it cannot be read, or some rules are none; their lines are named.
        """
        text = _text(path)
        try:
            rules = read_rules(text)
        except BadRules as error:
            count = f"{len(error.problems)} bad line" + "s" * (len(error.problems) > 1)
            raise Failed(f"{path} has {count}\n{error}") from None
        lines = [number for number, line in enumerate(text.splitlines(), 1) if line.partition("#")[0].strip()]
        return cls(rules, lines, FORMATS[detect(text)])

    def text(self, row: int) -> str:
        """A rule in our own format."""
        return written(self.rules[row])


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "rules", "look at rule sets, and put them on the bus", _DESCRIPTION)
    verbs = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = add_command(verbs, "check", "bad, shadowed and redundant rules of a file", _CHECK)
    check.add_argument("file", type=Path, metavar="FILE", help="a rule set")
    check.set_defaults(run=check_file)
    put = add_command(verbs, "put", "let a name stand for the rules of a file", _PUT)
    put.add_argument("name", metavar="NAME", help="letters, digits, _ and -")
    put.add_argument("file", type=Path, metavar="FILE", help="a rule set")
    list_ = add_command(verbs, "list", "the sets on the bus", _LIST)
    delete = add_command(verbs, "delete", "let a name stand for nothing", _DELETE)
    delete.add_argument("name", metavar="NAME", help="of the set")
    for verb, run in ((put, put_set), (list_, list_sets), (delete, delete_set)):
        add_settings(verb, nats=True)
        verb.set_defaults(run=run)


def check_file(options: argparse.Namespace) -> int:
    """Print what a set could do without; 1 if that is anything."""
    file = RuleFile.read(options.file)
    found = report(file.rules)
    labels = len(set(file.rules.label.tolist()))
    said = [f"{options.file}: {_count(len(file.rules), 'rule')}, {_count(labels, 'label')}, {file.form}"]
    if found.shadowed:
        said.append(_listed(file, "SHADOWED: NO PACKET REACHES IT", "TAKEN BY LINE", found.shadowed.items()))
    if found.redundant:
        redundant = [(row, (by,)) for row, by in found.redundant.items()]
        said.append(_listed(file, "REDUNDANT: A LATER RULE SAYS THE SAME", "SAID BY LINE", redundant))
    if not (found.shadowed or found.redundant):
        said.append("no rule is shadowed or redundant")
    if not found.complete:
        said.append("not all pairs of rules were compared: there may be more")
    print("\n\n".join(said))
    return int(bool(found.shadowed or found.redundant))


def put_set(options: argparse.Namespace) -> int:
    """Put the rules of a file."""
    text = _text(options.file)
    info = _ask(options, lambda bus: bus.packets.rules.put(options.name, text))
    print(f"{info.name} stands for {_count(info.rules, 'rule')}, version {info.version}")
    return 0


def list_sets(options: argparse.Namespace) -> int:
    """Print the sets there are."""
    found = _ask(options, lambda bus: bus.packets.rules.list())
    rows = [[info.name, f"{info.version:,}", f"{info.rules:,}", info.digest] for info in found]
    print(table([["NAME", "VERSION", "RULES", "DIGEST"], *rows], "<>><") if rows else "no rule sets are on the bus")
    return 0


def delete_set(options: argparse.Namespace) -> int:
    """Delete a set; 1 if there was none."""
    deleted = _ask(options, lambda bus: bus.packets.rules.delete(options.name))
    if not deleted:
        raise Failed(f"no rule set is called {options.name!r}: `aikoryu packets rules list` names those there are")
    print(f"{options.name} stands for nothing any more")
    return 0


def _ask(options: argparse.Namespace, ask: Callable[[Bus], Awaitable[Any]]) -> Any:
    """What workers answer."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)

    async def asked() -> Any:
        async with connect(settings=settings) as bus:
            return await ask(bus)

    return uvloop.run(asked())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failed(f"{path} is no text: name a file of rules") from None


def _listed(file: RuleFile, heading: str, because: str, found: Iterable[tuple[int, Sequence[int]]]) -> str:
    rows = [
        [str(file.lines[row]), file.text(row), ", ".join(str(file.lines[other]) for other in by)] for row, by in found
    ]
    return table([["LINE", heading, because], *rows], "><<")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
