"""Bytes from and to files: errors as sentences, and no half-written file under its final name."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from restort.errors import RestortError

TEMPORARY_PREFIX = ".restort-"


def read_bytes(path: Path, limit: int | None = None, *, first: int = -1) -> bytes:
    """The whole of a regular file, or its `first` bytes. Raises RestortError where there is none or it is larger
    than `limit` bytes."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RestortError(f"cannot read {path}: it is not a regular file; give a picture file")
            if limit is not None and status.st_size > limit:
                raise RestortError(
                    f"cannot read {path}: its {status.st_size / 1e6:.0f} MB are more than any picture within "
                    "the limit of pixels needs; raise the limit (--max-pixels) if the file is meant"
                )
            return file.read(first)
    except (OSError, ValueError, MemoryError) as error:
        raise RestortError(f"cannot read {path}: {_why(error, path)}") from None


def _without_waiting(name: str, flags: int) -> int:
    """Opens without blocking, so that a named pipe is refused instead of waited for."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def write_bytes(
    path: Path,
    data: bytes,
    *,
    overwrite: bool = False,
    sync: bool = False,
    prefix: str = TEMPORARY_PREFIX,
) -> None:
    """Writes `data` under a temporary name in the folder of `path`, made if need be, then renames it.

    Without `overwrite` an existing file stays as it is, also one that appears during the writing. `sync`
    waits until the data is on the disk before the renaming. `prefix` begins the temporary name. On any failure nothing
    is left behind.
    """
    check_free(path, overwrite)
    temporary = path.parent / f"{prefix}{secrets.token_hex(8)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            _rename(temporary, path, overwrite)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise RestortError(f"cannot write {path}: {_why(error, path)}") from None


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a renaming it fails where the name is taken
    except FileExistsError:
        raise RestortError(f"{path} exists already; use --overwrite to replace it") from None
    except OSError:  # a file system without links, or a name it does not take: the renaming will tell
        if os.path.lexists(path):
            raise RestortError(f"{path} exists already; use --overwrite to replace it") from None
        os.replace(temporary, path)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises RestortError where something is at `path` that must stay; worth asking before long work, too."""
    if os.path.isdir(path):
        raise RestortError(f"cannot write {path}: it is a folder; give the name of a file")
    if not overwrite and os.path.lexists(path):
        raise RestortError(f"{path} exists already; use --overwrite to replace it")


def _why(error: Exception, path: Path) -> str:
    if isinstance(error, MemoryError):
        return "the file does not fit into the memory"
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        found = os.path.isdir(path.parent)
        return f"there is no {'such file' if found else f'folder {path.parent}'}; check the path"
    if code in (errno.EISDIR, errno.ENXIO):
        return (
            "it is a folder; give the name of a file"
            if os.path.isdir(path)
            else "it is not a regular file; give a picture file"
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        if os.path.isdir(path) and os.access(path, os.R_OK):  # Windows opens no folder
            return "it is a folder; give the name of a file"
        return "no permission; change the permissions or choose another place"
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; free some space or choose another folder"
    if code == errno.ENAMETOOLONG:
        return "the name is too long for the file system; choose a shorter one"
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a part of its path is a file, not a folder"
    return (getattr(error, "strerror", None) or str(error)).lower()
