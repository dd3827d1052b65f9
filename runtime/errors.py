"""How does a command end when something is wrong? Bad input: one line and exit status 2. A bug: Python's traceback."""

import functools
import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something that the user gave can't be used; the message is one line: what is wrong, and what to do."""


def exit_on_input_error(main: Callable[[], int | None]) -> Callable[[], int]:
    """Decorate a script's `main`: it returns an exit status, 2 after an `InputError`, 130 after Ctrl-C.

    When nobody reads the output any more, as in `train.py | head`, the script ends quietly with status 1.
    """

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            status = main() or 0
            sys.stdout.flush()  # so that a closed pipe shows here, not when the interpreter exits
            return status
        except InputError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            return 1

    return wrapped


def visible(text: object) -> str:
    r"""Text with every character escaped that a terminal would act on or can't show: `\x1b`, `\udcff`."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(text))


def one_line(text: object) -> str:
    """Text of any number of lines as one line, `visible`."""
    return visible(" ".join(str(text).split()))
