"""The documentation site: a page with a broken link, or a broken anchor, ends `make docs` with an error."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "docs" / "site" / "mkdocs.yml"


@pytest.mark.parametrize(
    ("page", "warning"),
    [
        ("# Page\n\n## Speed\n\n[fine](#speed)\n", None),
        ("# 中文\n\n## 速度与误差\n\n[正确](#速度与误差)\n", None),
        ("# Page\n\n[gone](nothing.md)\n", "nothing.md"),
        ("# Page\n\n[gone](#nowhere)\n", "nowhere"),
    ],
)
def test_links_are_checked(tmp_path: Path, page: str, warning: str | None) -> None:
    pytest.importorskip("material")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(page, encoding="utf-8")
    # Search is left out here, because to load the dictionary for Chinese takes longer than all else.
    config = f"INHERIT: {CONFIG}\ndocs_dir: docs\nplugins: []\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(config, encoding="utf-8")

    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (built.returncode == 0) == (warning is None), built.stderr
    if warning:
        assert warning in built.stderr
