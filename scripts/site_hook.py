"""MkDocs hook: adds pages of the repository's root folder to the site, and makes links work there.

A page is written for the plain view of the repository. There, a link may point out of docs/ (``../CHANGELOG.md``,
``../src/…``) or into it (``docs/scope.md`` in a page of the root folder). In the site, the pages of the root folder are
beside the others, and other linked files are copied to ``repository/``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
_LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"^(?:```.*?^```|~~~.*?^~~~)\s*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Remove entries without a page from the navigation, and expand ``folder/*``."""
    config.nav = _existing(config.nav or [])
    return config


def _existing(entries: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for entry in entries:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            kept.append({title: _existing(value)})
        elif value.endswith("/*"):
            pages = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / value[:-2]).glob("*.md"))
            # The index comes first, because it becomes the page of the section.
            kept.append({title: sorted(pages, key=lambda page: not page.endswith("/index.md"))})
        elif (DOCS / value).exists() or value in ROOT_PAGES:
            kept.append(entry)
    return kept


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the root folder, and every linked file of the repository, to the pages of docs/."""
    for name in ROOT_PAGES:
        if (ROOT / name).exists():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in DOCS.rglob("*.md"):
        for _, target, _, _ in _LINK.findall(page.read_text()):
            linked = (page.parent / target).resolve()
            if linked.is_file() and not linked.is_relative_to(DOCS) and linked.name not in ROOT_PAGES:
                name = f"repository/{linked.relative_to(ROOT)}"
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(linked)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs' names
    """Change links out of docs/, and links of root pages into it, to the paths of these files in the site."""
    source = page.file.src_uri
    here = (ROOT if source in ROOT_PAGES else DOCS) / source
    depth = "../" * source.count("/")

    def moved(match: re.Match[str]) -> str:
        target = (here.parent / match[2]).resolve()
        if not target.exists() or (target.is_relative_to(DOCS) and here.is_relative_to(DOCS)):
            return match[0]
        if target.is_relative_to(DOCS):
            there = target.relative_to(DOCS).as_posix()
        elif target.name in ROOT_PAGES:
            there = target.name
        else:
            there = f"repository/{target.relative_to(ROOT)}"
        return f"{match[1]}{depth}{there}{match[3] or ''}{match[4]}"

    pieces, last = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_LINK.sub(moved, markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*pieces, _LINK.sub(moved, markdown[last:])])
