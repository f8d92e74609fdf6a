"""The HTTP interface: FastAPI in front of the batcher and the jobs.

    POST   /v1/restore             a picture in, the restored picture out
    POST   /v1/jobs                the same for large files: answers at once with an id
    GET    /v1/jobs                jobs of this key
    GET    /v1/jobs/{id}           state and progress
    GET    /v1/jobs/{id}/events    the same as server-sent events
    GET    /v1/jobs/{id}/result    the restored picture
    GET    /v1/jobs/{id}/preview/{which}   'input' or 'result' as a PNG that every browser shows
    DELETE /v1/jobs/{id}           cancel and forget
    GET    /v1/models, /healthz, /readyz, /metrics

Errors are JSON: {"error": one sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from restort.errors import OutOfMemory, RestortError, TooLarge, UsageError
from restort.serve.batcher import Batcher, Busy, Ticket
from restort.serve.guard import Guard
from restort.serve.jobs import UNFINISHED, Full, Job, JobStore
from restort.serve.metrics import Metrics
from restort.serve.model_pool import ModelPool
from restort.serve.preview import preview
from restort.serve.request import FIELDS, FORMATS, parse
from restort.serve.request import Request as Asked
from restort.utils.files import make_folder
from restort.version import __version__

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_CHUNK = 1 << 20
_STATUS = {"cancelled": 499, "expired": 504}
_POLL_S = 0.25


@dataclass(frozen=True)
class Settings:
    """Limits and places of a server.

    work            folder of jobs
    keys            API keys; empty for none
    local           bound to this computer only
    max_bytes       of a request
    max_pixels      of a picture
    queue_pixels    of all that wait or run
    deadline        seconds that POST /v1/restore may take
    quota           bytes of the work folder
    lifetime        seconds that results of jobs are kept
    """

    work: Path
    keys: tuple[str, ...] = ()
    local: bool = True
    max_bytes: int = 200_000_000
    max_pixels: int = 100_000_000
    queue_pixels: int = 1_000_000_000
    deadline: float = 600.0
    quota: int = 20_000_000_000
    lifetime: float = 24 * 3600.0


class Service:
    """What the routes share: models, batcher, jobs, metrics."""

    def __init__(self, models: ModelPool, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics()
        self.jobs = JobStore(settings.work, quota=settings.quota, lifetime=settings.lifetime)
        self.batcher = Batcher(
            models,
            max_pixels=settings.max_pixels,
            queue_pixels=settings.queue_pixels,
            observe=self.metrics.ended,
        )
        self.tickets: dict[str, Ticket] = {}
        shutil.rmtree(
            settings.work / "now", ignore_errors=True
        )  # requests that a server which ended left behind
        make_folder(settings.work / "now", private=True)
        for job in self.jobs.unfinished():
            self.begin(job)

    def begin(self, job: Job) -> None:
        """Hand a job to the batcher; one that the batcher refuses has failed."""
        ticket = Ticket(self.jobs.source(job), self.jobs.target(job), job.request, key=job.key)
        self.tickets[job.id] = ticket
        ticket.on_end(lambda ended: self._finished(job.id, ended))
        try:
            self.batcher.submit(ticket)
        except RestortError as error:
            ticket.end("failed", error)

    def _finished(self, identity: str, ticket: Ticket) -> None:
        if self.batcher.closing and ticket.state == "cancelled":
            return  # a restart goes on with it
        result = ticket.result
        self.jobs.update(
            identity,
            state=ticket.state,
            error=None if ticket.error is None else plain(ticket.error, ticket.source),
            model=ticket.model,
            finished=time.time(),
            seconds=ticket.seconds.network if result else None,
            width=result.result_size[0] if result else None,
            height=result.result_size[1] if result else None,
        )
        self.tickets.pop(identity, None)

    def describe(self, job: Job) -> dict[str, Any]:
        """A job as JSON."""
        ticket = self.tickets.get(job.id)
        done, total = ticket.progress if ticket else (0, 0)
        return {
            "id": job.id,
            "name": job.name,
            "state": ticket.state if ticket and job.state in UNFINISHED else job.state,
            "progress": 1.0 if job.state == "done" else done / total if total else 0.0,
            "model": (ticket.model if ticket else None) or job.model,
            "error": job.error,
            "request": job.request.to_json(),
            "created": job.created,
            "finished": job.finished,
            "seconds": job.seconds,
            "size": [job.width, job.height] if job.width else None,
            "result": f"/v1/jobs/{job.id}/result" if job.state == "done" else None,
        }

    def close(self) -> None:
        self.batcher.close()
        self.models.close()
        self.jobs.close()


def plain(error: RestortError, source: Path) -> str:
    """The sentence of an error, with the name that the client knows instead of the server's path."""
    return str(error).replace(str(source), source.name)


def status_of(error: RestortError) -> int:
    if isinstance(error, Busy | OutOfMemory):
        return 503
    if isinstance(error, Full):
        return 507
    if isinstance(error, TooLarge):
        return 413
    return 400 if isinstance(error, UsageError) else 422


def refusal(error: RestortError, source: Path | None = None, status: int | None = None) -> JSONResponse:
    code = status or status_of(error)
    sentence = str(error) if source is None else plain(error, source)
    return JSONResponse({"error": sentence}, code, {"retry-after": "2"} if code == 503 else None)


def safe_name(name: str) -> str:
    """A file name of the client as one of ours: no folders, no control characters, at most 100 characters."""
    last = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", name.replace("\\", "/").rsplit("/", 1)[-1]).strip(" .")
    return last[-100:].lstrip(".") or "picture"


async def received(request: HttpRequest, folder: Path) -> tuple[Path, Asked]:
    """Store the picture of a request in `folder`, and parse its fields: a form with `file`, or a raw body and a query.

    Raises UsageError for wrong fields.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        asked, path = (
            parse(request.query_params),
            folder / safe_name(request.headers.get("x-filename", "picture")),
        )
        with path.open("wb") as file:
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
        if path.stat().st_size == 0:
            raise UsageError(
                "there is no picture in the request; send it as the body, or as `file` of a form"
            )
        return path, asked
    try:
        form = await request.form(max_files=1, max_fields=2 * len(FIELDS), max_part_size=10_000)
    except (MultiPartException, HTTPException) as error:
        if getattr(error, "status_code", 400) == 413:
            raise
        said = getattr(error, "message", None) or getattr(error, "detail", "")
        raise UsageError(f"the form cannot be read: {said}") from None
    try:
        upload = form.get("file")
        if upload is None or isinstance(upload, str):
            raise UsageError("the form has no picture; send it as the field `file`")
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        asked = parse(dict(request.query_params) | fields)
        path = folder / safe_name(upload.filename or "picture")
        with path.open("wb") as file:
            while chunk := await upload.read(_CHUNK):
                await run_in_threadpool(file.write, chunk)
        return path, asked
    finally:
        await form.close()


def make_app(models: ModelPool, settings: Settings) -> Any:
    """Return the ASGI application. It owns `models` from now on."""
    service = Service(models, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeper.cancel()
            await run_in_threadpool(service.close)

    app = FastAPI(title="RestoRT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    _restore_routes(app, service)
    _job_routes(app, service)
    _other_routes(app, service)

    @app.exception_handler(RestortError)
    async def failed(request: HttpRequest, error: RestortError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def http(request: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    def count(method: str, path: str, code: int) -> None:
        service.metrics.requests.labels(method, path, str(code)).inc()

    guarded = Guard(
        app,
        keys=settings.keys,
        max_bytes=settings.max_bytes,
        full=service.batcher.full,
        local=settings.local,
        count=count,
    )
    guarded.service = service  # type: ignore[attr-defined]  # for tests
    return guarded


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(60)
        await run_in_threadpool(service.jobs.sweep)


def _key(request: HttpRequest) -> str:
    return str(getattr(request.state, "key", ""))


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **{name: {"type": "string"} for name in FIELDS},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in FIELDS
    ],
}


def _restore_routes(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post("/v1/restore", response_class=Response, openapi_extra=_BODY)
    async def restore(request: HttpRequest) -> Response:
        """Restore a picture; the answer is the picture."""
        folder = Path(tempfile.mkdtemp(dir=settings.work / "now"))
        ticket: Ticket | None = None
        try:
            source, asked = await received(request, folder)
            target = folder / f"result.{asked.format}"
            ticket = Ticket(
                source, target, asked, key=_key(request), deadline=time.monotonic() + settings.deadline
            )
            try:
                await run_in_threadpool(service.batcher.submit, ticket)
            except RestortError as error:
                return refusal(error, source)
            await _ended(ticket, request)
            if ticket.result is None:
                assert ticket.error is not None
                return refusal(ticket.error, source, _STATUS.get(ticket.state))
            name = asked.result_name(source.name, ticket.result.result_size[0] // ticket.result.size[0])
            answer = FileResponse(
                target,
                media_type=FORMATS[asked.format],
                filename=name,
                headers={
                    "x-restort-model": ticket.model or "",
                    "x-restort-backend": f"{ticket.result.backend} {ticket.result.precision}",
                    "x-restort-notes": json.dumps(list(ticket.result.notes)),
                    "server-timing": ", ".join(
                        f"{stage};dur={1000 * seconds:.1f}"
                        for stage, seconds in asdict(ticket.seconds).items()
                    ),
                },
                background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
            )
            folder = None  # type: ignore[assignment]  # the answer removes it
            return answer
        finally:
            if ticket is not None:
                ticket.cancel()  # a client that is gone waits for nothing
            if folder is not None:
                await run_in_threadpool(_remove_after, ticket, folder)


def _remove_after(ticket: Ticket | None, folder: Path) -> None:
    """Remove the files of a request when nothing works on them any more."""

    def remove(_: Ticket | None = None) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    if ticket is None or (ticket.size is None and not ticket.ended):
        remove()
    else:
        ticket.on_end(remove)


async def _ended(ticket: Ticket, request: HttpRequest) -> None:
    """Wait until the ticket has ended; cancel it when the client goes away or its time is over."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()

    def notify(_: Ticket) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: None if end.done() else end.set_result(None))

    ticket.on_end(notify)
    while not end.done():
        await asyncio.wait([end], timeout=0.5)
        if not end.done() and await request.is_disconnected():
            ticket.cancel()


def _job_routes(app: FastAPI, service: Service) -> None:
    jobs = service.jobs

    def mine(request: HttpRequest, identity: str) -> Job:
        job = jobs.find(identity) if re.fullmatch("[0-9a-f]{32}", identity) else None
        if job is None or (service.settings.keys and job.key != _key(request)):
            raise HTTPException(
                404, f"there is no job {identity[:64]!r}; it may have been removed after its lifetime"
            )
        return job

    @app.post("/v1/jobs", status_code=202, openapi_extra=_BODY)
    async def submit(request: HttpRequest) -> JSONResponse:
        """Take a picture and answer at once."""
        length = request.headers.get("content-length", "0")
        await run_in_threadpool(jobs.check_quota, int(length) if length.isdigit() else 0)
        identity, folder = jobs.new_folder()
        try:
            source, asked = await received(request, folder)
            job = Job(identity, _key(request), source.name, asked, "queued", created=time.time())
            ticket = Ticket(source, jobs.target(job), asked, key=job.key)
            try:
                service.tickets[identity] = ticket
                await run_in_threadpool(jobs.add, job)
                await run_in_threadpool(service.batcher.submit, ticket)
            except RestortError as error:
                await run_in_threadpool(jobs.remove, identity)
                service.tickets.pop(identity, None)
                return refusal(error, source)
            ticket.on_end(lambda ended: service._finished(identity, ended))
            return JSONResponse(service.describe(job), 202, {"location": f"/v1/jobs/{identity}"})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @app.get("/v1/jobs")
    async def recent(request: HttpRequest) -> dict[str, Any]:
        """The newest jobs of this key (without keys: of this address)."""
        return {
            "jobs": [service.describe(job) for job in await run_in_threadpool(jobs.of_key, _key(request))]
        }

    @app.get("/v1/jobs/{identity}")
    async def state(request: HttpRequest, identity: str) -> dict[str, Any]:
        return service.describe(mine(request, identity))

    @app.get("/v1/jobs/{identity}/events")
    async def events(request: HttpRequest, identity: str) -> StreamingResponse:
        """Server-sent events: `progress` with the state, at the end `end`."""
        mine(request, identity)

        async def lines() -> AsyncIterator[str]:
            before, quiet = "", 0
            while True:
                job = await run_in_threadpool(jobs.find, identity)
                if job is None:
                    return
                data = json.dumps(service.describe(job))
                over = job.state not in UNFINISHED
                if data != before or over:
                    yield f"event: {'end' if over else 'progress'}\ndata: {data}\n\n"
                    before, quiet = data, 0
                if over:
                    return
                quiet += 1
                if quiet % 60 == 0:
                    yield ": still here\n\n"
                await asyncio.sleep(_POLL_S)

        return StreamingResponse(
            lines(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    @app.get("/v1/jobs/{identity}/result", response_class=Response)
    async def result(request: HttpRequest, identity: str) -> Response:
        job = mine(request, identity)
        if job.state != "done":
            sentence = job.error or f"the job is {job.state}; ask again when it is done"
            raise HTTPException(409, sentence)
        with_scale = (job.request.scale or 4) if job.request.task == "upscale" else 1
        return FileResponse(
            jobs.target(job),
            media_type=FORMATS[job.request.format],
            filename=job.request.result_name(job.name, with_scale),
        )

    @app.get("/v1/jobs/{identity}/preview/{which}", response_class=Response)
    async def look(request: HttpRequest, identity: str, which: str) -> Response:
        """The picture as an 8-bit PNG of at most 4 megapixels, for browsers that cannot show the file itself."""
        job = mine(request, identity)
        if which not in ("input", "result") or (which == "result" and job.state != "done"):
            raise HTTPException(404, "the preview is of 'input', or of 'result' when the job is done")
        path = jobs.source(job) if which == "input" else jobs.target(job)
        return Response(await run_in_threadpool(preview, path), media_type="image/png")

    @app.delete("/v1/jobs/{identity}")
    async def delete(request: HttpRequest, identity: str) -> dict[str, Any]:
        """Cancel, between two tiles where it runs, and forget."""
        job = mine(request, identity)
        ticket = service.tickets.get(identity)
        if ticket is None:
            await run_in_threadpool(jobs.remove, identity)
        else:
            ticket.cancel()
            ticket.on_end(lambda _: jobs.remove(identity))
        return {"id": job.id, "state": "cancelled"}


def _other_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What may be asked for."""
        loaded = service.models.loaded()
        return {
            "models": [
                {
                    "name": entry.name,
                    "tasks": list(entry.tasks),
                    "scale": entry.scale,
                    "licence": entry.licence,
                    "loaded": entry.name in loaded,
                }
                for entry in service.models.entries()
            ],
            "formats": list(FORMATS),
            "limits": {"bytes": service.settings.max_bytes, "pixels": service.settings.max_pixels},
            "version": __version__,
        }

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the process lives and its network thread runs."""
        if not service.batcher.alive:
            raise HTTPException(500, "the thread of the network has ended; restart the server")
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether more is taken now."""
        if service.batcher.full():
            raise HTTPException(503, "the queue is full; try again later")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        text = await run_in_threadpool(service.metrics.text, service.batcher)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def page(name: str) -> Callable[[], Any]:
        async def file() -> Response:
            path = PAGE / (name or "index.html")
            headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
            return Response(
                await run_in_threadpool(path.read_bytes), media_type=_PAGE_FILES[name], headers=headers
            )

        return file

    for name in _PAGE_FILES:
        app.get(f"/{name}", response_class=Response, include_in_schema=False)(page(name))
