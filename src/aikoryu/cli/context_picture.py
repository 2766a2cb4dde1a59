"""The picture of whom a context reaches, as SVG: the agent in the middle, those who hear it on rings around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from .context_reach import Edge, Place, Reach, places_of

WIDTH = 1000
MARGIN = 40.0
HEAD, FOOT = 104.0, 120.0  # above and below of all names, px
NEAREST, FARTHEST, ALONE = 150.0, 330.0, 260.0  # radii of the first ring, of the last, and of the only one
GAP = math.radians(13)  # at the top, where the rings are named
LARGEST, SMALLEST, CENTRE = 8.0, 3.5, 13.0  # radius of an agent, and of the one in the middle
LETTER = 6.1  # mean width of one, at 10.5 px
MOST_ROOM = 138.0  # for a name outside of the last ring

INK, FAINT, RING, LINK, TWIG, UNKNOWN = "#24292f", "#6e7781", "#e4e8ec", "#97a3ae", "#d3dae0", "#ffffff"
TWIG_WIDTH = 0.5  # of a link by which nobody is reached first, beside that of one that does
SCALE = ((255, 247, 214), (199, 227, 187), (111, 190, 190), (42, 137, 179), (33, 86, 148), (30, 42, 92))


def draw(reach: Reach) -> str:
    """The picture, a whole SVG document."""
    return "\n".join(_Picture(reach).parts()) + "\n"


class _Picture:
    """Draws one reach; the agent in the middle is the origin, sizes are px."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._places = places_of(reach, GAP)
        rings = max(reach.hops.values())
        self._radii = [0.0] + [_radius(ring, rings) for ring in range(1, rings + 1)]
        self._lowest, self._highest = _range(reach)
        self._weights = sorted({edge.weight for edge in reach.edges})
        tips = (self._radii[reach.hops[name]] + _width(name) for name in self._places)
        self._radius = min(max(tips, default=3 * CENTRE), self._radii[-1] + MOST_ROOM)  # names included
        self._height = round(HEAD + 2 * self._radius + FOOT)

    def parts(self) -> Iterator[str]:
        """The document, element by element."""
        size = f'viewBox="0 0 {WIDTH} {self._height}" width="{WIDTH}" height="{self._height}"'
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title subtitle" '
            f'font-family="DejaVu Sans, Verdana, sans-serif" fill="{INK}">'
        )
        yield f'<rect width="{WIDTH}" height="{self._height}" fill="#ffffff"/>'
        yield from self._heading()
        yield f'<g transform="translate({WIDTH / 2:g} {HEAD + self._radius:.1f})">'
        for radius in self._radii[1:]:
            yield f'<circle r="{radius:.1f}" fill="none" stroke="{RING}"/>'
        yield from self._links()
        for ring, radius in enumerate(self._radii[1:], 1):
            how = f'y="{3.5 - radius:.1f}" font-size="10" fill="{FAINT}" text-anchor="middle"'
            yield from _over_lines(_hops(ring), how)
        for name, place in self._places.items():
            yield from self._agent(name, place)
        yield from self._middle()
        yield "</g>"
        yield from self._colours()
        yield from self._samples()
        yield "</svg>"

    def _heading(self) -> Iterator[str]:
        reach = self._reach
        hearers, far = len(reach.hops) - 1, max(reach.hops.values())
        what = f"{hearers:,} agent{'s' * (hearers > 1)} within {_hops(far)}" if hearers else "nobody hears it"
        more = f"; {reach.left_out:,} more are left out" if reach.left_out else ""
        title = escape(f"Whom {_short(reach.agent, 40)} reaches")
        yield f'<text id="title" x="{MARGIN:g}" y="52" font-size="22" font-weight="bold">{title}</text>'
        yield (
            f'<text id="subtitle" x="{MARGIN:g}" y="76" font-size="13" fill="{FAINT}">'
            f"Graph {escape(reach.graph)} at epoch {reach.epoch:,}: {what}{more}</text>"
        )

    def _links(self) -> Iterator[str]:
        """Links by which agents are reached first over the others, so that each is seen to its end."""
        for edge in sorted(self._reach.edges, key=lambda edge: (edge.is_branch, edge.weight)):
            colour, share = (LINK, 1.0) if edge.is_branch else (TWIG, TWIG_WIDTH)
            told = escape(f"{edge.target} hears {edge.source}, weight {edge.weight:.3g}")
            yield (
                f'<path d="{self._path(edge)}" fill="none" stroke="{colour}" '
                f'stroke-width="{share * self._stroke(edge.weight):.2f}"><title>{told}</title></path>'
            )

    def _path(self, edge: Edge) -> str:
        """A line that leaves and arrives along the radius."""
        (near, out), (far, into) = (
            (self._radii[self._reach.hops[name]], self._places[name].angle if name in self._places else 0.0)
            for name in (edge.source, edge.target)
        )
        if not near or not far:  # the middle has no direction
            return f"M{_point(near, out)}L{_point(far, into)}"
        half = (near + far) / 2 if near != far else near * 0.72
        return f"M{_point(near, out)}C{_point(half, out)} {_point(half, into)} {_point(far, into)}"

    def _agent(self, name: str, place: Place) -> Iterator[str]:
        hop = self._reach.hops[name]
        radius = self._radii[hop]
        size = min(LARGEST, max(SMALLEST, 0.42 * place.room * radius))
        left = math.cos(place.angle) < 0
        turned = math.degrees(place.angle) + (180 if left else 0)
        at = -radius if left else radius  # of the turned picture, so that names on the left are not upside down
        # Those with others behind them stand above the line that goes there.
        end = self._radii[hop + 1] - LARGEST if place.has_branches else self._radius
        away, down = (size + 2, -5.0) if place.has_branches else (size + 5, 3.7)
        label = _short(name, int((end - radius - away) / LETTER))
        yield f'<g transform="rotate({turned:.2f})">'
        yield self._dot(name, at, size)
        how = f'x="{at - away if left else at + away:.1f}" y="{down:g}" font-size="10.5"'
        yield from _over_lines(label, f'{how} text-anchor="{"end" if left else "start"}"')
        yield "</g>"

    def _middle(self) -> Iterator[str]:
        yield f'<circle r="{CENTRE:g}" fill="{INK}"><title>{escape(self._reach.agent)}</title></circle>'
        how = f'y="{CENTRE + 19:g}" font-size="14" font-weight="bold" text-anchor="middle"'
        yield from _over_lines(_short(self._reach.agent, 24), how)

    def _dot(self, name: str, x: float, size: float) -> str:
        alike = self._reach.alike[name]
        span = self._highest - self._lowest
        fill = UNKNOWN if alike is None else _colour((alike - self._lowest) / span)
        told = escape(f"{name}, {'no context' if alike is None else f'{alike:.3f} alike'}")
        dot = f'cx="{x:.1f}" r="{size:.1f}" fill="{fill}" {_outline(alike is None)}'
        return f"<circle {dot}><title>{told}</title></circle>"

    def _colours(self) -> Iterator[str]:
        x, y, width = MARGIN, self._height - 62.0, 260.0
        shares = [number / (len(SCALE) - 1) for number in range(len(SCALE))]
        stops = "".join(f'<stop offset="{share:.2f}" stop-color="{_colour(share)}"/>' for share in shares)
        of = escape(_short(self._reach.agent, 20))
        yield f'<defs><linearGradient id="alike">{stops}</linearGradient></defs>'
        yield (
            f'<text x="{x:g}" y="{y - 9:g}" font-size="11">'
            f"What has reached each, how like the own context of {of} (cosine)</text>"
        )
        bar = f'x="{x:g}" y="{y:g}" width="{width:g}" height="11"'
        yield f'<rect {bar} fill="url(#alike)" stroke="{INK}" stroke-width="0.6"/>'
        for share, side in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
            value = f"{self._lowest + share * (self._highest - self._lowest):.2g}"
            is_least = not share and any(alike is not None and alike < self._lowest for alike in _others(self._reach))
            yield _note(x + share * width, y + 26, f"{value} or less" if is_least else value, side)
        if None in _others(self._reach):
            yield f'<circle cx="{x + width + 26:g}" cy="{y + 5.5:g}" r="6" fill="{UNKNOWN}" {_outline(True)}/>'
            yield _note(x + width + 38, y + 9.5, "nothing yet")

    def _samples(self) -> Iterator[str]:
        """Links of the least weight, of one in the middle, and of the greatest."""
        weights = self._weights
        if not weights:
            return
        y, x = self._height - 62.0, WIDTH - MARGIN - 280.0
        yield f'<text x="{x:g}" y="{y - 9:g}" font-size="11">Weight of a link; pale: other links among them</text>'
        for number, weight in enumerate(sorted({weights[0], weights[len(weights) // 2], weights[-1]})):
            left = x + 92 * number
            ends = f'x1="{left:g}" y1="{y + 5.5:g}" x2="{left + 34:g}" y2="{y + 5.5:g}"'
            yield f'<line {ends} stroke="{LINK}" stroke-width="{self._stroke(weight):.2f}"/>'
            yield _note(left + 41, y + 9.3, f"{weight:.3g}")

    def _stroke(self, weight: float) -> float:
        return 0.6 + 2.8 * math.sqrt(weight / self._weights[-1]) if len(self._weights) > 1 else 1.4


def _radius(ring: int, rings: int) -> float:
    return ALONE if rings == 1 else NEAREST + (FARTHEST - NEAREST) * (ring - 1) / (rings - 1)


def _point(radius: float, angle: float) -> str:
    return f"{radius * math.cos(angle):.1f} {radius * math.sin(angle):.1f}"


def _range(reach: Reach) -> tuple[float, float]:
    """Where the colours begin and end: the tenths around all but the one in the middle, none below 0."""
    known = [max(0.0, alike) for alike in _others(reach) if alike is not None]
    lowest = min(9, math.floor(10 * min(known, default=0.0)))
    return lowest / 10, max(lowest + 1, math.ceil(10 * max(known, default=1.0))) / 10


def _others(reach: Reach) -> list[float | None]:
    return [alike for name, alike in reach.alike.items() if name != reach.agent]


def _colour(share: float) -> str:
    """The colour of a share of the scale."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(SCALE[low], SCALE[low + 1], strict=True))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def _outline(unknown: bool) -> str:
    return f'stroke="{INK}" stroke-width="0.9"' + (' stroke-dasharray="2 1.6"' if unknown else "")


def _over_lines(text: str, how: str) -> Iterator[str]:
    """Words on a white edge, which is a text of its own because not all that draws SVG knows `paint-order`."""
    words = escape(text)
    yield f'<text {how} stroke="#ffffff" stroke-width="3.5" stroke-linejoin="round" aria-hidden="true">{words}</text>'
    yield f"<text {how}>{words}</text>"


def _note(x: float, y: float, text: str, side: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="10.5" fill="{FAINT}" text-anchor="{side}">{text}</text>'


def _hops(count: int) -> str:
    return f"{count} hop{'s' * (count > 1)}"


def _width(name: str) -> float:
    """What a name takes outside of its agent's middle."""
    return LARGEST + 5 + LETTER * (len(name) + 1)


def _short(name: str, letters: int) -> str:
    """A name in so many letters; both its ends tell it from others."""
    if len(name) <= letters:
        return name
    kept = max(2, letters - 1)
    return f"{name[: kept // 2]}…{name[len(name) - (kept + 1) // 2 :]}"
