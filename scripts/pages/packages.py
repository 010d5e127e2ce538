"""docs/images/packages.svg: the rooms of the package and who imports whom, read from the imports themselves.

A line leads from a room down to one that it imports; of two ways to the same room the longer one is drawn (a transitive
reduction), because every room imports what lies at the bottom. Rows are longest paths. The drawing is the usual one of
layered graphs (Sugiyama, Tagawa and Toda 1981): long lines get a place in each row they pass, and rows are put in the order
that has few crossings. Nothing in it depends on fonts or on an installed program, so the same code gives the same file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _BEND, _EDGE = 112, 34, 22, 44, 26, 20
_SWEEPS: Final = 24
_STYLE: Final = (
    "text{font:13px ui-monospace,monospace;text-anchor:middle;fill:#1f2933}"
    "rect{fill:#eef2ff;stroke:#4f5fb0}path{fill:none;stroke:#8a94a6;stroke-width:1.3}"
    ".ground{fill:#fff;stroke:none}.bottom{fill:#e6f4ea;stroke:#3d7a52}"
)
Graph = dict[str, set[str]]


def picture(root: Path) -> str:
    """The SVG of the package below ``root``; raises RuntimeError where the layers in pyproject.toml lack a room."""
    imports = _imports(root)
    named = _layers(root)
    if missing := sorted(set(imports) - named - {"__main__"}):
        raise RuntimeError(f"no layer of pyproject.toml has {', '.join(missing)}")
    return _draw(_reduced(imports))


def _layers(root: Path) -> set[str]:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {name.strip().removeprefix("mcp_server.") for line in layers for name in line.split("|")}


def _imports(root: Path) -> Graph:
    """Which room imports which, as import-linter sees it: imports for type checkers alone are none."""
    import grimp

    graph = grimp.build_graph("mcp_server", exclude_type_checking_imports=True, cache_dir=None)
    found: Graph = {}
    for module in sorted(graph.modules):
        room = _room(module)
        if room in {"", "__main__"}:
            continue
        found.setdefault(room, set())
        for other in graph.find_modules_directly_imported_by(module):
            if _room(other) not in {"", room}:
                found[room].add(_room(other))
    del root  # grimp finds the package as Python does
    return found


def _room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _reduced(graph: Graph) -> Graph:
    def reach(start: Iterable[str]) -> set[str]:
        seen: set[str] = set()
        waiting = list(start)
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph[node]
        return seen

    return {node: {other for other in below if other not in reach(below - {other})} for node, below in graph.items()}


def _ranks(graph: Graph) -> dict[str, int]:
    """The row of each room: 0 at the top, the longest way down from whoever imports it."""
    ranks: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in ranks:
            ranks[node] = 1 + max((height(other) for other in graph[node]), default=-1)
        return ranks[node]

    top = max(height(node) for node in graph)
    return {node: top - ranks[node] for node in graph}


def _rows(graph: Graph) -> tuple[list[list[str]], list[list[str]]]:
    """Rows in their order, with a place (``from>to>row``) for each line that passes a row; and lines as chains of places."""
    ranks = _ranks(graph)
    rows: list[list[str]] = [[] for _ in range(1 + max(ranks.values()))]
    for node in sorted(graph):
        rows[ranks[node]].append(node)
    chains = []
    for node, below in sorted(graph.items()):
        for other in sorted(below):
            passed = [f"{node}>{other}>{row}" for row in range(ranks[node] + 1, ranks[other])]
            for row, place in enumerate(passed, ranks[node] + 1):
                rows[row].append(place)
            chains.append([node, *passed, other])
    above: dict[str, list[str]] = {place: [] for row in rows for place in row}
    under: dict[str, list[str]] = {place: [] for row in rows for place in row}
    for chain in chains:
        for upper, lower in pairwise(chain):
            above[lower].append(upper)
            under[upper].append(lower)
    best, fewest = [list(row) for row in rows], _crossings(rows, under)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for row in order:
            beside, neighbours = (rows[row - 1], above) if down else (rows[row + 1], under)
            rows[row] = _by_middle(rows[row], beside, neighbours)
        if (now := _crossings(rows, under)) < fewest:
            best, fewest = [list(row) for row in rows], now
    return best, chains


def _by_middle(row: list[str], beside: list[str], neighbours: Mapping[str, list[str]]) -> list[str]:
    position = {place: (index + 0.5) / len(beside) for index, place in enumerate(beside)}

    def middle(item: tuple[int, str]) -> tuple[float, int]:
        index, place = item
        found = [position[each] for each in neighbours[place]]
        return (sum(found) / len(found) if found else (index + 0.5) / len(row), index)

    return [place for _, place in sorted(enumerate(row), key=middle)]


def _crossings(rows: list[list[str]], under: Mapping[str, list[str]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        position = {place: index for index, place in enumerate(lower)}
        lines = [(index, position[below]) for index, place in enumerate(upper) for below in under[place]]
        count += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(lines) for c, d in lines[n + 1 :])
    return count


def _draw(graph: Graph) -> str:
    rows, chains = _rows(graph)
    sizes = [sum(_WIDTH if place in graph else _BEND for place in row) + _GAP_X * (len(row) - 1) for row in rows]
    width, height = max(sizes) + 2 * _EDGE, len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _EDGE
    middle: dict[str, tuple[float, float]] = {}
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        x, y = (width - size) / 2, float(_EDGE + number * (_HEIGHT + _GAP_Y))
        for place in row:
            own = _WIDTH if place in graph else _BEND
            middle[place] = (x + own / 2, y)
            x += own + _GAP_X
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="The rooms of mcp_server and their imports, which only go down">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width:g}" height="{height:g}"/>',
    ]
    out += [f'<path d="{_line([middle[place] for place in chain])}"/>' for chain in chains]
    for node in sorted(graph):
        x, y = middle[node]
        kind = ' class="bottom"' if not graph[node] else ""
        out.append(f'<rect{kind} x="{x - _WIDTH / 2:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>')
        out.append(f'<text x="{x:g}" y="{y + _HEIGHT / 2 + 4.5:g}">{node}</text>')
    return "\n".join([*out, "</svg>", ""])


def _line(points: list[tuple[float, float]]) -> str:
    """A smooth line from the foot of the first place to the head of the last, straight through those it passes."""
    x, y = points[0][0], points[0][1] + _HEIGHT
    path = [f"M{x:g} {y:g}"]
    for number, (nx, ny) in enumerate(points[1:], 2):
        bend = (ny - y) / 2
        path.append(f"C{x:g} {y + bend:g} {nx:g} {ny - bend:g} {nx:g} {ny:g}")
        x, y = nx, ny
        if number < len(points):
            y += _HEIGHT
            path.append(f"V{y:g}")
    return "".join(path)
