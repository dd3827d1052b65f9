"""The gate around every command: whatever goes wrong is one line and an exit status, and its traceback in a file."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import InputError, exit_on_input_error, one_line, visible


def ends(error, capsys, monkeypatch, folder):
    """Exit status and the one line on stderr of a command that raises this error in `folder`."""

    @exit_on_input_error
    def main():
        raise error

    monkeypatch.chdir(folder)
    status = main()
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return status, line


def test_a_command_that_ends_well_has_status_0():
    assert exit_on_input_error(lambda: None)() == 0
    assert exit_on_input_error(lambda: 3)() == 3


def test_bad_input_is_one_line_and_status_2_and_writes_nothing(capsys, monkeypatch, tmp_path):
    status, line = ends(InputError("a is wrong:\n  give b"), capsys, monkeypatch, tmp_path)
    assert (status, line) == (2, "error: a is wrong: give b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"), "not enough memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
        (RuntimeError("could not create a primitive"), "not enough memory"),
        (RuntimeError("can't start new thread"), "OMP_NUM_THREADS=1"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"), "PYTHONUTF8=1"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), "nobody reads what is printed"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "free some space"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), 999 * "x"), "give a shorter one"),
        (ZeroDivisionError("x\x1b[31m\ny" + 999 * "z"), "shouldn't happen"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_foresaw_is_one_line_with_a_hint_and_a_traceback_in_a_file(
    error, meant, capsys, monkeypatch, tmp_path
):
    status, line = ends(error, capsys, monkeypatch, tmp_path)
    assert status == 1
    assert line.startswith("error: ")
    assert meant in line
    assert len(line) < 500
    assert "\x1b" not in line
    [kept] = tmp_path.iterdir()
    assert line.endswith(f"the traceback is in {kept}")
    text = kept.read_text()
    assert text.startswith("Traceback")
    assert type(error).__name__ in text


def test_where_nothing_can_be_written_the_traceback_goes_to_the_temporary_folder(capsys, monkeypatch, tmp_path):
    gone, elsewhere = tmp_path / "gone", tmp_path / "elsewhere"
    gone.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.chdir(gone)
    gone.rmdir()

    @exit_on_input_error
    def main():
        raise ZeroDivisionError

    assert main() == 1
    [kept] = elsewhere.iterdir()
    assert str(kept) in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train.py --data=demo", "predict.py checkpoint", "dataset.py check .", "app.py checkpoint"]
)
def test_an_import_that_fails_is_one_line_too(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise MemoryError('torch')")
    (tmp_path / "checkpoint").touch()
    (tmp_path / "here").mkdir()
    script, *options = command.replace("checkpoint", str(tmp_path / "checkpoint")).split()
    done = subprocess.run(
        [sys.executable, ROOT / script, *options],
        cwd=tmp_path / "here",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = done.stderr.splitlines()
    [kept] = (tmp_path / "here").iterdir()
    assert done.returncode == 1
    assert line.startswith("error: there is not enough memory")
    assert line.endswith(f"the traceback is in {kept}")
    assert "MemoryError: torch" in kept.read_text()


def test_ctrl_c_is_no_traceback(capsys, monkeypatch, tmp_path):
    assert ends(KeyboardInterrupt(), capsys, monkeypatch, tmp_path) == (130, "interrupted")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("case_001.png", "case_001.png"),
        ("a b é 脑", "a b é 脑"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\rc", "a\\nb\\rc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (os.fsdecode(b"\xff"), "\\udcff"),
        (Path("a\x9b"), "a\\x9b"),
    ],
    ids=repr,
)
def test_control_characters_are_shown_not_obeyed(text, shown):
    assert visible(text) == shown
    assert visible(visible(text)) == shown


def test_an_error_names_a_file_without_obeying_its_name():
    assert one_line(InputError("no \x1b[2J file\n")) == "no \\x1b[2J file"


def test_a_name_that_the_terminal_can_not_show_is_escaped_in_it():
    """Of `print`, with an encoding of 7 bits."""
    code = "from runtime.errors import *; exit_on_input_error(lambda: print('é \\udcff'))()"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\\xe9 \\udcff\n", "")
