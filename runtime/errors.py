"""How does bad input end? With exit status 2 and one line that says what is wrong and what to do."""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Something that the user gave can't be used; the message is one line: what, and what to do."""


def exit_on_input_error(main: Callable[[], int | None]) -> Callable[[], int]:
    """Wrap a command line's `main`: an `InputError` becomes `error: ...` on stderr and status 2, Ctrl-C status 130."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main() or 0
        except InputError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped


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
