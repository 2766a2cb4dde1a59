"""Expressions: what one may write, the steps it amounts to, and the type of each step's answer. Loads no torch.

The syntax is Python's, of which little is admitted: names, numbers, `+ - * / @ **` and the functions of `functions.py`.
Nothing is ever executed as Python. Shapes are those of a row, so `x @ w` is written the same for one row and for many.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from ..bus.columns import Field
from ..bus.errors import BadParameter, BusError, TooLarge
from .functions import FUNCTIONS, Function, Literal, Number

MAX_LENGTH = 2000  # characters
MAX_DEPTH = 50
MAX_STEPS = 256
MAX_ROW_BYTES = 256 << 20  # of what stands between the steps of one row
LARGEST_INTEGER = 1 << 31  # of axes

# What is no token of these is told before Python's own parser sees it, which would warn about some of it.
_TOKEN = re.compile(
    r" |(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?j?(?![\w.])|[A-Za-z_]\w*|'[\w,> -]*'|\"[\w,> -]*\"|\*\*|[-+*/@(),=\[\]]",
    re.ASCII,
)
_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.MatMult: "@",
    ast.Pow: "**",
}
_ON_NUMBERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": lambda a, b: complex(a) ** b if isinstance(a, complex) else float(a) ** b,
}


class Value(NamedTuple):
    """A value by its number: the names' come first, then the steps'."""

    number: int


class Step(NamedTuple):
    """One function applied: its operands, its options, and how it was written."""

    function: Function
    operands: tuple[Value | Number, ...]
    options: Any
    text: str


class Program(NamedTuple):
    """An expression taken apart: equal parts are one step.

    Attributes:
        names: the first values, as the expression calls them.
        steps: the values that follow.
        answer: what it amounts to.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    answer: Value


class Type(NamedTuple):
    """The type of a value: of a row of it, and whether each row has its own or all share one."""

    field: Field
    has_rows: bool


class Plan(NamedTuple):
    """A program for values of known types. The steps that all rows share come first, whatever their place.

    Attributes:
        program: the steps.
        types: of every value.
        dead: by the number of a step's value, the values that no step after it needs.
        shared_peak_bytes, row_peak_bytes: most bytes of values alive at once, of those that all rows share and of one
            row's own.
    """

    program: Program
    types: tuple[Type, ...]
    dead: tuple[tuple[int, ...], ...]
    shared_peak_bytes: int = 0
    row_peak_bytes: int = 0

    @property
    def answer(self) -> Type:
        """The type of what the expression amounts to."""
        return self.types[self.program.answer.number]

    def places(self, *, of_rows: bool) -> Iterator[tuple[int, Step]]:
        """The steps that each row has of its own, or those that all share: number of their value, and step."""
        for number, step in enumerate(self.program.steps, len(self.program.names)):
            if self.types[number].has_rows == of_rows:
                yield number, step


@lru_cache(maxsize=1024)
def parse(expression: str) -> Program:
    """Take an expression apart.

    Raises:
        BadParameter: it is none, or beyond the limits; the message says where and what to change.
    """
    if len(expression) > MAX_LENGTH:
        raise BadParameter(f"the expression has {len(expression)} characters: use at most {MAX_LENGTH}")
    text = " ".join(expression.split())
    _check_tokens(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise BadParameter(f"expression {text[:80]!r} cannot be read{where}: write it as Python has it") from None
    return _Reader(text, tree).program()


def infer(program: Program, types: Mapping[str, Type]) -> Plan:
    """The type of every value, and when it is needed last.

    Args:
        program: the steps.
        types: of what the names stand for.

    Raises:
        BadParameter: a name stands for nothing, or a function's operands do not suit it.
        TooLarge: a step of one row needs more than `MAX_ROW_BYTES`.
    """
    missing = [name for name in program.names if name not in types]
    if missing:
        raise BadParameter(f"{missing[0]!r} is neither a column nor a handle: send it, or correct the expression")
    values = [types[name] for name in program.names]
    for step in program.steps:
        operands = [values[one.number].field if isinstance(one, Value) else one for one in step.operands]
        has_rows = any(values[one.number].has_rows for one in step.operands if isinstance(one, Value))
        try:
            field = step.function.rule(operands, step.options)
            needed = field.row_bytes + step.function.inner_bytes(operands, step.options)
        except BusError as error:
            error_type = TooLarge if isinstance(error, TooLarge) else BadParameter
            raise error_type(f"in {step.text!r}, whose operands are a, b and so on: {error}") from None
        if has_rows and needed > MAX_ROW_BYTES:
            raise TooLarge(f"{step.text!r} needs {needed} bytes for one row, at most {MAX_ROW_BYTES}: send less")
        values.append(Type(field, has_rows))
    plan = Plan(program, tuple(values), _dead(program, values))
    shared, of_row = _peak_bytes(plan, of_rows=False), _peak_bytes(plan, of_rows=True)
    return plan._replace(shared_peak_bytes=shared, row_peak_bytes=of_row)


def _peak_bytes(plan: Plan, *, of_rows: bool) -> int:
    """Most bytes of steps' answers that are alive at once.

    Args:
        plan: the steps.
        of_rows: of values that each row has of its own, for one row; else of those that all share.
    """
    alive = peak = 0
    sizes: dict[int, int] = {}
    for number, step in plan.places(of_rows=of_rows):
        operands = [plan.types[one.number].field if isinstance(one, Value) else one for one in step.operands]
        sizes[number] = plan.types[number].field.row_bytes
        alive += sizes[number]
        peak = max(peak, alive + step.function.inner_bytes(operands, step.options))
        alive -= sum(sizes.pop(dead, 0) for dead in plan.dead[number])
    return peak


def _dead(program: Program, types: Sequence[Type]) -> tuple[tuple[int, ...], ...]:
    """By the value that a step makes, the values that are needed for it last."""
    order = sorted(range(len(program.names), len(types)), key=lambda number: types[number].has_rows)
    last = {
        one.number: number
        for number in order
        for one in program.steps[number - len(program.names)].operands
        if isinstance(one, Value) and one != program.answer
    }
    # What all share is there for the rows that follow.
    dead = {value: at for value, at in last.items() if types[value].has_rows == types[at].has_rows}
    return tuple(tuple(value for value, at in dead.items() if at == number) for number in range(len(types)))


class _Reader:
    """Makes the steps of a syntax tree, innermost first."""

    def __init__(self, text: str, tree: ast.Expression) -> None:
        self._text = text
        self._tree = tree
        nodes = list(ast.walk(tree))
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        names = dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called)
        self._names = {name: Value(number) for number, name in enumerate(names)}
        self._steps: list[Step] = []
        self._known: dict[Any, Value] = {}

    def program(self) -> Program:
        """The whole."""
        answer = self._read(self._tree.body, 1)
        if not isinstance(answer, Value):
            raise BadParameter(f"expression {self._text[:80]!r} has no column and no handle in it: name one")
        return Program(tuple(self._names), tuple(self._steps), answer)

    def _read(self, node: ast.expr, depth: int) -> Value | Number:
        if depth > MAX_DEPTH:
            raise BadParameter(f"the expression nests deeper than {MAX_DEPTH}: write it in several")
        match node:
            case ast.Name(id=name):
                return self._names[name]
            case ast.Constant(value=int() | float() | complex() as number) if not isinstance(number, bool):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self._read(operand, depth + 1)
                return self._step(FUNCTIONS["negative"], [value], {}, node) if isinstance(value, Value) else -value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                operands = [self._read(left, depth + 1), self._read(right, depth + 1)]
                symbol = _OPERATORS[type(op)]
                if not any(isinstance(operand, Value) for operand in operands):
                    return self._of_numbers(symbol, operands, node)
                return self._step(FUNCTIONS[symbol], operands, {}, node)
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS and name != "negative":
                return self._call(FUNCTIONS[name], node, depth)
            case ast.Call(func=ast.Name(id=name)):
                known = ", ".join(name for name in sorted(FUNCTIONS) if name.isalpha() and name != "negative")
                raise BadParameter(f"there is no function {name[:40]!r}: use {known}")
        raise BadParameter(f"{self._source(node)!r} is not admitted: use names, numbers, + - * / @ ** and functions")

    def _call(self, function: Function, node: ast.Call, depth: int) -> Value:
        arguments = list(node.args)
        given: dict[str, Literal] = {}
        if function.name == "einsum" and arguments:  # as NumPy has it
            spec = arguments.pop(0)
            given["spec"] = _literal(self._source(spec), spec)
        operands = [self._read(argument, depth + 1) for argument in arguments[: function.most]]
        positional = zip(function.names, arguments[function.most :], strict=False)
        if len(arguments) > function.most + len(function.names) - len(given):
            raise BadParameter(f"{self._source(node)!r}: {function.name} takes {_takes(function)}")
        for name, argument in positional:
            given[name] = _literal(self._source(argument), argument)
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg not in function.names or keyword.arg in given:
                raise BadParameter(f"{self._source(node)!r}: {function.name} takes {_takes(function)}")
            given[keyword.arg] = _literal(self._source(keyword.value), keyword.value)
        return self._step(function, operands, given, node)

    def _step(
        self, function: Function, operands: Sequence[Value | Number], given: Mapping[str, Literal], node: ast.expr
    ) -> Value:
        text = self._source(node)
        if not function.least <= len(operands) <= function.most:
            raise BadParameter(f"{text!r}: {function.name} takes {_takes(function)}")
        if not function.takes_numbers and not all(isinstance(operand, Value) for operand in operands):
            raise BadParameter(f"{text!r}: {function.name} takes tensors, not a number: write its value")
        try:
            options = function.options(given)
        except msgspec.ValidationError as error:
            raise BadParameter(f"{text!r}: {error}") from None
        # The type too: 1, 1.0 and True are equal, and name different numbers.
        key = (function.name, tuple((type(one), one) for one in operands), msgspec.msgpack.encode(options))
        if key not in self._known:
            if len(self._steps) == MAX_STEPS:
                raise BadParameter(f"the expression has more than {MAX_STEPS} steps: write it in several")
            self._steps.append(Step(function, tuple(operands), options, text))
            self._known[key] = Value(len(self._names) + len(self._steps) - 1)
        return self._known[key]

    def _of_numbers(self, symbol: str, operands: Sequence[Any], node: ast.expr) -> Number:
        """A number made of two; large powers are floats, so that none is made of millions of digits."""
        try:
            found: Number = _ON_NUMBERS[symbol](*operands)
        except (ArithmeticError, KeyError):
            raise BadParameter(f"{self._source(node)!r} is no number: correct it") from None
        if symbol == "**" and isinstance(found, float) and found.is_integer() and abs(found) < 1 << 53:
            return int(found) if all(isinstance(operand, int) for operand in operands) else found
        return found

    def _source(self, node: ast.expr) -> str:
        found = self._text[node.col_offset : node.end_col_offset]
        return found if len(found) <= 60 else f"{found[:57]}..."


def _check_tokens(expression: str) -> None:
    """Raise BadParameter at what is no part of the language."""
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise BadParameter(
                f"expression {expression[:80]!r}: {expression[position : position + 10]!r} at character "
                f"{position + 1} is not admitted: use names, numbers, + - * / @ ** and functions"
            )
        position = match.end()


def _literal(text: str, node: ast.expr) -> Literal:
    """An argument that is no tensor: an integer, True, False, None, a str, or integers in parentheses or brackets.

    Raises:
        BadParameter: it is something else.
    """
    match node:
        case ast.Constant(value=bool() | None | str() as value):
            return value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return [_integer(text, element) for element in elements]
    return _integer(text, node)


def _integer(text: str, node: ast.expr) -> int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < LARGEST_INTEGER:
        return sign * node.value
    raise BadParameter(f"{text!r} must be written out: an integer, integers in parentheses, True, False or None")


def _takes(function: Function) -> str:
    tensors = str(function.most) if function.least == function.most else f"{function.least} to {function.most}"
    further = ", ".join(function.names)
    return f"{tensors} tensors" + (f", and {further}" if further else "")
