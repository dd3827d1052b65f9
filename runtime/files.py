"""How does a file or a folder appear on disk? Whole or not at all, whatever stops the process that writes it."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runtime.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = ".unfinished"  # ends the name of the hidden folder in which another one is being made
LEFTOVER_AGE = 7 * 24 * 3600  # seconds after which an unfinished folder must be that of a process that was killed
BUILD_TIMEOUT = 3600.0  # seconds to wait for another process that decodes or makes the same data set
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # from file systems without locks, as on some clusters


def require_checkpoint(path: Path) -> None:
    """Raises InputError when there is no such file."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the path of a .pth file that train.py wrote")


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it appears, whole and on disk, when the block ends without an error.

    Raises InputError when the disk is full or the folder can't be written; `path` is then as it was.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise InputError(f"can't write {path}: {reason}; free some space or choose another --out") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Create a hidden, empty folder beside `path`; it becomes `path` when the block ends without an error.

    Each call also removes hidden folders beside `path` that killed processes left there more than a week ago.

    Args:
        replace: whether a folder that exists at `path` is replaced; if not, it must be empty.
    Raises:
        FileExistsError: `path` isn't empty, and `replace` is false.
        OSError: anything else that the disk refuses.
    """
    with suppress(FileExistsError):  # a file in place of the parent folder fails below, with a better message
        path.parent.mkdir(parents=True)
    for entry in os.scandir(path.parent):
        if entry.name.endswith(UNFINISHED) and time.time() - entry.stat().st_mtime > LEFTOVER_AGE:
            shutil.rmtree(entry.path, ignore_errors=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old{UNFINISHED}")
    try:
        new.mkdir()
        yield new
        if replace and path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def locked(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` within the block; where the file system has no locks, do nothing.

    The lock ends with the process, too. Raises InputError when another process still holds it after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with open(path, "ab") as file:
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(f"another process holds {path}; wait for it, or stop it") from None
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        yield
