"""The graph of a plan as a tree: every step in one line of its own, results first, what they read below them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from adaptc.explain.tables import shape, time

DEEPEST = 10  # levels of one tree; a longer chain goes on in a tree of its own below


def plan_tree(facts: Mapping[str, Any]) -> Tree:
    """The steps of a report as a tree: `#number primitive shape predicted time of what it reads: value`.

    A step is drawn once, below the first that reads it; whatever else reads it names its number. Times are predictions
    at `facts["seconds"]["rows"]` tokens.
    """
    seconds = facts["seconds"]
    tree = Tree(_line(f"{facts['adapter']}: {facts['formula']}"))
    for way in ("forward", "backward"):
        results = [r for r in facts["results"] if r["way"] == way]
        if results:
            rows = {s["number"]: s for s in facts["steps"] if s["way"] == way}
            place = tree.add(_line(f"{way}, {time(seconds[way])} predicted at {seconds['rows']} tokens"))
            _way(place, results, rows)
    return tree


def _way(place: Tree, results: Sequence[Mapping[str, Any]], rows: Mapping[int, Mapping[str, Any]]) -> None:
    drawn: set[int] = set()
    for result in results:
        waiting: deque[int] = deque()
        below = place.add(_line(f"{result['name']} = {_names(result['reads'])}"))
        _steps(below, result["reads"], rows, drawn, waiting, 0)
        while waiting:
            _steps(place, [waiting.popleft()], rows, drawn, waiting, 0)


def _steps(
    place: Tree,
    reads: Sequence[int | str],
    rows: Mapping[int, Mapping[str, Any]],
    drawn: set[int],
    waiting: deque[int],
    depth: int,
) -> None:
    new = [r for r in reads if isinstance(r, int) and r in rows and r not in drawn]
    if depth == DEEPEST:
        waiting.extend(new)
        return
    for number in new:
        if number not in drawn:  # a sibling may have drawn it
            drawn.add(number)
            row = rows[number]
            _steps(place.add(_line(_told(row))), row["reads"], rows, drawn, waiting, depth + 1)


def _told(row: Mapping[str, Any]) -> str:
    head = f"#{row['number']} {row['step']} {shape(row['shape'])} {time(row['seconds'])}"
    return f"{head} of {_names(row['reads'])}: {row['value']}" if row["reads"] else f"{head}: {row['value']}"


def _names(reads: Sequence[int | str]) -> str:
    return ", ".join(f"#{r}" if isinstance(r, int) else r for r in reads) or "a constant"


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
