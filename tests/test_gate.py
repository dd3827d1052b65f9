"""How a command ends: bad input in one line and status 2, a bug in Python's traceback, a closed pipe quietly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import InputError, exit_on_input_error, visible


@pytest.mark.parametrize(
    ("raised", "status", "stderr"),
    [
        (None, 0, ""),
        (InputError("a is wrong:\n  give \x1b[2Jb"), 2, "error: a is wrong: give \\x1b[2Jb\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=repr,
)
def test_status_and_line(raised, status, stderr, capsys):
    def main():
        if raised:
            raise raised

    assert exit_on_input_error(main)() == status
    assert capsys.readouterr() == ("", stderr)


def test_a_bug_stays_an_error():
    with pytest.raises(ZeroDivisionError):
        exit_on_input_error(lambda: 1 / 0)()


@pytest.mark.parametrize("code", ["print(1)", "print(100_000 * 'x')"])
def test_a_closed_pipe_ends_quietly(code):
    reader, writer = os.pipe()
    os.close(reader)
    call = f"from runtime.errors import *; import sys; sys.exit(exit_on_input_error(lambda: {code})())"
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b é 脑.png", "a b é 脑.png"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\rc", "a\\nb\\rc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (os.fsdecode(b"\xff"), "\\udcff"),
        (Path("a\x9b"), "a\\x9b"),
    ],
    ids=repr,
)
def test_control_characters_are_shown_not_obeyed(text, shown):
    assert visible(text) == visible(visible(text)) == shown
