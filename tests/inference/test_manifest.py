"""The manifest survives torn lines, damage, piling up and several writers."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from restort.errors import RestortError
from restort.inference.manifest import CLAIMS, Fingerprint, Leftovers, Manifest, Record

RECIPE = {"weights": "w", "quality": 95}


def make(manifest: Manifest, source: Path, target: Path, content: bytes = b"made") -> None:
    record = manifest.begin(source, target, Fingerprint.of(source), RECIPE)
    target.write_bytes(content)
    manifest.finish(record, target, {"size": (3, 2)})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(b"content")
    return path


def test_states(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    manifest, target = Manifest(out), out / "a.png"
    assert manifest.state(source, target, RECIPE) == "new"
    target.write_bytes(b"someone's")
    assert manifest.state(source, target, RECIPE) == "unknown"
    target.unlink()
    make(manifest, source, target)
    for seen in (manifest, Manifest(out)):
        assert seen.state(source, target, RECIPE) == "done"
        assert seen.state(source, target, RECIPE | {"quality": 90}) == "changed"
        assert list(seen.details(target)["size"]) == [3, 2]
    other = tmp_path / "other.png"
    other.write_bytes(b"something else")
    assert manifest.state(other, target, RECIPE) == "foreign"
    assert manifest.maker(target) == str(source)
    source.write_bytes(b"CONTENT")
    assert manifest.state(source, target, RECIPE) == "changed"
    target.unlink()
    assert manifest.state(source, target, RECIPE) == "new"


def test_begun_but_not_done_is_ours(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    target = out / "a.png"
    Manifest(out).begin(source, target, Fingerprint.of(source), RECIPE)
    assert Manifest(out).state(source, target, RECIPE) == "new"
    target.write_bytes(b"written, then killed")
    assert Manifest(out).state(source, target, RECIPE) == "changed"


@pytest.mark.parametrize(
    "damage",
    [b'{"target": "b', b"\0\0\0\0\n", b"[]\n{}\nnull\n", b'{"target": 3}\n', b"\xff\xfe\n", b"[" * 9999],
)
def test_damaged_lines_are_skipped(tmp_path: Path, source: Path, damage: bytes) -> None:
    out = tmp_path / "out"
    make(Manifest(out), source, out / "a.png")
    path = out / ".restort" / "manifest.jsonl"
    path.write_bytes(path.read_bytes() + damage)
    manifest = Manifest(out)
    make(manifest, source, out / "b.png")
    for seen in (manifest, Manifest(out)):
        seen.refresh()
        assert seen.state(source, out / "a.png", RECIPE) == "done"
        assert seen.state(source, out / "b.png", RECIPE) == "done"


@pytest.mark.parametrize("fields", [{"content": 5}, {"recipe": []}, {"made": {}}, {"unknown": 1}])
def test_a_damaged_line_does_not_hide_an_older_one(
    tmp_path: Path, source: Path, fields: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    make(Manifest(out), source, out / "a.png")
    make(Manifest(out), source, out / "ü.png")
    path = out / ".restort" / "manifest.jsonl"
    last = [line for line in path.read_bytes().splitlines() if b"a.png" in line][-1]
    damaged = json.dumps(json.loads(last) | fields, separators=(",", ":")).encode()
    path.write_bytes(path.read_bytes() + damaged + b"\n")
    manifest = Manifest(out)
    for name in ("a.png", "ü.png", "a.png"):
        assert manifest.state(source, out / name, RECIPE) == "done"
    make(manifest, source, out / "b.png")
    assert manifest.state(source, out / "b.png", RECIPE) == "done"


def test_memory_of_many_records(tmp_path: Path, source: Path) -> None:
    out, count = tmp_path / "out", 20_000
    make(Manifest(out), source, out / "a.png")
    path = out / ".restort" / "manifest.jsonl"
    line = path.read_bytes().splitlines()[-1]
    path.write_bytes(b"".join(line.replace(b"a.png", b"%d.png" % i) + b"\n" for i in range(count)))
    tracemalloc.start()
    try:
        manifest = Manifest(out)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 250 * count
    (out / "777.png").write_bytes(b"made")
    assert manifest.state(source, out / "777.png", RECIPE) == "done"
    assert manifest.state(source, out / "778.png", RECIPE) == "new"
    assert manifest.maker(out / "19999.png") == str(source)


def test_any_cut_leaves_a_manifest(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    make(Manifest(out), source, out / "a.png")
    path = out / ".restort" / "manifest.jsonl"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert Manifest(out).state(source, out / "a.png", RECIPE) in ("unknown", "changed", "done")


def test_old_lines_are_dropped(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    manifest = Manifest(out)
    make(manifest, source, out / "a.png")
    path = out / ".restort" / "manifest.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines * 1000)
    other = Manifest(out)
    assert path.read_bytes() == lines.splitlines(keepends=True)[-1]
    make(other, source, out / "b.png")
    manifest.refresh()  # of a run that was under way when the lines were dropped
    assert manifest.state(source, out / "b.png", RECIPE) == "done"


def test_names_of_any_bytes(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    names = ["ü ñ 画.png", 'quote".png', "new\nline.png"]
    if os.name == "posix":
        names.append(os.fsdecode(b"latin-\xe9.png"))
    manifest = Manifest(out)
    for name in names:
        make(manifest, source, out / name)
    assert all(Manifest(out).state(source, out / name, RECIPE) == "done" for name in names)


def _append(folder: Path, number: int) -> None:
    manifest = Manifest(folder / "out")
    for i in range(30):
        make(manifest, folder / "in.png", folder / "out" / f"{number}-{i}.png")


def test_several_writers(tmp_path: Path, source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(tmp_path, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lines = (tmp_path / "out" / ".restort" / "manifest.jsonl").read_bytes().splitlines()
    assert len(lines) == 180 and all(Record.parse(line) for line in lines)


def test_claims(tmp_path: Path) -> None:
    one, two = Manifest(tmp_path), Manifest(tmp_path)
    target = tmp_path / "a.png"
    with one.claim(target) as mine:
        assert mine
        with one.claim(target) as again:
            assert again
        with two.claim(target) as theirs:
            assert not theirs
    with two.claim(target) as theirs:
        assert theirs


def test_leftovers(tmp_path: Path) -> None:
    old, young, busy = (tmp_path / f".restort-{c * 16}.part" for c in "abc")
    others = [tmp_path / "notes.part", tmp_path / ".restort-short.part"]
    for path in (old, young, busy, *others):
        path.write_bytes(b"...")
    os.utime(old, (time.time() - 3600,) * 2)
    leftovers = Leftovers({tmp_path, tmp_path / "absent"})
    assert not old.exists() and young.exists()
    busy.write_bytes(b"still growing")
    leftovers.clean()
    assert not young.exists() and busy.exists()
    assert all(path.exists() for path in others)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RestortError, match="cannot use the output folder"):
        Manifest(tmp_path / "file")


def test_lines_are_json(tmp_path: Path, source: Path) -> None:
    make(Manifest(tmp_path / "out"), source, tmp_path / "out" / "a.png")
    begun, done = map(json.loads, (tmp_path / "out" / ".restort" / "manifest.jsonl").read_text().splitlines())
    assert begun["made"] is None and done["made"]["size"] == 4
    assert done["target"] == "a.png" and done["recipe"] == RECIPE


def change(line: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(line) | fields).encode() + b"\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"source": 5},
        {"source": None},
        {"recipe": []},
        {"recipe": "w"},
        {"details": 7},
        {"content": {"size": "7", "mtime_ns": 0, "sha256": "0"}},
        {"content": {"size": True, "mtime_ns": 0, "sha256": "0"}},
        {"content": {"size": 7, "mtime_ns": 0.5, "sha256": "0"}},
        {"content": {"size": 7, "mtime_ns": 0, "sha256": ["0"]}},
        {"made": {"size": 7}},
        {"made": "yes"},
        {"made": []},
        {"target": ["a.png"]},
        {"more": 1},
    ],
)
def test_a_line_with_a_wrong_type_is_void(tmp_path: Path, source: Path, fields: dict[str, object]) -> None:
    """The line before it counts."""
    out = tmp_path / "out"
    make(Manifest(out), source, out / "a.png")
    path = out / ".restort" / "manifest.jsonl"
    good = path.read_bytes().splitlines(keepends=True)[-1]
    path.write_bytes(good + change(good, **fields))
    assert Manifest(out).state(source, out / "a.png", RECIPE) == "done"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("name", [".", "claims", "manifest.jsonl", "manifest.lock", "claims/NN.lock"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_links_and_pipes_are_refused(tmp_path: Path, source: Path, name: str, kind: str) -> None:
    """A link would have a foreign file truncated by a lock, or appended to; a pipe would block."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    target = out / "a.png"
    lock = f"claims/{zlib.crc32(b'a.png') % CLAIMS:02d}.lock"
    path = out / ".restort" / name.replace("claims/NN.lock", lock)
    path.parent.mkdir(parents=True, exist_ok=True)
    precious.mkdir() if name in (".", "claims") else precious.write_text("precious")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(precious if kind == "link" else tmp_path / "absent")
    with pytest.raises(RestortError, match=r"\.restort.*delete it"), Manifest(out).claim(target):
        pass
    assert not (tmp_path / "absent").exists()
    assert list(precious.iterdir()) == [] if precious.is_dir() else precious.read_text() == "precious"


def test_a_short_write_is_noticed(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nearly full disk takes a part of a line: the picture fails, and the next line begins anew."""
    out = tmp_path / "out"
    manifest = Manifest(out)
    make(manifest, source, out / "a.png")
    whole = Path.open

    class Short:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:20]))

    def short(path: Path, mode: str = "r", **more: Any) -> Any:
        file = whole(path, mode, **more)
        return Short(file) if mode == "ab" else file

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(RestortError, match="no space left"):
        manifest.begin(source, out / "b.png", Fingerprint.of(source), RECIPE)
    monkeypatch.undo()
    make(manifest, source, out / "c.png")
    seen = Manifest(out)
    assert [seen.state(source, out / f"{n}.png", RECIPE) for n in "abc"] == ["done", "new", "done"]
