"""Files and folders that appear whole or not at all, and what killed processes leave of them."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import InputError
from runtime.files import UNFINISHED, atomic, whole_folder

KILLED = """
import os, pathlib, signal, sys
from runtime import files
path, when, exchange = pathlib.Path(sys.argv[1]), sys.argv[2], files._exchange

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if when == "after the exchange":
    files._exchange = lambda one, other: exchange(one, other) and die()
if when in ("before the renames", "between the renames", "after the renames"):
    files._exchange = lambda one, other: False
    count, rename = [0], pathlib.Path.rename
    last = ["before the renames", "between the renames", "after the renames"].index(when)

    def counted(self, target):
        if count[0] == last:
            die()
        count[0] += 1
        rename(self, target)
        if count[0] == last:
            die()

    pathlib.Path.rename = counted
with files.whole_folder(path, replace=True) as new:
    (new / "file").write_text("half")
    if when == "while it is made":
        die()
    (new / "file").write_text("new")
"""


def kill_while_making(path, when="while it is made"):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), when], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def fill(path, text, replace=False):
    with whole_folder(path, replace) as new:
        (new / "file").write_text(text)


# ------------------------------------------------------------------------------------------- one file


def test_atomic_keeps_the_old_file_on_any_error(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half_written(error):
        with atomic(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(ZeroDivisionError):
        half_written(ZeroDivisionError())
    with pytest.raises(InputError, match="the disk is full"):
        half_written(OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    with atomic(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_atomic_is_on_disk_before_it_is_there(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: events.append(name) or real(*args))
    with atomic(tmp_path / "a") as file:
        file.write(b"x")
    assert events == ["fsync", "replace"]


# ------------------------------------------------------------------------------------------- a folder


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "above" / "set"
    with whole_folder(path) as new:
        assert list(new.iterdir()) == []
        (new / "file").write_text("all of it")
        assert not path.exists()
    assert (path / "file").read_text() == "all of it"
    assert os.listdir(path.parent) == ["set"]


def test_an_empty_folder_is_filled_and_another_is_kept(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    fill(path, "first")
    with pytest.raises(FileExistsError):
        fill(path, "second")
    assert (path / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["set"]


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "set"
    fill(path, "first")
    (path / "more").write_text("of the first")

    def fail():
        with whole_folder(path, replace=True) as new:
            (new / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sorted(os.listdir(path)) == ["file", "more"]
    fill(path, "second", replace=True)
    assert (os.listdir(path), (path / "file").read_text()) == (["file"], "second")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_in_a_file_is_an_error(replace, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        fill(tmp_path / "file" / "set", "", replace)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which nobody can make anything")
def test_where_nothing_can_be_made_is_an_error():
    with pytest.raises(OSError, match="/proc"):
        fill(Path("/proc/set"), "")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    kill_while_making(tmp_path / "a")
    kill_while_making(tmp_path / "b.c")
    assert len([name for name in os.listdir(tmp_path) if name.endswith(UNFINISHED)]) == 1
    fill(tmp_path / "d", "")
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize(
    ("when", "at_once", "in_the_end"),
    [
        ("while it is made", "old", "old"),
        ("after the exchange", "new", "new"),
        ("before the renames", "old", "old"),
        ("between the renames", None, "old"),  # where the system can't exchange folders
        ("after the renames", "new", "new"),
    ],
)
def test_a_process_killed_while_it_replaces_a_folder_loses_nothing(tmp_path, when, at_once, in_the_end):
    fill(tmp_path / "b.c", "old")
    kill_while_making(tmp_path / "b.c", when)
    assert (tmp_path / "b.c").exists() == (at_once is not None)
    if at_once:
        assert (tmp_path / "b.c" / "file").read_text() == at_once
    fill(tmp_path / "d", "")
    assert sorted(os.listdir(tmp_path)) == ["b.c", "d"]
    assert (tmp_path / "b.c" / "file").read_text() == in_the_end


def test_a_folder_that_is_replaced_is_there_at_any_time(tmp_path, monkeypatch):
    """In one step on Linux: no rename takes it away."""
    fill(tmp_path / "a", "old")
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: pytest.fail("renamed"))
    fill(tmp_path / "a", "new", replace=True)
    assert (tmp_path / "a" / "file").read_text() == "new"


def test_folders_that_are_made_at_once_leave_each_other_alone(tmp_path):
    with ExitStack() as all_at_once:
        folders = [all_at_once.enter_context(whole_folder(tmp_path / name)) for name in ("a", "a.b", "c")]
        for number, new in enumerate(folders):
            (new / "file").write_text(str(number))
    assert sorted(os.listdir(tmp_path)) == ["a", "a.b", "c"]
    assert [(tmp_path / name / "file").read_text() for name in ("a", "a.b", "c")] == ["0", "1", "2"]
