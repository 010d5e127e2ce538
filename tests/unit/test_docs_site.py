"""The site of the documentation: it builds without warnings, is complete, and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
IN_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in ("README.md", *IN_THE_ROOT)), *sorted(DOCS.rglob("*.md"))]
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
KEPT_LINKS = {"canonical", "prev", "next"}
"""Relations of <link> that a browser does not load."""


def build(tree: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a tree as `make check` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=tree,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """The URLs that a browser loads for a page, and the links of its navigation."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.mermaid = False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in LOADED:
            self.fetched.append(given.get(LOADED[tag], ""))
        if tag == "link" and not set(given.get("rel", "").split()) & KEPT_LINKS:
            self.fetched.append(given.get("href", ""))
        if tag == "a" and "md-nav__link" in given.get("class", ""):
            self.links.append(given.get("href", ""))
        self.mermaid |= "mermaid" in given.get("class", "").split()


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        seen = Fetched(page)
        assert seen.fetched
        assert not [url for url in seen.fetched if re.match(r"(?:[a-z]+:)?//", url)], page
        assert not seen.mermaid, f"{page}: the theme would load a program to draw the diagram"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet


def test_every_page_is_in_the_navigation(site: Path) -> None:
    seen = {link.split("#")[0] or "index.html" for link in Fetched(site / "index.html").links}
    pages = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}
    pages |= {Path(name).with_suffix(".html").name for name in IN_THE_ROOT}
    assert pages <= seen, f"pages in no section of mkdocs.yml: {sorted(pages - seen)}"


def test_a_page_without_a_section_a_dead_link_and_a_dead_anchor_fail_the_build(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(DOCS, tree / "docs")
    for name in ("mkdocs.yml", "scripts/site_hook.py", "LICENSE", *IN_THE_ROOT):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "docs/lost.md").write_text("# Lost\n")
    with (tree / "docs/index.md").open("a") as index:
        index.write("\n[gone](gone.md) [nowhere](scope.md#no-such-part)\n")
    done = build(tree, tmp_path / "site")
    assert done.returncode == 1
    assert re.search(r"not included in the \"nav\" configuration:\s+- lost\.md", done.stderr), done.stderr
    assert "'gone.md'" in done.stderr
    assert "no-such-part" in done.stderr


def test_links_out_of_docs_point_to_files_of_the_site(site: Path) -> None:
    assert (site / "repository/src/mcp_server/audit/record.schema.json").is_file()
    assert 'href="repository/src/mcp_server/audit/record.schema.json"' in (site / "audit.html").read_text()
    assert 'href="SECURITY.html"' in (site / "index.html").read_text()
    assert 'href="threat-model.html"' in (site / "SECURITY.html").read_text()
    assert 'src="images/packages.svg"' in (site / "architecture.html").read_text()


def slugs(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as a repository view makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, most in found.items() for n in range(most + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_are_valid_in_the_repository_view(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "`", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in slugs(there), f"{page.name} links to {target}#{anchor}"
