"""The server by HTTP, with a stand-in for the network: results, limits, jobs, refusals. No speed is asserted."""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("multipart")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient

from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference.model import Model
from restort.inference.resolve import RunOptions
from restort.serve.app import Settings, make_app, safe_name
from restort.serve.model_pool import ModelPool
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights

HOST = {"host": "127.0.0.1"}


class Slow(FakeRunner):
    """A stand-in that can be held, and counts what it runs."""

    gate = threading.Event()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        assert self.gate.wait(30)
        return super().__call__(x)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str, RunOptions], Model]:
    Slow.gate.set()
    files = {
        4: write_weights(tmp_path / "x4.safetensors", ELAN[4]),
        2: write_weights(tmp_path / "x2.safetensors", ELAN[2]),
        1: write_weights(tmp_path / "x1.safetensors", RESTORMER),
    }

    def make(name: str, options: RunOptions) -> Model:
        weights = load_weights(files[4 if "x4" in name else 2 if "x2" in name else 1])
        return Model(weights, Slow(weights.spec, "fp32"), name=name, asked=("auto", "auto"))

    return make


@pytest.fixture
def serve(tmp_path: Path, load: Any) -> Iterator[Callable[..., TestClient]]:
    opened: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        names = settings.pop("names", None)
        pool = ModelPool(RunOptions(), names=names, load=load)
        app = make_app(pool, replace(Settings(tmp_path / "work"), **settings))
        client = TestClient(app, base_url="http://127.0.0.1", headers=HOST)
        client.__enter__()
        opened.append(client)
        return client

    yield start
    Slow.gate.set()
    for client in opened:
        client.__exit__(None, None, None)


def png(height: int = 20, width: int = 30, seed: int = 0, dtype: Any = np.uint8) -> bytes:
    import tempfile

    values = (
        np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, 3)).astype(dtype)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        write(path, Picture(values))
        return path.read_bytes()


def sent(
    client: TestClient, data: bytes, name: str = "photo.png", path: str = "/v1/restore", **fields: Any
) -> Any:
    return client.post(path, files={"file": (name, data)}, data={"task": "denoise", **fields})


def job_when(client: TestClient, url: str, states: tuple[str, ...]) -> dict[str, Any]:
    for _ in range(600):
        job: dict[str, Any] = client.get(url).json()
        if job["state"] in states:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job stays {job}")


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, "photo_denoised.png"),
        ({"task": "deblur", "format": "jpg", "quality": "80"}, "photo_deblurred.jpg"),
        ({"task": "upscale", "scale": "2", "format": "webp"}, "photo_x2.webp"),
        ({"task": "", "model": "elan-light-x4", "tile": "64"}, "photo_x4.png"),
        ({"strength": "0.5", "format": "tiff"}, "photo_denoised.tif"),
    ],
)
def test_a_result_is_that_of_the_command(
    serve: Any, load: Any, tmp_path: Path, fields: dict[str, str], ending: str
) -> None:
    client, data = serve(), png(70, 90)
    answer = sent(client, data, **fields)
    assert answer.status_code == 200, answer.text
    assert f'filename="{ending}"' in answer.headers["content-disposition"]
    source, target = tmp_path / "photo.png", tmp_path / ending
    source.write_bytes(data)
    name = answer.headers["x-restort-model"]
    tile = int(fields["tile"]) if "tile" in fields else "auto"
    model = load(name, RunOptions()).with_options(tile=tile, strength=float(fields.get("strength", "1")))
    model.restore_file(source, target, quality=int(fields.get("quality", "95")))
    assert answer.content == target.read_bytes()
    assert not list((tmp_path / "work/now").iterdir()), "nothing is left behind"


def test_a_raw_body_and_a_query(serve: Any) -> None:
    answer = serve().post(
        "/v1/restore?task=upscale&scale=4", content=png(16, 16), headers={"x-filename": "../../etc/a b.png"}
    )
    assert answer.status_code == 200, answer.text
    assert "a%20b_x4.png" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "sharpen"}, "task 'sharpen' is not known; use upscale, denoise"),
        ({"task": ""}, "task is missing"),
        ({"scale": "3"}, "scale is for upscale"),
        ({"task": "upscale", "scale": "5"}, "scale must be a whole number from 2 to 4"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"model": "/etc/passwd"}, "/etc/passwd"),
        ({"model": "elan-light-x2"}, "another task"),
        ({"format": "gif"}, "format 'gif' cannot be written; use png, jpg"),
        ({"strength": "nan"}, "strength must be a number from 0 to 1"),
        ({"tile": "7"}, "tile must be a whole number from 32"),
        ({"tile": "exact", "task": "upscale", "scale": "2"}, "Restormer only"),
        ({"quality": "0"}, "quality must be"),
        ({"colour": "blue"}, "the field 'colour' is not known"),
    ],
)
def test_wrong_fields_get_400_and_one_sentence(serve: Any, fields: dict[str, str], sentence: str) -> None:
    answer = sent(serve(), png(), **fields)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


def header_of(width: int, height: int) -> bytes:
    """A PNG of about 1 KB that claims to be large."""
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 900_000)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_what_cannot_be_restored(serve: Any, tmp_path: Path) -> None:
    client = serve(max_bytes=50_000)
    for data, status, sentence in [
        (header_of(30_000, 30_000), 413, "photo.png: it claims 30000 x 30000 pixels"),
        (b"GIF89 no picture", 422, "photo.png"),
        (b"", 422, "photo.png"),
        (png()[:200], 422, "photo.png"),
        (png(200, 200), 413, "the request is larger than 0 MB"),
    ]:
        answer = sent(client, data)
        assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
        assert str(tmp_path) not in answer.text
    assert client.post("/v1/restore?task=denoise", content=b"").status_code == 400
    assert client.post("/v1/restore", data={"task": "denoise"}).status_code == 400
    assert sent(client, png()).status_code == 200, "and the server goes on"
    assert not list((tmp_path / "work/now").iterdir())


def test_a_body_without_a_length_is_counted_while_it_comes(serve: Any) -> None:
    client = serve(max_bytes=10_000)

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    answer = client.post("/v1/restore?task=denoise", content=endless())
    assert answer.status_code == 413


def test_keys(serve: Any) -> None:
    client = serve(keys=("right", "other"))
    assert sent(client, png()).status_code == 401
    assert client.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401
    assert client.get("/healthz").status_code == 200
    good = {"authorization": "Bearer right"}
    assert client.get("/v1/models", headers=good).status_code == 200
    made = client.post("/v1/jobs?task=denoise", content=png(), headers=good)
    assert made.status_code == 202
    url = made.headers["location"]
    assert client.get(url, headers=good).status_code == 200
    assert client.get(url, headers={"x-api-key": "other"}).status_code == 404, "a job of another key"
    assert client.get("/v1/jobs", headers={"x-api-key": "other"}).json() == {"jobs": []}


def test_other_sites_and_names_of_the_host_are_refused(serve: Any) -> None:
    client = serve()
    assert client.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": "http://127.0.0.1"}).status_code == 200
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    answer = client.get("/v1/models")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    public = serve(local=False, work=Path(str(client.app.service.settings.work) + "2"))
    assert public.get("/v1/models", headers={"host": "pictures.example"}).status_code == 200


def test_a_full_queue_refuses_and_the_accepted_are_done(serve: Any) -> None:
    client = serve(queue_pixels=1500)
    Slow.gate.clear()
    first = client.post("/v1/jobs?task=denoise", content=png())
    second = client.post("/v1/jobs?task=denoise", content=png(40, 40))
    assert (first.status_code, second.status_code) == (202, 503)
    assert "queue is full" in second.json()["error"] and second.headers["retry-after"]
    third = client.post("/v1/jobs?task=denoise", content=png(30, 30))
    assert third.status_code == 202 and client.get("/readyz").status_code == 503
    assert client.post("/v1/restore?task=denoise", content=png()).status_code == 503
    Slow.gate.set()
    for made in (first, third):
        assert job_when(client, made.headers["location"], ("done",))["error"] is None
    assert client.get("/readyz").status_code == 200


def test_a_job_from_sending_to_deleting(serve: Any, tmp_path: Path) -> None:
    client, data = serve(), png(dtype=np.uint16)
    made = sent(client, data, path="/v1/jobs", task="upscale", scale="2", format="tif")
    assert made.status_code == 202 and made.json()["state"] == "queued"
    url = made.headers["location"]
    with client.stream("GET", f"{url}/events") as stream:
        text = "".join(stream.iter_text())
    last = json.loads(text.strip().rsplit("data: ", 1)[1])
    assert "event: end" in text and (last["state"], last["progress"], last["size"]) == ("done", 1.0, [60, 40])
    result = client.get(f"{url}/result")
    (tmp_path / "back.tif").write_bytes(result.content)
    assert read(tmp_path / "back.tif").pixels.shape == (40, 60, 3)
    assert 'filename="photo_x2.tif"' in result.headers["content-disposition"]
    for which, size in (("input", (20, 30)), ("result", (40, 60))):
        seen = client.get(f"{url}/preview/{which}")
        (tmp_path / "seen.png").write_bytes(seen.content)
        assert read(tmp_path / "seen.png").pixels.shape[:2] == size, "an 8-bit picture for browsers"
        assert read(tmp_path / "seen.png").bits == 8
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [made.json()["id"]]
    assert client.delete(url).status_code == 200
    assert client.get(url).status_code == 404 and not list((tmp_path / "work/jobs").iterdir())
    for wrong in ("/v1/jobs/../../etc", "/v1/jobs/" + "0" * 32, "/v1/jobs/x/result"):
        assert client.get(wrong).status_code == 404


def test_a_job_is_cancelled(serve: Any) -> None:
    client = serve()
    Slow.gate.clear()
    running = client.post("/v1/jobs?task=denoise&tile=32", content=png(60, 200)).headers["location"]
    waiting = client.post("/v1/jobs?task=denoise", content=png()).headers["location"]
    job_when(client, running, ("running",))
    assert client.get(f"{waiting}/result").status_code == 409
    assert client.delete(waiting).status_code == client.delete(running).status_code == 200
    Slow.gate.set()
    for _ in range(200):
        if client.get(running).status_code == client.get(waiting).status_code == 404:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("a cancelled job stays")
    assert sent(client, png()).status_code == 200


def test_a_restart_goes_on_with_the_jobs(serve: Any, load: Any, tmp_path: Path) -> None:
    settings = Settings(tmp_path / "work")
    Slow.gate.clear()
    with TestClient(
        make_app(ModelPool(RunOptions(), load=load), settings), base_url="http://127.0.0.1"
    ) as first:
        urls = [
            first.post("/v1/jobs?task=denoise&tile=32", content=png(64, 96, seed)).headers["location"]
            for seed in range(3)
        ]
        job_when(first, urls[0], ("running",))
        threading.Timer(0.3, Slow.gate.set).start()  # the running one ends at its next tile
    with sqlite3.connect(settings.work / "jobs.sqlite") as table:
        assert {state for (state,) in table.execute("SELECT state FROM jobs")} <= {
            "queued",
            "running",
            "done",
        }
    second = serve()
    for url in urls:
        assert job_when(second, url, ("done", "failed"))["state"] == "done"


def test_old_results_and_a_full_work_folder(serve: Any) -> None:
    client = serve(lifetime=0.0, quota=10_000)
    url = client.post("/v1/jobs?task=denoise", content=png(8, 8)).headers["location"]
    job_when(client, url, ("done",))
    time.sleep(0.05)
    client.app.service.jobs.sweep()
    assert client.get(url).status_code == 404
    answer = client.post("/v1/jobs?task=denoise", content=png(100, 100))
    assert answer.status_code == 507 and "work folder is full" in answer.json()["error"]


def test_a_deadline(serve: Any) -> None:
    client = serve(deadline=0.2)
    Slow.gate.clear()
    threading.Timer(0.6, Slow.gate.set).start()
    answer = client.post("/v1/restore?task=denoise&tile=32", content=png(64, 96))
    assert answer.status_code == 504 and "time was over" in answer.json()["error"]


def test_the_keys_take_turns(load: Any, tmp_path: Path) -> None:
    from restort.serve.batcher import Batcher, Ticket
    from restort.serve.request import parse

    order: list[str] = []
    batcher = Batcher(ModelPool(RunOptions(), load=load), observe=lambda ticket: order.append(ticket.key))
    Slow.gate.clear()
    tickets = []
    for i, key in enumerate("aaaaaaaab"):
        source = tmp_path / f"{i}.png"
        source.write_bytes(png())
        tickets.append(Ticket(source, tmp_path / f"out{i}.png", parse({"task": "denoise"}), key=key))
        batcher.submit(tickets[-1])
    Slow.gate.set()
    assert all(ticket.wait(30) for ticket in tickets)
    batcher.close()
    assert order.index("b") < 6, "one of b does not wait for all of a"
    assert {ticket.state for ticket in tickets} == {"done"}


def test_models_that_may_be_asked_for(serve: Any) -> None:
    client = serve(names=["restormer-small-denoise"])
    assert [m["name"] for m in client.get("/v1/models").json()["models"]] == ["restormer-small-denoise"]
    assert sent(client, png(), task="", model="restormer-small-denoise").status_code == 200
    refused = sent(client, png(), task="upscale", scale="2")
    assert refused.status_code == 400 and "it runs restormer-small-denoise" in refused.json()["error"]


def test_models_are_unloaded_when_idle(load: Any) -> None:
    pool = ModelPool(RunOptions(), unload_after=0.01, load=load)
    with pool.borrow("elan-light-x2") as model:
        pool.sweep()
        assert pool.loaded() == ["elan-light-x2"]
    time.sleep(0.02)
    pool.sweep()
    assert pool.loaded() == [] and model._runner.closed  # type: ignore[attr-defined]
    with pool.borrow("elan-light-x2") as again:
        assert again is not model


def test_metrics_and_the_description(serve: Any) -> None:
    client = serve()
    sent(client, png())
    sent(client, b"nothing")
    text = client.get("/metrics").text
    for line in (
        'restort_requests_total{code="200",method="POST",path="/v1/restore"} 1.0',
        'restort_requests_total{code="422",method="POST",path="/v1/restore"} 1.0',
        'restort_pictures_total{state="done"} 1.0',
        "restort_pixels_total 600.0",
        "restort_network_seconds_count 1.0",
        "restort_queue_pictures 0.0",
    ):
        assert line in text, line
    assert all(line.startswith(("#", "restort_")) for line in text.splitlines())
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/restore", "/v1/jobs", "/v1/jobs/{identity}/events", "/v1/models"} <= paths.keys()


def test_many_clients_at_once(serve: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client, data = serve(), png(12, 12)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda i: sent(client, data if i % 3 else data[:60]), range(90)))
    assert [a.status_code for a in answers].count(200) == 60
    assert len({a.content for a in answers if a.status_code == 200}) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("..", "picture"),
        ("a\x00b\n.png", "a_b_.png"),
        (".hidden.png", "hidden.png"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
        ("照片.png", "照片.png"),
    ],
)
def test_names_of_files(name: str, expected: str) -> None:
    assert safe_name(name) == expected


def test_forms_that_are_damaged(serve: Any) -> None:
    client = serve()
    for body, kind in [
        (b"no form", "multipart/form-data"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc', "multipart/form-data; boundary=x"),
    ]:
        answer = client.post("/v1/restore", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500 and answer.json()["error"], answer.text
