"""Whole files as bytes: errors are sentences for the user, and writes are atomic."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import TypeAlias

from restort.errors import RestortError

Content: TypeAlias = bytes | mmap
"""The content of a file, read or mapped into memory."""
TEMPORARY_PREFIX = ".restort-"
"""How temporary names begin; restort.inference.manifest removes those that a killed run has left."""


def read_bytes(path: Path, limit: int | None = None, *, first: int = -1) -> bytes:
    """Read a regular file, or its `first` bytes.

    Raises RestortError if it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RestortError(f"cannot read {path}: it is not a regular file; give a picture file")
            if limit is not None and status.st_size > limit:
                raise RestortError(
                    f"cannot read {path}: {status.st_size / 1e6:.0f} MB are more than a picture within the limit of "
                    "pixels can take; raise --max-pixels if you trust the file"
                )
            return file.read(first)
    except (OSError, ValueError, MemoryError) as error:
        raise RestortError(f"cannot read {path}: {_why(error, path)}") from None


def _without_waiting(name: str, flags: int) -> int:
    """Open without blocking: a named pipe is then refused, instead of making the program wait for a writer."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def write_bytes(
    path: Path,
    data: bytes,
    *,
    overwrite: bool = False,
    sync: bool = False,
    private: bool = False,
    prefix: str = TEMPORARY_PREFIX,
) -> None:
    """Write `data` to a temporary file beside `path` and rename it; the folder is made if it is missing.

    Readers see the old file or the new one, never a part of it, and a failure leaves nothing behind.

    overwrite   replaces an existing file; without it RestortError, even if the file appears during the write.
    sync        flushes the data to the disk before the rename.
    private     makes missing folders for this user alone.
    prefix      begins the temporary name.

    Raises RestortError if the file cannot be written.
    """
    check_free(path, overwrite)
    try:
        make_folder(path.parent, private=private)
        temporary = _temporary_name(path, prefix)
        descriptor = _create(temporary)
        try:
            with open(descriptor, "wb") as file:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            _rename(temporary, path, overwrite)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise RestortError(f"cannot write {path}: {_why(error, path)}") from None


def _temporary_name(path: Path, prefix: str = TEMPORARY_PREFIX) -> Path:
    return path.parent / f"{prefix}{secrets.token_hex(8)}.part"


def _create(temporary: Path) -> int:
    """Create a file that does not exist yet and return its descriptor. Raises OSError."""
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def create_temporary(path: Path) -> Path:
    """Create an empty temporary file beside `path`, for `publish`; the folder is made if it is missing."""
    with writing(path):
        make_folder(path.parent)
        temporary = _temporary_name(path)
        os.close(_create(temporary))
    return temporary


def publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Rename a complete temporary file to `path`, and remove it where that fails, as `write_bytes` does."""
    try:
        check_free(path, overwrite)
        with writing(path):
            _rename(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the RestortError of writing `path` for an OSError within the context."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RestortError(f"cannot write {path}: {_why(error, path)}") from None


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder and those above it that are missing; `private`: with the mode 0700. Raises OSError."""
    for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        missing.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises where a file is in the way


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, it fails if the name is taken
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links, or a name it refuses: the rename reports which
        if os.path.lexists(path):
            raise _exists(path) from None
        os.replace(temporary, path)


def check_free(path: Path, overwrite: bool) -> None:
    """Raise RestortError if `path` must not be written: call it before long work, too."""
    if os.path.isdir(path):
        raise RestortError(f"cannot write {path}: it is a folder; give the name of a file")
    if not overwrite and os.path.lexists(path):
        raise _exists(path)


def check_no_link(path: Path, *, folder: bool = False) -> None:
    """Raise RestortError where something other than a plain file (or `folder`) lies at a name that only we should use.

    A link would have another file locked, read or written; a pipe would make the run wait for ever.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode):
        return
    found = "it is a link" if stat.S_ISLNK(mode) else "something else lies there"
    plain = "folder" if folder else "file"
    raise RestortError(f"cannot use {path}: {found}, not a plain {plain}; delete it")


def _exists(path: Path) -> RestortError:
    return RestortError(f"{path} already exists; use --overwrite to replace it")


def _why(error: Exception, path: Path) -> str:
    """Put an error of the operating system into words: cause; remedy."""
    if isinstance(error, MemoryError):
        return "the file does not fit into memory; close other programs, or use a machine with more"
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
        return "permission denied; change the permissions or use another path"
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; free some space or use another folder"
    if code == errno.ENAMETOOLONG:
        return "the name is too long for the file system; use a shorter one"
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a part of its path is a file, not a folder; check the path"
    return (getattr(error, "strerror", None) or str(error)).lower()
