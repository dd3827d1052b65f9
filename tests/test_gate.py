"""How a command ends: bad input in one line and status 2, a bug in Python's traceback, a closed pipe quietly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import visible


def run(code: str) -> subprocess.CompletedProcess:
    """A program that ends with the status of `main`, whose body is `code`."""
    program = f"""
import sys, runtime.environment, os
from runtime.errors import *
@exit_on_input_error
def main():
    {code}
sys.exit(main())"""
    call = [sys.executable, "-c", program]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("pass", 0, ""),
        ("raise InputError('a is wrong:\\n  give \\x1b[2Jb')", 2, "error: a is wrong: give \\x1b[2Jb\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_status_and_line(code, status, stderr):
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", stderr)


def test_a_bug_is_a_traceback_on_stderr():
    done = run("1 / 0")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("code", ["print(1)", "print(100_000 * 'x')"])
def test_a_closed_pipe_ends_quietly(code):
    reader, writer = os.pipe()
    os.close(reader)
    call = "from runtime.errors import *; import sys; sys.exit(exit_on_input_error(lambda: CODE)())"
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", call.replace("CODE", code)],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
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
