"""Parts: a batch cut into smaller ones, no row lost and none twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .plan import Plan, Span


def by_frame(spans: Iterable[Span]) -> list[list[Span]]:
    """Consecutive spans of one frame together: a frame gets one reply a batch."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][0].ticket is span.ticket:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def split(plan: Plan) -> list[Plan]:
    """A batch as one batch for each frame."""
    return _parts(plan, by_frame(plan.spans))


def cut(plan: Plan, most: int) -> list[Plan]:
    """A batch as batches of at most `most` rows; a frame is cut only where it has more than these."""
    if plan.rows <= most:
        return [plan]
    groups: list[list[Span]] = [[]]
    room = most
    for frame in by_frame(plan.spans):
        if groups[-1] and sum(span.count for span in frame) > room:
            groups.append([])
            room = most
        for span in frame:
            start, end = span.start, span.start + span.count
            while start < end:
                if not room:
                    groups.append([])
                    room = most
                count = min(end - start, room)
                groups[-1].append(Span(span.ticket, start, count))
                start += count
                room -= count
    return _parts(plan, groups)


def _parts(plan: Plan, groups: Iterable[list[Span]]) -> list[Plan]:
    parts: list[Plan] = []
    first = 0
    for spans in groups:
        rows = sum(span.count for span in spans)
        gone = {position - first for position in plan.gone if first <= position < first + rows}
        parts.append(replace(plan, spans=spans, rows=rows, expired=[], gone=gone))
        first += rows
    return parts
