"""Build the documentation site into build/site: `make docs`.

The Markdown files of the repository are the source, and their links are those of the repository, so the site has the
repository's tree: every tracked Markdown page, and every file that a page links to, is copied to build/docs at its
path, and mkdocs builds that folder. A link to a file that is not there is a warning, and warnings are errors.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "docs"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)")
HTML_LINK = re.compile(r"""(?:src|href)=["']([^"']+)["']""")


def tracked_pages() -> list[Path]:
    """Return the Markdown files that git tracks or would add, relative to ROOT."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    return sorted({Path(line) for line in listed if (ROOT / line).is_file()})


def linked_files(page: Path, text: str) -> list[Path]:
    """Return the files of the repository (not pages) that `text`, the page at `page`, links to."""
    found = []
    for target in LINK.findall(text) + HTML_LINK.findall(text):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (ROOT / page.parent / unquote(target.split("#")[0])).resolve()
        if path.is_relative_to(ROOT) and path.is_file() and path.suffix != ".md":
            found.append(path.relative_to(ROOT))
    return found


def folders_to_text(page: Path, text: str) -> str:
    """Turn links to folders, which a site has no page for, into their words; links to files stay."""

    def replace(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        path = (ROOT / page.parent / unquote(target.split("#")[0])).resolve()
        return words if "://" not in target and not target.startswith("#") and path.is_dir() else match[0]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", replace, text)


def stage() -> int:
    """Copy pages and what they link to into PAGES; return how many pages there are."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = tracked_pages()
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        out = PAGES / page
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(folders_to_text(page, text), encoding="utf-8")
        for file in linked_files(page, text):
            copy = PAGES / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, copy)
    return len(pages)


def main() -> int:
    if find_spec("mkdocstrings") is None:
        print(
            "mkdocstrings is not installed; use Python 3.11 or newer: make docs PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    print(f"{stage()} pages")
    config = str(ROOT / "docs" / "site" / "mkdocs.yml")
    site = str(ROOT / "build" / "site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's advertisement
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if not status:
        print("built build/site/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
