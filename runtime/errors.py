"""How does a command end when something is wrong? In one line that says what, and what to do.

Bad input ends with exit status 2. What nobody foresaw ends with status 1, and its traceback in a file.
"""

import argparse
import functools
import io
import math
import sys
import tempfile
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn


class InputError(ValueError):
    """Something that the user gave can't be used; the message is one line: what, and what to do."""


def exit_on_input_error(main: Callable[[], int | None]) -> Callable[[], int]:
    """The gate around a command line's `main`: whatever it raises becomes one line on stderr and an exit status.

    2 for an `InputError`, 130 for Ctrl-C, and 1 for any other error, whose traceback goes to a file that is named.
    """

    @functools.wraps(main)
    def wrapped() -> int:
        for stream in (sys.stdout, sys.stderr):  # what their encoding lacks, of a file's name say, is shown escaped
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main() or 0
        except InputError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            _tell(error)
            return 1

    return wrapped


def catch_imports() -> None:
    """Let what nobody foresaw end in one line outside of `main`, too, where a script's imports find too little memory.

    For a script's first lines; Python's exit status is then 1, as that of the gate.
    """

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            _tell(error)
        else:
            print("interrupted", file=sys.stderr)

    sys.excepthook = told


def visible(text: object) -> str:
    r"""A text, a file's name say, with whatever a terminal would act on, or can't show, escaped: `\x1b`, `\udcff`."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(text))


def one_line(text: object) -> str:
    """A text of any lines as one, with nothing in it that a terminal would act on."""
    return visible(" ".join(str(text).split()))


LACKS = {  # what the system has too little of, and what to do -> signs of it in the error's name or message
    "there is not enough memory; give smaller batches, fewer samples, or more memory": (
        "MemoryError",
        "OutOfMemory",
        "allocate memory",
        "failed to map segment",
        "could not create a primitive",  # what oneDNN, which computes convolutions, says of it
    ),
    "the system allows no more threads, or has no memory for them; raise ulimit -u or -v, or set OMP_NUM_THREADS=1": (
        "start new thread",
        "Resource temporarily unavailable",
    ),
    "the system allows no more open files; raise ulimit -n": ("Too many open files",),
}
HINTS = LACKS | {
    "this user has no home folder; set HOME to a folder that can be written": ("home directory",),
    "a text can't be told in this system's encoding; set PYTHONUTF8=1": ("UnicodeEncodeError", "UnicodeDecodeError"),
    "something is nested too deeply to be read": ("RecursionError",),
    "the disk is full; free some space": ("No space left on device",),
    "nobody reads what is printed; send it to a file": ("Broken pipe",),
    "a file's name is too long for this system; give a shorter one": ("File name too long",),
}


def lack(error: Exception) -> str | None:
    """What the system has too little of, as one of `LACKS`, where that may be why there was an error."""
    return _hint(error, LACKS)


def _hint(error: Exception, hints: dict[str, tuple[str, ...]]) -> str | None:
    told = f"{type(error).__name__}: {error}"
    return next((hint for hint, signs in hints.items() if any(sign in told for sign in signs)), None)


def _tell(error: Exception) -> None:
    print(f"error: {one_line(_unforeseen(error))}; {_keep_traceback(error)}", file=sys.stderr)


def _unforeseen(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"
    meant = _hint(error, HINTS) or "this shouldn't happen; please report it"
    return f"{meant} ({told if len(told) <= 200 else told[:200] + '...'})"


def _keep_traceback(error: Exception) -> str:
    """Write an error's traceback to a new file, here or in the temporary folder; says where it is."""
    for folder in (".", None):
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="traceback-", suffix=".txt", dir=folder, delete=False, encoding="utf-8", errors="replace"
            ) as file:
                traceback.print_exception(error, file=file)
            return f"the traceback is in {file.name}"
        except OSError:
            continue
    return "there was no room for its traceback"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], int | float]:
    """An argparse type: a finite int or float in [least, most]."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and least <= value <= most):
            bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return value

    return parse
