"""Find the file of a catalogue entry: shipped with the package, in the cache, or downloaded.

Where a publisher states no checksum, the first file that holds the right network is trusted. Its checksum is kept
beside it (`FILE.sha256`), so that a later change is noticed.

A download has limits of size and time. It uses urllib.request rather than requests, because only `read1` returns what
has arrived: with a `read` of a whole block, a server that sends one byte a second is waited for without limit.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from restort.errors import RestortError
from restort.utils.cache_dir import cache_root
from restort.utils.extras import reinstall_command
from restort.utils.files import make_folder, write_bytes
from restort.weights.catalogue import WEIGHTS_FOLDER, Entry
from restort.weights.checkpoint import load_weights

Notice = Callable[[str], object]

TIMEOUT_SECONDS = 30.0  # without a byte from the server
START_SECONDS = 60.0  # for a download of any size
SLOWEST_BYTES_PER_SECOND = 16_384.0  # then as long as this rate takes: 105 MB have 108 minutes
_CHUNK_BYTES = 1 << 16


def path_of(entry: Entry, *, offline: bool = False, notice: Notice, progress: bool | None = None) -> Path:
    """Return the path of the entry's file, complete and unchanged.

    A file that is neither shipped nor in the cache (`cache_root()/weights`, under its published name; a file put there
    by hand is accepted) is downloaded, unless `offline`. Calls `notice` with the licence before a download.
    `progress` shows a bar on stderr, by default only on a terminal.

    Raises RestortError where the file cannot be downloaded, is damaged, or has changed since its first use; the
    sentence gives the address and the place in the cache.
    """
    if entry.shipped:
        return _shipped(entry)
    target = cache_root() / "weights" / entry.filename
    try:
        make_folder(target.parent, private=True)
        return _cached_or_fetched(entry, target, offline, notice, progress)
    except RestortError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RestortError(
            f"cannot use the weights cache {target.parent} ({reason}); "
            "set RESTORT_CACHE to a writable folder, or give a file with --weights"
        ) from None


def _shipped(entry: Entry) -> Path:
    path = WEIGHTS_FOLDER / entry.filename
    if not path.is_file():
        raise RestortError(f"shipped weights are missing: {path}; restore them with: {reinstall_command()}")
    return path


def _cached_or_fetched(
    entry: Entry, target: Path, offline: bool, notice: Notice, progress: bool | None
) -> Path:
    from filelock import FileLock

    with FileLock(f"{target}.lock"):  # so that two runs at once download a file once
        known = entry.sha256 or _recorded(target)
        if target.is_file():
            if known is None:
                return _trust(entry, target, notice)
            if _sha256(target) == known:
                return target
            if offline:
                raise RestortError(f"damaged or changed weights: {target}; {_by_hand(entry, target)}")
            notice(f"damaged or changed weights: {target}; downloading them again")
        elif offline:
            raise RestortError(
                f"{entry.name} is not in the cache and --offline forbids a download; {_by_hand(entry, target)}"
            )
        _announce(entry, target, notice)
        part = target.with_name(target.name + ".part")
        try:
            _download(entry, target, part, known, progress)
            if known is None:
                digest = _checked(entry, part, f"the file from {entry.source} is not {entry.name}")
                _record(target, digest)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return target


def _announce(entry: Entry, target: Path, notice: Notice) -> None:
    limit = "" if entry.commercial_use else ", NON-COMMERCIAL: not for commercial use"
    size = f"{'' if entry.bytes else 'about '}{entry.approximate_bytes / 1e6:.1f} MB"
    notice(
        f"{entry.name}: licence {entry.licence}{limit}; downloading {size} from {entry.source} to {target}"
    )


def _download(entry: Entry, target: Path, part: Path, known: str | None, progress: bool | None) -> None:
    """Write the file to `part` and check its size and, where it is known, its SHA-256."""
    shown = sys.stderr.isatty() if progress is None else progress
    # Without a published size, parameters at 4 bytes each are an estimate; a file in float64 has twice that.
    limit = entry.bytes or 2 * entry.approximate_bytes + (1 << 20)
    deadline = time.monotonic() + START_SECONDS + limit / SLOWEST_BYTES_PER_SECOND
    try:
        request = urllib.request.Request(entry.source, headers={"User-Agent": "restort"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as file:
            if entry.source.startswith("https:") and not response.geturl().startswith("https:"):
                raise _Broken("the server redirects to an address without encryption")
            digest = _copy(response, file, limit, deadline, entry, shown)
    except (OSError, http.client.HTTPException, _Broken) as error:
        if isinstance(error, OSError) and not isinstance(error, _NETWORK_ERRORS):
            raise  # the cache folder: a full disk, for instance
        raise RestortError(
            f"cannot download {entry.name} ({_reason(error)}); {_by_hand(entry, target)}"
        ) from None
    if known is None or digest == known:
        return
    if entry.sha256:
        blame = f"wrong checksum: the file from {entry.source} is not {entry.name}; try again later"
    else:
        blame = (
            f"{entry.source} has changed since {entry.name} was first downloaded; "
            f"if that is right, delete {_record_path(target)} to accept the new file"
        )
    raise RestortError(f"{blame}; {_by_hand(entry, target)}")


class _Broken(Exception):
    """A download that must not go on; the message says why."""


_NETWORK_ERRORS = (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError)


def _copy(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    limit: int,
    deadline: float,
    entry: Entry,
    shown: bool,
) -> str:
    """Copy the body of a response and return its SHA-256 (hex)."""
    from tqdm import tqdm

    announced = response.length  # None without a Content-Length
    if announced is not None and announced > limit:
        raise _Broken(f"the server offers {announced:,} bytes, more than the {limit:,} of this file")
    digest, size = hashlib.sha256(), 0
    bar = tqdm(total=announced or entry.bytes, unit="B", unit_scale=True, disable=not shown, desc=entry.name)
    with bar:
        while block := response.read1(_CHUNK_BYTES):
            size += len(block)
            if size > limit:
                raise _Broken(f"the server sends more than the {limit:,} bytes of this file")
            if time.monotonic() > deadline:
                raise _Broken(f"slower than {SLOWEST_BYTES_PER_SECOND / 1024:g} KiB a second")
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    if announced is not None and size < announced:
        raise _Broken("the connection broke off")
    if entry.bytes is not None and size != entry.bytes:
        raise _Broken(f"the server sent {size:,} bytes instead of {entry.bytes:,}")
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Say in a few words why a download failed, without nested text of libraries."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}".strip()
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, _Broken):
        return str(cause)
    if isinstance(cause, TimeoutError):
        return "the server does not answer"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate cannot be verified: {cause.verify_message}"
    if isinstance(cause, (http.client.IncompleteRead, ConnectionResetError)):
        return "the connection broke off"
    if isinstance(cause, OSError):
        return "no connection to the server"
    return type(cause).__name__


def _by_hand(entry: Entry, target: Path) -> str:
    return f"download {entry.source} by other means and put it at {target}, or give it with --weights FILE"


def _trust(entry: Entry, target: Path, notice: Notice) -> Path:
    """Accept a file put into the cache by hand if it holds the entry's network, and keep its checksum."""
    digest = _checked(entry, target, f"{target} is not {entry.name}")
    _record(target, digest)
    notice(f"{entry.name}: using {target}; licence {entry.licence}")
    return target


def _checked(entry: Entry, path: Path, blame: str) -> str:
    """Return the SHA-256 of a file after checking that it holds the network of the entry."""
    try:
        weights = load_weights(path)
    except RestortError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise RestortError(f"{blame}: {reason}") from None
    spec = weights.spec
    found = (spec.architecture, spec.in_channels, spec.scale)
    if found != (entry.architecture, entry.channels, entry.scale):
        raise RestortError(
            f"{blame}: it holds a network of kind {found[0]} with {found[1]} channels and scale {found[2]}; "
            "give the right file"
        )
    return weights.digest


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _recorded(target: Path) -> str | None:
    """Return the checksum kept at the first use (in the format of `sha256sum`), if there is one."""
    try:
        words = _record_path(target).read_text("utf-8").split()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else None


def _record(target: Path, digest: str) -> None:
    write_bytes(_record_path(target), f"{digest}  {target.name}\n".encode(), overwrite=True)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
