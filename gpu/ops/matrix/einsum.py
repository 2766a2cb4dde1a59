"""matrix.einsum: sums of products of up to four operands, in Einstein's notation.

Operands are contracted two at a time, in the order that costs the fewest multiplications; torch alone would go from
left to right, where `ij,kl,jk->il` passes through all of i, j, k and l.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ....bus.columns import MAX_DIMENSIONS, Field, Schema
from ....bus.errors import BadColumn, BadParameter, TooLarge
from ...signature import Signature
from .operation import FLOATS, MatrixOperation, Reject
from .precision import Precision, products, widened

if TYPE_CHECKING:
    from torch import Tensor

MAX_STEP_ELEMENTS = 1 << 26  # of what stands between two contractions: of all rows computed at once, and of one row

_SPEC = re.compile(r"[A-Za-z]*(,[A-Za-z]*){0,3}->[A-Za-z]*")


class EinsumParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to sum, and how f4 is multiplied on CUDA.

    Attributes:
        spec: a letter a dimension of a row, `ij,jk->ik`; letters that the answer lacks are summed over.
        precision: see `precision.py`.
    """

    spec: str
    precision: Precision = "highest"


class Notation(NamedTuple):
    """A spec taken apart, with letters in the order in which they appear: `ij,jk->ik` and `xy,yz->xz` are one."""

    operands: tuple[str, ...]
    answer: str


class Step(NamedTuple):
    """One contraction: takes the operands at two places out of the list and puts their product at its end."""

    left: int
    right: int
    answer: str


class Plan(NamedTuple):
    """The contractions of one row, and the elements of the largest thing that stands between two of them."""

    steps: tuple[Step, ...]
    largest: int


class Einsum(MatrixOperation):
    """Einstein's summation over each row's `a`, `b`, `c` and `d`, as many as `spec` has, such as ij,jk->ik."""

    name = "matrix.einsum"
    signature = Signature(
        {name: f"T[...{name}]" for name in "abcd"}, {"y": "T[...y]"}, {"T": FLOATS}, optional=("b", "c", "d")
    )
    parameters = EinsumParameters

    def lane_key(self, schema: Schema, parameters: EinsumParameters) -> Hashable:
        """Rows of one meaning share a lane, whatever letters they say it in."""
        return notation(parameters.spec), parameters.precision

    def rule(self, operands: Sequence[Field], parameters: EinsumParameters) -> Field:
        """Each letter has one size; the answer has those of its letters."""
        spec = notation(parameters.spec)
        sizes = _sizes(parameters.spec, spec, operands)
        largest = plan(spec, tuple(operand.shape for operand in operands)).largest
        if largest > MAX_STEP_ELEMENTS:
            raise TooLarge(
                f"spec {parameters.spec!r} goes through {largest} elements a row between two products, more than "
                f"{MAX_STEP_ELEMENTS}: send smaller operands, or fewer at once"
            )
        return Field(operands[0].dtype, tuple(sizes[letter] for letter in spec.answer))

    def compute(self, operands: Sequence[Tensor], parameters: EinsumParameters, reject: Reject) -> Tensor:
        """Contract all rows together, or as many at once as `MAX_STEP_ELEMENTS` allows."""
        import torch

        spec = notation(parameters.spec)
        steps, largest = plan(spec, tuple(tuple(operand.shape[1:]) for operand in operands))
        dtype, rows = operands[0].dtype, len(operands[0])
        # What torch rounds only once may stay as it is where the hardware multiplies it.
        given = list(operands) if operands[0].is_cuda and _is_one_product(spec) else widened(operands)
        at_once = max(1, MAX_STEP_ELEMENTS // max(1, largest))
        parts = [
            _contract(spec, steps, [operand[first : first + at_once] for operand in given], parameters.precision)
            for first in range(0, rows, at_once)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)


@lru_cache(maxsize=1024)
def notation(spec: str) -> Notation:
    """Take a spec apart.

    Raises:
        BadParameter: it is not of the form `ij,jk->ik`; the message says what to change.
    """
    text = spec.replace(" ", "")
    if _SPEC.fullmatch(text) is None:
        raise BadParameter(
            f"spec {spec[:80]!r}: write a letter a dimension of a row, commas between one to four operands, and the "
            "answer's letters after ->, such as 'ij,jk->ik'; the rows' own axis is not written"
        )
    inputs, answer = text.split("->")
    letters = dict.fromkeys(inputs.replace(",", ""))
    for letter, times in Counter(answer).items():
        if times > 1 or letter not in letters:
            raise BadParameter(
                f"spec {spec[:80]!r}: {letter!r} of the answer "
                + (
                    "stands there twice: write it once"
                    if times > 1
                    else "is in no operand: take it out, or add it to one"
                )
            )
    if len(answer) >= MAX_DIMENSIONS or len(letters) >= len(string.ascii_letters):
        raise BadParameter(
            f"spec {spec[:80]!r} has {len(answer)} dimensions in the answer and {len(letters)} letters: "
            f"use at most {MAX_DIMENSIONS - 1} and {len(string.ascii_letters) - 1}"
        )
    renamed = str.maketrans(dict(zip(letters, string.ascii_letters, strict=False)))
    return Notation(tuple(inputs.translate(renamed).split(",")), answer.translate(renamed))


@lru_cache(maxsize=4096)
def plan(spec: Notation, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """The cheapest order of contractions of operands that suit the notation; of four there are 18."""
    sizes = {
        letter: size
        for letters, shape in zip(spec.operands, shapes, strict=True)
        for letter, size in zip(letters, shape, strict=True)
    }
    return _cheapest(spec.operands, spec.answer, sizes)[1]


def _cheapest(operands: tuple[str, ...], answer: str, sizes: Mapping[str, int]) -> tuple[int, Plan]:
    """Multiplications and contractions of the best order."""
    if len(operands) <= 2:
        return _elements("".join(operands), sizes), Plan(() if len(operands) == 1 else (Step(0, 1, answer),), 0)
    found: list[tuple[int, Plan]] = []
    for left, right in itertools.combinations(range(len(operands)), 2):
        others = tuple(letters for place, letters in enumerate(operands) if place not in (left, right))
        both = operands[left] + operands[right]
        kept = "".join(letter for letter in dict.fromkeys(both) if letter in answer or letter in "".join(others))
        cost, rest = _cheapest((*others, kept), answer, sizes)
        steps = (Step(left, right, kept), *rest.steps)
        found.append((cost + _elements(both, sizes), Plan(steps, max(rest.largest, _elements(kept, sizes)))))
    return min(found, key=lambda order: (order[0], order[1].largest))


def _elements(letters: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in set(letters))


def _contract(spec: Notation, steps: Sequence[Step], operands: Sequence[Tensor], precision: Precision) -> Tensor:
    import torch

    row = string.ascii_letters[-1]  # `notation` leaves it free
    if not steps:
        return torch.einsum(f"{row}{spec.operands[0]}->{row}{spec.answer}", operands[0])
    letters, tensors = list(spec.operands), list(operands)
    for left, right, answer in steps:
        equation = f"{row}{letters[left]},{row}{letters[right]}->{row}{answer}"
        with products(tensors[left], precision):
            product = torch.einsum(equation, tensors[left], tensors[right])
        for place in (right, left):
            del letters[place], tensors[place]
        letters.append(answer)
        tensors.append(product)
    return tensors[0]


def _is_one_product(spec: Notation) -> bool:
    """Whether this is a batched matrix product and nothing is summed beside it."""
    if len(spec.operands) != 2:
        return False
    left, right = map(set, spec.operands)
    summed = (left | right) - set(spec.answer)
    return summed <= left & right and all(len(set(letters)) == len(letters) for letters in spec.operands)


def _sizes(text: str, spec: Notation, operands: Sequence[Field]) -> dict[str, int]:
    """The size of each letter."""
    if len(operands) != len(spec.operands):
        names = ", ".join("abcd"[: len(spec.operands)])
        raise BadColumn(
            f"spec {text[:80]!r} has {len(spec.operands)} operands, but {len(operands)} columns came: send {names}"
        )
    sizes: dict[str, int] = {}
    # Messages name the letters as the caller wrote them.
    written = text.replace(" ", "").partition("->")[0].split(",")
    for name, letters, given, operand in zip("abcd", spec.operands, written, operands, strict=False):
        if len(letters) != len(operand.shape):
            raise BadColumn(
                f"a row of column {name!r} has {len(operand.shape)} dimensions {list(operand.shape)}, but spec "
                f"{text[:80]!r} names {len(letters)}: {given[:80] or 'none'}"
            )
        for letter, shown, size in zip(letters, given, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise BadColumn(
                    f"column {name!r}: dimension {shown} of spec {text[:80]!r} is {size}, but {sizes[letter]} before it"
                )
    return sizes
