"""Brings the file of a catalogue entry: shipped, from the cache, or over the network by pooch.

Where a publisher states no checksum, the first file that proves to be the weights it should be is
trusted, and its checksum is kept beside it (`FILE.sha256`), so that a later change is noticed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from restort.errors import RestortError
from restort.utils.cache_dir import cache_root
from restort.utils.files import write_bytes
from restort.weights.catalogue import WEIGHTS_FOLDER, Entry
from restort.weights.checkpoint import load_weights

Notice = Callable[[str], None]

TIMEOUT_SECONDS = 30.0  # without a byte from the server
_CHUNK_BYTES = 1 << 16


def path_of(entry: Entry, *, offline: bool = False, notice: Notice, progress: bool | None = None) -> Path:
    """The path of the entry's file, which is whole and unchanged.

    A file that is neither shipped nor in the cache (`cache_root()/weights`, under its published name: it may
    be put there by hand) is downloaded, unless `offline`. `notice` is told the licence before a download.
    `progress` shows a bar on stderr; by default only on a terminal.

    Raises RestortError where the file cannot be had, is damaged, or has changed since it was first fetched;
    the sentence tells the address and the place in the cache.
    """
    if entry.shipped:
        return _shipped(entry)
    target = cache_root() / "weights" / entry.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return _cached_or_fetched(entry, target, offline, notice, progress)
    except RestortError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RestortError(
            f"the weights cache {target.parent} cannot be used ({reason}); "
            "set RESTORT_CACHE to a folder that can be written, or give a file by --weights"
        ) from None


def _shipped(entry: Entry) -> Path:
    path = WEIGHTS_FOLDER / entry.filename
    if not path.is_file():
        raise RestortError(f"the shipped weights {path} are missing; install restort again")
    return path


def _cached_or_fetched(
    entry: Entry, target: Path, offline: bool, notice: Notice, progress: bool | None
) -> Path:
    from filelock import FileLock

    with FileLock(f"{target}.lock"):  # two runs at once must not fetch it twice
        known = entry.sha256 or _recorded(target)
        if target.is_file():
            if known is None:
                return _trust(entry, target, notice)
            if _sha256(target) == known:
                return target
            if offline:
                raise RestortError(f"{target} is damaged or was changed; {_by_hand(entry, target)}")
            notice(f"{target} is damaged or was changed: fetching it again")
        elif offline:
            raise RestortError(
                f"{entry.name} is not in the cache and may not be fetched; {_by_hand(entry, target)}"
            )
        _announce(entry, target, notice)
        part = target.with_name(target.name + ".part")
        try:
            _download(entry, target, part, known, progress)
            if known is None:
                digest = _checked(entry, part, f"what {entry.source} gave is not {entry.name}")
                _record(target, digest)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return target


def _announce(entry: Entry, target: Path, notice: Notice) -> None:
    limit = "" if entry.commercial_use else ", NON-COMMERCIAL: not for commercial use"
    size = f"{'' if entry.bytes else 'about '}{entry.approximate_bytes / 1e6:.1f} MB"
    notice(f"{entry.name}: licence {entry.licence}{limit}; fetching {size} from {entry.source} to {target}")


def _download(entry: Entry, target: Path, part: Path, known: str | None, progress: bool | None) -> None:
    import pooch
    from requests.exceptions import RequestException

    pooch.get_logger().setLevel(logging.WARNING)  # `notice` has said what it would say
    part.unlink(missing_ok=True)
    shown = sys.stderr.isatty() if progress is None else progress
    load = pooch.HTTPDownloader(progressbar=shown, chunk_size=_CHUNK_BYTES, timeout=TIMEOUT_SECONDS)
    try:
        pooch.retrieve(entry.source, known and f"sha256:{known}", part.name, part.parent, downloader=load)
    except RequestException as error:
        raise RestortError(
            f"{entry.name} cannot be fetched ({_reason(error)}); {_by_hand(entry, target)}"
        ) from None
    except ValueError:  # pooch found another checksum, and has deleted what it got
        if entry.sha256:
            blame = f"what {entry.source} gave has not the checksum of {entry.name}; try again later"
        else:
            blame = (
                f"{entry.source} has changed since {entry.name} was first fetched; "
                f"if that is right, delete {_record_path(target)} to accept the new file"
            )
        raise RestortError(f"{blame}; {_by_hand(entry, target)}") from None


def _reason(error: Exception) -> str:
    """A few words for why a request failed, without the library's nested text."""
    import requests.exceptions as reasons

    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}".strip()
    if isinstance(error, reasons.Timeout):
        return "the server does not answer"
    if isinstance(error, reasons.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, reasons.ConnectionError):
        return "no connection to the server"
    return type(error).__name__


def _by_hand(entry: Entry, target: Path) -> str:
    return f"fetch {entry.source} by other means and put it at {target}, or give it by --weights FILE"


def _trust(entry: Entry, target: Path, notice: Notice) -> Path:
    """A file put into the cache by hand: it must be the entry's weights, and from now on stay as it is."""
    digest = _checked(entry, target, f"the file {target} is not {entry.name}")
    _record(target, digest)
    notice(f"{entry.name}: using {target} as found; licence {entry.licence}")
    return target


def _checked(entry: Entry, path: Path, blame: str) -> str:
    """The checksum of a file that holds the network of the entry."""
    try:
        weights = load_weights(path)
    except RestortError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise RestortError(f"{blame}: {reason}") from None
    spec = weights.spec
    found = (spec.architecture, spec.in_channels, spec.scale)
    if found != (entry.architecture, entry.channels, entry.scale):
        raise RestortError(
            f"{blame}: it is a {found[0]} with {found[1]} channels and scale {found[2]}; give the right file"
        )
    return weights.digest


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _recorded(target: Path) -> str | None:
    """The checksum kept at the first use (in the form of `sha256sum`), if there is one."""
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
