"""Draw docs/images/packages.svg: the packages of mcp_server and their imports.

A line leads from a package down to one that it imports. Every package imports those at the bottom, so only the transitive
reduction is drawn: if there are several paths to a package, only the longest. The layout is the usual one of layered
graphs (Sugiyama, Tagawa and Toda 1981). The row of a package follows from the longest path. A line that passes a row has
a *point* in it, and each row is ordered so that few lines cross. The drawing uses no fonts and no other programs, so the
same code always gives the same file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _POINT, _EDGE = 112, 34, 22, 44, 26, 20
_SWEEPS: Final = 24
_STYLE: Final = (
    "text{font:13px ui-monospace,monospace;text-anchor:middle;fill:#1f2933}"
    "rect{fill:#eef2ff;stroke:#4f5fb0}path{fill:none;stroke:#8a94a6;stroke-width:1.3}"
    ".ground{fill:#fff;stroke:none}.bottom{fill:#e6f4ea;stroke:#3d7a52}"
)
Graph = dict[str, set[str]]


def diagram(root: Path) -> str:
    """Return the SVG for the checkout at ``root``; raise RuntimeError if a package is in no layer of pyproject.toml."""
    imports = _imports()
    if missing := sorted(set(imports) - _layers(root) - {"__main__"}):
        raise RuntimeError(f"These packages are in no layer of pyproject.toml: {', '.join(missing)}.")
    return _draw(_reduced(imports))


def _layers(root: Path) -> set[str]:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {name.strip().removeprefix("mcp_server.") for line in layers for name in line.split("|")}


def _imports() -> Graph:
    """Return the imports between packages, also those for type checkers only."""
    import grimp

    graph = grimp.build_graph("mcp_server", exclude_type_checking_imports=False, cache_dir=None)
    found: Graph = {}
    for module in sorted(graph.modules):
        package = _package(module)
        if package in {"", "__main__"}:
            continue
        found.setdefault(package, set())
        for imported in graph.find_modules_directly_imported_by(module):
            if _package(imported) not in {"", package}:
                found[package].add(_package(imported))
    return found


def _package(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _reduced(graph: Graph) -> Graph:
    """Return the transitive reduction."""

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
    """Return the row of each package, 0 at the top: as far above the bottom as its longest path of imports."""
    ranks: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in ranks:
            ranks[node] = 1 + max((height(other) for other in graph[node]), default=-1)
        return ranks[node]

    top = max(height(node) for node in graph)
    return {node: top - ranks[node] for node in graph}


def _rows(graph: Graph) -> tuple[list[list[str]], list[list[str]]]:
    """Return the ordered rows of packages and points (``from>to>row``), and each line as a list of those it connects."""
    ranks = _ranks(graph)
    rows: list[list[str]] = [[] for _ in range(1 + max(ranks.values()))]
    for node in sorted(graph):
        rows[ranks[node]].append(node)
    lines = []
    for node, below in sorted(graph.items()):
        for other in sorted(below):
            passed = [f"{node}>{other}>{row}" for row in range(ranks[node] + 1, ranks[other])]
            for row, point in enumerate(passed, ranks[node] + 1):
                rows[row].append(point)
            lines.append([node, *passed, other])
    above: dict[str, list[str]] = {each: [] for row in rows for each in row}
    below_of: dict[str, list[str]] = {each: [] for row in rows for each in row}
    for line in lines:
        for upper, lower in pairwise(line):
            above[lower].append(upper)
            below_of[upper].append(lower)
    best, fewest = [list(row) for row in rows], _crossings(rows, below_of)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for row in order:
            adjacent, neighbors = (rows[row - 1], above) if down else (rows[row + 1], below_of)
            rows[row] = _by_middle(rows[row], adjacent, neighbors)
        if (now := _crossings(rows, below_of)) < fewest:
            best, fewest = [list(row) for row in rows], now
    return best, lines


def _by_middle(row: list[str], adjacent: list[str], neighbors: Mapping[str, list[str]]) -> list[str]:
    """Return the row sorted by the mean position of the neighbors in the adjacent row."""
    position = {each: (index + 0.5) / len(adjacent) for index, each in enumerate(adjacent)}

    def middle(item: tuple[int, str]) -> tuple[float, int]:
        index, each = item
        found = [position[neighbor] for neighbor in neighbors[each]]
        return (sum(found) / len(found) if found else (index + 0.5) / len(row), index)

    return [each for _, each in sorted(enumerate(row), key=middle)]


def _crossings(rows: list[list[str]], below_of: Mapping[str, list[str]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        position = {each: index for index, each in enumerate(lower)}
        lines = [(index, position[below]) for index, each in enumerate(upper) for below in below_of[each]]
        count += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(lines) for c, d in lines[n + 1 :])
    return count


def _draw(graph: Graph) -> str:
    rows, lines = _rows(graph)
    sizes = [sum(_WIDTH if each in graph else _POINT for each in row) + _GAP_X * (len(row) - 1) for row in rows]
    width, height = max(sizes) + 2 * _EDGE, len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _EDGE
    middle: dict[str, tuple[float, float]] = {}
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        x, y = (width - size) / 2, float(_EDGE + number * (_HEIGHT + _GAP_Y))
        for each in row:
            own = _WIDTH if each in graph else _POINT
            middle[each] = (x + own / 2, y)
            x += own + _GAP_X
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="The packages of mcp_server and their imports, which only go down">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width:g}" height="{height:g}"/>',
    ]
    out += [f'<path d="{_line([middle[each] for each in line])}"/>' for line in lines]
    for node in sorted(graph):
        x, y = middle[node]
        kind = ' class="bottom"' if not graph[node] else ""
        out.append(f'<rect{kind} x="{x - _WIDTH / 2:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>')
        out.append(f'<text x="{x:g}" y="{y + _HEIGHT / 2 + 4.5:g}">{node}</text>')
    return "\n".join([*out, "</svg>", ""])


def _line(points: list[tuple[float, float]]) -> str:
    """Return a smooth path from the bottom of the first position to the top of the last, straight through the others."""
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
