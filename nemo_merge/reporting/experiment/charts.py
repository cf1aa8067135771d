"""Geometry of the page's pictures: where points, lines, ticks and labels go. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 46
_LETTER, _LINE = 7.2, 13  # of labels: width of a letter, on average, and height of a line
_LABEL_STEPS = (8, 18, 30, 44, 60)

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Mark(NamedTuple):
    """A system in a plot: error rates in per cent, and where they are in the picture."""

    name: str
    role: str
    x: float
    y: float
    left: float
    top: float
    front: bool


class Label(NamedTuple):
    """A text, where it begins, and the point that it belongs to."""

    text: str
    left: float
    top: float
    point_left: float
    point_top: float

    @property
    def nearest(self) -> float:
        """The horizontal place in the text that is nearest to the point."""
        return min(max(self.point_left, self.left), self.left + _LETTER * len(self.text))

    @property
    def far(self) -> bool:
        """Whether a line must lead from it to its point."""
        return math.hypot(self.nearest - self.point_left, self.top - _LINE / 3 - self.point_top) > 16


class Tick(NamedTuple):
    """A place on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Frame:
    """The axes of a picture.

    Attributes:
        x_ticks, y_ticks: where lines and numbers go.
        left, right, top, bottom: edges of what is plotted.
    """

    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Scatter:
    """Two error rates of every system against each other; both are better when smaller."""

    frame: Frame
    marks: Sequence[Mark]
    labels: Sequence[Label]
    front: str

    @property
    def best(self) -> list[str]:
        """Systems that no other one beats on both axes."""
        return [mark.name for mark in self.marks if mark.front]


@dataclass(frozen=True)
class Curve:
    """A line: its name and its points as SVG wants them."""

    name: str
    points: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis."""

    frame: Frame
    curves: Sequence[Curve]


def pareto(points: Mapping[str, tuple[float, float]], roles: Callable[[str], str]) -> Scatter:
    """The plot of in-domain error against what was kept.

    Args:
        points: both error rates, fractions, by system.
        roles: what a system is.
    """
    percents = {name: (100 * x, 100 * y) for name, (x, y) in points.items()}
    best = non_dominated(percents)
    to_x, x_ticks = _axis([x for x, _ in percents.values()], _LEFT, WIDTH - _RIGHT)
    to_y, y_ticks = _axis([y for _, y in percents.values()], HEIGHT - _BOTTOM, _TOP)
    marks = [
        Mark(name, roles(name), x, y, round(to_x(x), 1), round(to_y(y), 1), name in best)
        for name, (x, y) in percents.items()
    ]
    front = sorted((mark for mark in marks if mark.front), key=lambda mark: (mark.x, -mark.y))
    steps = [f"{mark.left},{mark.top}" for mark in front]
    # A staircase: between two of its points, nothing is as good on one axis as the one and on the other as the other.
    corners = [f"{after.left},{before.top}" for before, after in pairwise(front)]
    path = [place for pair in zip(steps, [*corners, ""], strict=True) for place in pair if place]
    named = [mark for mark in marks if mark.front or mark.role in ("base", "expert")]
    return Scatter(Frame(x_ticks, y_ticks), marks, _labels(named, marks, _boxes_along(path)), " ".join(path))


def non_dominated(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the points that no other one beats: better on one axis and at least as good on the other.

    Example:
        >>> sorted(non_dominated({"a": (1, 3), "b": (2, 2), "c": (2, 3), "d": (3, 1)}))
        ['a', 'b', 'd']
    """
    return {
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }


def lines(values: Mapping[str, Sequence[float]]) -> Curves:
    """Lines of values from 0 to 1 over a shared axis from 0 to 100 %."""
    to_x, x_ticks = _axis([0, 100], _LEFT, WIDTH - _RIGHT, spare=0)
    to_y, y_ticks = _axis([0, 1], HEIGHT - _BOTTOM, _TOP, spare=0)
    drawn = []
    for name, series in values.items():
        places = [
            (round(to_x(100 * index / max(len(series) - 1, 1)), 1), round(to_y(value), 1))
            for index, value in enumerate(series)
        ]
        drawn.append(Curve(name, " ".join(f"{x},{y}" for x, y in places), places[-1]))
    return Curves(Frame(x_ticks, y_ticks), drawn)


def _axis(
    values: Sequence[float], start: float, end: float, spare: float = 0.06
) -> tuple[Callable[[float], float], list[Tick]]:
    """From values to places, with ticks at round numbers."""
    low, high = min(values), max(values)
    room = spare * (high - low) or (1.0 if low == high else 0.0)
    low, high = (low - room if low - room > 0 or low < 0 else min(low, 0.0)), high + room

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    raw = (high - low) / 6
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return place, [
        Tick(round(place(index * step), 1), f"{index * step:.{digits}f}") for index in range(first, last + 1)
    ]


def _boxes_along(path: Sequence[str]) -> list[Box]:
    """What a line of level and upright parts covers."""
    places = [tuple(map(float, place.split(","))) for place in path]
    return [(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1) for (a, b), (c, d) in pairwise(places)]


def _labels(named: Sequence[Mark], marks: Sequence[Mark], line: Sequence[Box]) -> list[Label]:
    """Puts each name where it covers neither another one nor a point, nor the line if possible.

    First come those with the most neighbours.
    """
    boxes = [(mark.left - 6, mark.top - 6, mark.left + 6, mark.top + 6) for mark in marks]

    def neighbours(mark: Mark) -> int:
        return sum(math.hypot(mark.left - other.left, mark.top - other.top) < 60 for other in named)

    placed = []
    for mark in sorted(named, key=neighbours, reverse=True):
        found = _free(mark, [*boxes, *line]) or _free(mark, boxes)
        if found is None:  # the plot is full; the name is still in the tooltip of the point and in the tables
            continue
        boxes.append(found)
        placed.append(Label(mark.name, round(found[0], 1), round(found[3] - 3, 1), mark.left, mark.top))
    return placed


def _free(mark: Mark, boxes: Sequence[Box]) -> Box | None:
    """The nearest place for a name that covers none of the boxes."""
    width = _LETTER * len(mark.name)
    for left, top in _places(mark, width):
        box = (left, top - _LINE + 3, left + width, top + 3)
        inside = box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in boxes):
            return box
    return None


def _places(mark: Mark, width: float) -> Iterator[tuple[float, float]]:
    for distance in _LABEL_STEPS:
        for down in (4, 4 - distance, 4 + distance):
            yield mark.left + distance, mark.top + down
            yield mark.left - distance - width, mark.top + down
        yield mark.left - width / 2, mark.top - distance
        yield mark.left - width / 2, mark.top + distance + 8


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
