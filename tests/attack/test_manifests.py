"""Output folders with hostile records: the pictures are made, or a sentence says why not; nothing else is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.cli.main import main
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.attack import SEED, count
from tests.attack.mutations import mutated
from tests.fakes.fake_backend import ELAN, create, write_weights

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 10**30, 1e308, "", "../../x", "/etc/passwd", "a\0b", "\ud800", [], {}),
    *([[[[]]]], {"size": 1}, ["a.png"], "x" * 10_000),
)
NAMES = ("a.png", "b.jpg", "c.tif")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("restort.backends.registry.create", create)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    write_weights(tmp_path / "x2.safetensors", ELAN[2])
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 9 + i, 3), np.uint8)
        write(tmp_path / "in" / name, Picture(pixels))
    return tmp_path


def restored(folder: Path, *options: str) -> int:
    weights = str(folder / "x2.safetensors")
    return main(["run", str(folder / "in"), "-o", str(folder / "out"), "--weights", weights, *options])


def everything(folder: Path) -> dict[str, bytes]:
    """All files but those of the output folder's records and the cache."""
    paths = (path for path in folder.rglob("*") if not {".restort", "cache"} & set(path.parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.timeout(7200)
def test_hostile_records(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert restored(folder) == 0
    expected = everything(folder)
    records = folder / "out/.restort"
    manifest = records / "manifest.jsonl"
    sound = manifest.read_bytes()
    (records / "attempts").mkdir(exist_ok=True)
    for number in range(count(25, 2_000)):
        random = np.random.default_rng((SEED, number))
        manifest.write_bytes(hostile(random, sound))
        suspects = json.dumps({"a": VALUES[random.integers(len(VALUES))]}).encode()
        (records / "attempts/suspects.json").write_bytes(mutated(random, {"suspects": suspects + b" " * 8}))
        for name in NAMES:
            if random.random() < 0.3:
                (folder / "out" / name).unlink()
        capfd.readouterr()
        status = restored(folder)
        errors = capfd.readouterr().err
        assert "unexpected error" not in errors and "Traceback" not in errors, (number, errors)
        # A line that still tells of a target makes it ours; without one the file that lies there is left alone.
        if status != 0:
            assert status == 1 and ("already exists" in errors or "was made from" in errors), (number, errors)
        assert restored(folder, "--overwrite", "--retry") == 0, number
        assert everything(folder) == expected, number


def hostile(random: np.random.Generator, sound: bytes) -> bytes:
    """The lines of a manifest with values of wrong types, foreign paths and damage."""
    lines = sound.splitlines(keepends=True)
    for _ in range(int(random.integers(1, 6))):
        place = int(random.integers(len(lines)))
        if random.random() < 0.4:
            lines[place] = mutated(random, {"line": lines[place] + b" " * 8})
            continue
        try:
            fields = json.loads(lines[place])
        except (ValueError, RecursionError):
            continue
        if not isinstance(fields, dict):
            continue
        inner = fields.get("content") if random.random() < 0.4 else fields
        if isinstance(inner, dict) and inner:
            inner[sorted(inner)[random.integers(len(inner))]] = VALUES[random.integers(len(VALUES))]
        lines.insert(place, json.dumps(fields).encode() + os.linesep.encode())
    return b"".join(lines) + (b"[" * 20_000 + b"\n" if random.random() < 0.1 else b"")
