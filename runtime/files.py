"""How does a file or a folder appear on disk? Whole or not at all, whatever stops the process that writes it."""

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from runtime.errors import InputError

UNFINISHED = ".unfinished"  # ends the name of the hidden folder in which another one is being made


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
    """Hand out a new, empty folder, which becomes `path` when the block ends without an error.

    Until then it is hidden beside `path`. Each call also removes what killed processes have left there.

    Args:
        replace: whether it takes the place of a folder at `path`; else there must be none, or an empty one.
    Raises:
        FileExistsError: `path` isn't empty, and not to be replaced.
        OSError: the disk refuses something else. The caller knows what the user can do about it.
    """
    with suppress(FileExistsError):  # if that is a file, listing it as a folder says so
        path.parent.mkdir(parents=True)
    _remove_leftovers(path.parent)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    _lock_of(hidden).touch()  # raises OSError where nothing can be made, as in /proc; FileLock would try for ever
    with FileLock(_lock_of(hidden)):  # taken before `hidden` exists: a folder whose lock is free is a leftover
        try:
            new = hidden / "new"
            new.mkdir(parents=True)
            yield new
            if not (replace and path.exists()):
                new.rename(path)
            elif not _exchange(new, path):
                path.rename(hidden / "old")  # killed here, the process leaves nothing at `path`: the next call mends it
                new.rename(path)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise
        finally:
            _remove(hidden, path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, so that both names stand at any time; whether the system can."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2  # of Linux
    except (AttributeError, OSError, TypeError):
        return False
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _lock_of(hidden: Path) -> Path:
    return hidden.with_suffix(".lock")


def _remove_leftovers(parent: Path) -> None:
    """Remove the hidden folders in `parent` whose makers are dead: a dead process holds no lock."""
    for hidden in [Path(entry) for entry in os.scandir(parent) if entry.name.endswith(UNFINISHED)]:
        with suppress(OSError), FileLock(_lock_of(hidden), timeout=0):  # OSError: at work, or another user's
            _remove(hidden, parent / hidden.name[1:].rsplit(".", 2)[0])


def _remove(hidden: Path, path: Path) -> None:
    """Remove a hidden folder and its lock's file; a folder that was to be replaced and wasn't goes back to `path`."""
    if (hidden / "old").exists() and not path.exists():
        (hidden / "old").rename(path)
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):
        _lock_of(hidden).unlink()
