"""The catalogue and the fetching of weights, with a server on this machine only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from restort.errors import RestortError, UsageError
from restort.utils.cache_dir import cache_root
from restort.weights import catalogue, download
from restort.weights.catalogue import Entry, default_for, entries, find
from tests.weights.test_checkpoint import SMALL, SMALL_ELAN, arrays


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


class Server(ThreadingHTTPServer):
    """Answers every path with `body`; `announced` is the length it claims."""

    body: bytes = b""
    announced: int | None = None
    status: int = 200
    requests: int = 0
    daemon_threads = True
    closing: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        length = len(self.server.body) if self.server.announced is None else self.server.announced
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.body = save(arrays(SMALL))
        yield running
        running.shutdown()
        thread.join(5)


@pytest.fixture
def unverified(server: Server) -> Entry:
    return replace(find("restormer-deraining"), source=f"{server.url}/deraining.pth")


@pytest.fixture
def verified(server: Server, unverified: Entry) -> Entry:
    digest = hashlib.sha256(server.body).hexdigest()
    return replace(unverified, sha256=digest, bytes=len(server.body), licence="MIT", commercial_use=True)


def get(entry: Entry, **options: bool) -> tuple[Path, list[str]]:
    said: list[str] = []
    return download.path_of(entry, notice=said.append, **options), said


def refused(entry: Entry, *parts: str, **options: bool) -> None:
    with pytest.raises(RestortError) as caught:
        get(entry, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def leftovers(cache: Path) -> set[str]:
    return {path.name for path in (cache / "weights").iterdir() if not path.name.endswith(".lock")}


def test_every_entry_is_complete() -> None:
    found = entries()
    assert len({entry.name for entry in found}) == len({entry.filename for entry in found}) == len(found)
    for entry in found:
        assert entry.task in catalogue.TASKS and set(entry.default_for) <= set(entry.tasks)
        assert entry.parameters > 100_000
        assert entry.shipped or entry.source.startswith("https://github.com/")
        assert entry.scale == 1 or entry.task == "upscale"
        if entry.name.startswith("restormer-") and not entry.shipped:
            assert not entry.commercial_use
            assert "non-commercial" in entry.licence
            assert entry.source == f"{catalogue.RESTORMER_RELEASE}/{entry.filename}"
    assert sum(not entry.shipped for entry in found) == 14


def test_published_restormers_have_the_published_shapes(shared: Path) -> None:
    from restort.models.spec import parameter_shapes

    published = json.loads((shared / "golden" / "official_state_shapes.json").read_text())
    for case, channels, out, norm in (
        ("restormer_official", 3, 3, "WithBias"),
        ("restormer_official_biasfree", 3, 3, "BiasFree"),
        ("restormer_official_gray", 1, 1, "BiasFree"),
        ("restormer_official_dual_pixel", 6, 3, "WithBias"),
    ):
        spec = catalogue.restormer_spec(channels, out, norm)
        assert parameter_shapes(spec) == {name: tuple(shape) for name, shape in published[case].items()}
    assert find("restormer-deraining").parameters == 26_126_644
    assert find("restormer-real-denoising").parameters == 26_111_668
    light = {k: tuple(v) for k, v in published["elan_light_x4"].items()}
    assert parameter_shapes(catalogue.ELAN_LIGHT_X4) == light
    assert find("elan-light-x4-friedricelab").parameters == 601_488


def test_the_friedricelab_entry_describes_the_published_file(shared: Path, cache: Path) -> None:
    entry = find("elan-light-x4-friedricelab")
    data = (shared / "weights" / entry.filename).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / entry.filename).write_bytes(data)
    path, said = get(entry, offline=True)
    assert path == cache / "weights" / entry.filename
    assert said == []


def test_find_names_the_nearest() -> None:
    assert find(" Restormer-Deraining ").name == "restormer-deraining"
    with pytest.raises(UsageError, match="did you mean restormer-deraining"):
        find("restormer-derain")
    with pytest.raises(UsageError, match="restort models"):
        find("zzz")


def test_shipped_entries_are_read_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(catalogue, "WEIGHTS_FOLDER", folder)
    monkeypatch.setattr(download, "WEIGHTS_FOLDER", folder)
    assert not any(entry.shipped for entry in entries())
    assert default_for("upscale").name == "elan-light-x4-friedricelab"
    for task in ("denoise", "deblur", "derain", "defocus"):
        with pytest.raises(UsageError, match="--model"):
            default_for(task)
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays(SMALL_ELAN).items()}
    (folder / "elan-light-x3.safetensors").write_bytes(save(half))
    (folder / "restormer-small-denoise.safetensors").write_bytes(save(arrays(SMALL), {"task": "denoise"}))
    entry = find("elan-light-x3")
    data = (folder / entry.filename).read_bytes()
    assert entries()[0] == entry
    assert (entry.architecture, entry.scale, entry.channels, entry.shipped) == ("elan", 3, 3, True)
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (entry.licence, entry.commercial_use) == ("Apache-2.0", True)
    assert get(entry, offline=True) == (folder / "elan-light-x3.safetensors", [])
    assert default_for("upscale", 3) == entry
    assert default_for("denoise").name == "restormer-small-denoise"
    with pytest.raises(UsageError, match="scale 2; use one of the scales 3, 4"):
        default_for("upscale", 2)
    with pytest.raises(UsageError, match="scale 4; use one of the scales 1"):
        default_for("denoise", 4)
    with pytest.raises(UsageError, match="unknown task 'paint'"):
        default_for("paint")
    (folder / "elan-light-x3.safetensors").write_bytes(data[:1000])
    with pytest.raises(RestortError, match="restore them with: git -C"):
        entries()
    (folder / "elan-light-x3.safetensors").unlink()
    refused(entry, "missing")


def test_metadata_declares_tasks_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "WEIGHTS_FOLDER", tmp_path)

    def ship(name: str, **metadata: str) -> Entry:
        (tmp_path / f"{name}.safetensors").write_bytes(save(arrays(SMALL), metadata))
        return find(name)

    with pytest.raises(UsageError, match="no model serves dejpeg"):
        default_for("dejpeg")
    old = ship("a-denoise", task="denoise")
    assert (old.tasks, old.default_for, old.note) == (("denoise",), (), "")
    both = ship("b-photo", tasks="denoise, dejpeg", note="photographs")
    assert (both.tasks, both.task, both.note) == (("denoise", "dejpeg"), "denoise", "photographs")
    assert default_for("denoise") == old and default_for("dejpeg") == both
    both = ship("b-photo", tasks="denoise,dejpeg", default_for="denoise")
    assert default_for("denoise") == default_for("dejpeg") == both
    assert [entry.name for entry in entries()[:2]] == ["b-photo", "a-denoise"]
    own = ship("c-dejpeg", tasks="dejpeg")
    assert default_for("denoise") == both and default_for("dejpeg") == own
    assert ship("b-photo", tasks="denoise,dejpeg", default_for="denoise,dejpeg") == default_for("dejpeg")
    with pytest.raises(RestortError, match=r"no task in their metadata: .*c-dejpeg"):
        ship("c-dejpeg", tasks="painting")


def test_tasks_of_metadata() -> None:
    assert catalogue.parse_tasks({}, 4) == ("upscale",)
    assert catalogue.parse_tasks({}, 1) == ()
    assert catalogue.parse_tasks({"task": "deblur"}, 1) == ("deblur",)
    assert catalogue.parse_tasks({"task": "deblur", "tasks": "dejpeg,denoise,dejpeg"}, 1) == (
        "dejpeg",
        "denoise",
    )


def test_cache_root(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_root() == cache
    monkeypatch.setenv("RESTORT_CACHE", "")
    assert "restort" in str(cache_root()).lower()


def test_download_with_checksum(server: Server, verified: Entry, cache: Path) -> None:
    path, said = get(verified)
    assert path == cache / "weights" / "deraining.pth"
    assert path.read_bytes() == server.body
    assert len(said) == 1
    assert "licence MIT" in said[0]
    assert "NON-COMMERCIAL" not in said[0]
    assert verified.source in said[0]
    assert get(verified) == (path, [])
    assert get(verified, offline=True) == (path, [])
    assert server.requests == 1
    assert leftovers(cache) == {"deraining.pth"}


def test_download_without_checksum_is_trusted_once(server: Server, unverified: Entry, cache: Path) -> None:
    path, said = get(unverified)
    assert "Academic Public License" in said[0]
    assert "NON-COMMERCIAL" in said[0]
    assert "about 104.5 MB" in said[0]
    assert leftovers(cache) == {"deraining.pth", "deraining.pth.sha256"}
    digest, name = (cache / "weights" / "deraining.pth.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(server.body).hexdigest(), "deraining.pth")
    assert get(unverified, offline=True) == (path, [])
    # The publisher's file changes: nothing happens until ours is damaged, then it is not taken for the same.
    good = server.body
    server.body = save({k: v + 1 for k, v in arrays(SMALL).items()})
    assert get(unverified) == (path, [])
    path.write_bytes(good[:-1])
    refused(unverified, "has changed since", "delete", "deraining.pth.sha256")
    server.body = good
    assert get(unverified)[0].read_bytes() == good


def test_damaged_cache(server: Server, verified: Entry, cache: Path) -> None:
    path, _ = get(verified)
    for damage in (b"", server.body[:100], server.body[:-1] + bytes([server.body[-1] ^ 1])):
        path.write_bytes(damage)
        refused(verified, "damaged", str(path), verified.source, offline=True)
        _, said = get(verified)
        assert path.read_bytes() == server.body
        assert "downloading them again" in said[0]


def test_wrong_content(server: Server, unverified: Entry, verified: Entry, cache: Path) -> None:
    server.body = b"<html>Please log in to the network</html>"
    refused(verified, f"41 bytes instead of {verified.bytes:,}", verified.source)
    refused(unverified, "is not restormer-deraining", "web page")
    server.body = save(arrays(SMALL_ELAN))
    refused(unverified, "kind elan", "right file")
    body = bytearray(save(arrays(SMALL)))
    body[-1] ^= 1
    server.body = bytes(body)
    refused(verified, "checksum", verified.source)
    assert leftovers(cache) == set()


def test_no_network(server: Server, unverified: Entry, cache: Path) -> None:
    hand = ("download " + unverified.source, str(cache / "weights" / "deraining.pth"), "--weights")
    refused(unverified, "--offline forbids a download", *hand, offline=True)
    server.status = 404
    refused(unverified, "404", *hand)
    server.status, server.announced = 200, len(server.body) + 10
    refused(unverified, "broke off", *hand)
    with socket.socket() as free:  # bound, not listening: nobody answers there
        free.bind(("127.0.0.1", 0))
        closed = replace(unverified, source=f"http://127.0.0.1:{free.getsockname()[1]}/x.pth")
        refused(closed, "no connection", closed.source)
    assert leftovers(cache) == set()


def test_silent_server(unverified: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = replace(unverified, source=f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth")
        refused(slow, "does not answer")


class Endless(BaseHTTPRequestHandler):
    """Sends `piece` every `pause` seconds, without a length and without end."""

    server: Server
    piece, pause = bytes(1 << 16), 0.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.closing.wait(self.pause):
                self.server.requests += len(self.piece)
                self.wfile.write(self.piece)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def endless(piece: bytes, pause: float) -> Iterator[Server]:
    handler = type("Handler", (Endless,), {"piece": piece, "pause": pause})
    with Server(("127.0.0.1", 0), handler) as running:
        running.closing = threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.closing.set()
            running.shutdown()
            thread.join(5)


def test_download_without_end(verified: Entry, unverified: Entry, cache: Path) -> None:
    """The size that the catalogue knows, or twice its estimate, is as much as is ever written."""
    with endless(bytes(1 << 16), 0) as server:
        source = f"{server.url}/x.pth"
        refused(replace(verified, source=source), f"more than the {verified.bytes:,} bytes")
        small = replace(unverified, source=source, parameters=1000)
        refused(small, f"more than the {8000 + (1 << 20):,} bytes")
        assert server.requests < 64 << 20
    assert leftovers(cache) == set()


def test_download_slower_than_the_limit(
    verified: Entry, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(download, "START_SECONDS", 0.3)
    monkeypatch.setattr(download, "SLOWEST_BYTES_PER_SECOND", 1e9)
    start = time.perf_counter()
    with endless(b"x", 0.02) as server:  # never silent long enough for TIMEOUT_SECONDS
        refused(replace(verified, source=f"{server.url}/x.pth"), "slower than")
    assert time.perf_counter() - start < 5
    assert leftovers(cache) == set()


def test_sizes_that_differ_from_the_catalogue(server: Server, verified: Entry, unverified: Entry) -> None:
    assert verified.bytes is not None
    refused(replace(verified, bytes=verified.bytes - 1), "offers", f"{verified.bytes - 1:,}")
    refused(replace(verified, bytes=verified.bytes + 1), "instead of", f"{verified.bytes + 1:,}")
    refused(replace(unverified, parameters=1, bytes=10), "offers", "more than the 10 of this file")


def test_full_disk_is_not_blamed_on_the_network(verified: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    refused(verified, "No space left", "RESTORT_CACHE")


def test_file_put_there_by_hand(server: Server, unverified: Entry, cache: Path) -> None:
    path = cache / "weights" / "deraining.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(server.body[:500])
    refused(unverified, str(path), "truncated", offline=True)
    path.write_bytes(server.body)
    found, said = get(unverified, offline=True)
    assert found == path
    assert "Academic Public License" in said[0]
    assert get(unverified, offline=True) == (path, [])
    assert server.requests == 0


def test_cache_that_cannot_be_written(verified: Entry, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    refused(verified, "RESTORT_CACHE")


def test_progress_bar(verified: Entry, capfd: pytest.CaptureFixture[str]) -> None:
    get(verified, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


def test_two_at_once(server: Server, verified: Entry) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get(verified)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4
    assert server.requests == 1
