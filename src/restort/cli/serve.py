"""`restort serve`: restore pictures over HTTP. `restort gui`: the same for one person, with the page opened."""

from __future__ import annotations

import argparse
import os
import socket
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from restort.cli import choice, options

if TYPE_CHECKING:
    from restort.serve.app import Settings

_KEYS = "RESTORT_API_KEYS"
_ADVANCED = (
    *("max_bytes", "max_pixels", "queue_pixels", "deadline", "work", "quota", "lifetime", "unload_after"),
    *("offline", "precision", "threads"),
)


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers,
        "serve",
        run,
        "restore pictures over HTTP, with a web page",
        epilog=f"API keys: {_KEYS}=KEY1,KEY2. The page is at /, the description of the API at /openapi.json.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this computer only)"
    )
    parser.add_argument("--port", type=options.port, default=8777, help="(default: 8777; 0 for a free one)")
    _add_rest(parser)
    parser = options.command(
        subparsers,
        "gui",
        partial(run, browser=True),
        "open the page that restores pictures, in your browser",
        epilog="It listens on this computer only and ends with Ctrl-C.",
    )
    parser.set_defaults(host="127.0.0.1")
    parser.add_argument("--port", type=options.port, default=0, help="(default: a free one)")
    _add_rest(parser)


def _add_rest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        action="append",
        help="a model that may be asked for; give it several times (default: all shipped ones)",
    )
    parser.add_argument("--offline", action="store_true", help="never download")
    options.add_backend(parser)
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-bytes",
        metavar="N",
        type=options.count,
        default=200_000_000,
        help="of a request (default: 2e8)",
    )
    group.add_argument(
        "--max-pixels",
        metavar="N",
        type=options.count,
        default=100_000_000,
        help="of a picture (default: 1e8)",
    )
    group.add_argument(
        "--queue-pixels",
        metavar="N",
        type=options.count,
        default=1_000_000_000,
        help="of all pictures that wait or run; beyond it requests get 503 (default: 1e9)",
    )
    group.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=options.positive,
        default=600,
        help="that a request to /v1/restore may take (default: 600)",
    )
    group = parser.add_argument_group("jobs and memory")
    group.add_argument(
        "--work", metavar="DIR", type=Path, help="folder of jobs (default: serve in the cache folder)"
    )
    group.add_argument(
        "--quota",
        metavar="BYTES",
        type=options.count,
        default=20_000_000_000,
        help="of that folder (default: 2e10)",
    )
    group.add_argument(
        "--lifetime",
        metavar="HOURS",
        type=options.positive,
        default=24,
        help="of results of jobs (default: 24)",
    )
    group.add_argument(
        "--unload-after",
        metavar="SECONDS",
        type=options.positive,
        help="free the memory of a model that nobody asked for so long (default: never)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options.add_help_all(parser, _ADVANCED)


def run(args: argparse.Namespace, browser: bool = False) -> int:
    from restort.errors import RestortError
    from restort.inference.resolve import RunOptions
    from restort.utils.extras import need

    for module in ("fastapi", "uvicorn", "multipart", "prometheus_client"):
        need(module, f"restort {args.name}")
    import uvicorn

    from restort.serve.app import make_app
    from restort.serve.model_pool import ModelPool, load_by_name

    computing = RunOptions(args.backend, args.precision, "auto", None, 1.0, args.threads)
    models = ModelPool(
        computing,
        names=args.model,
        unload_after=args.unload_after,
        load=partial(load_by_name, offline=args.offline),
    )
    try:
        listening = socket.create_server((args.host, args.port), family=_family(args.host), backlog=2048)
    except OSError as error:
        raise RestortError(
            f"cannot listen on {args.host}:{args.port} ({error.strerror or error}); choose another --port or --host"
        ) from None
    with listening:
        app = make_app(models, _settings(args))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=64 << 10,
            server_header=False,
        )
        server = uvicorn.Server(config)
        where = f"http://{_host(args.host)}:{listening.getsockname()[1]}"
        if not args.quiet:
            choice.notify(f"serving {where} (Ctrl-C ends)")
            if not _settings(args).local and not _keys():
                choice.notify(f"anybody who reaches this address may use it; set {_KEYS} to ask for a key")
        if browser:
            threading.Timer(0.5, _open, (where,)).start()
        server.run(sockets=[listening])
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    from restort.serve.app import Settings
    from restort.utils.cache_dir import cache_root

    return Settings(
        work=args.work or cache_root() / ("gui" if args.name == "gui" else "serve"),
        keys=_keys(),
        local=args.host in ("127.0.0.1", "localhost", "::1"),
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        queue_pixels=args.queue_pixels,
        deadline=args.deadline,
        quota=args.quota,
        lifetime=args.lifetime * 3600,
    )


def _keys() -> tuple[str, ...]:
    return tuple(key.strip() for key in os.environ.get(_KEYS, "").split(",") if key.strip())


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _open(where: str) -> None:
    import webbrowser

    if not webbrowser.open(where):
        choice.notify(f"no browser was found; open {where} yourself")
