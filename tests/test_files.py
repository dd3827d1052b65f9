"""Files and folders that appear whole or not at all, and locks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime import files
from runtime.errors import InputError
from runtime.files import UNFINISHED, atomic, locked, whole_folder


def fill(path, text, replace=False):
    with whole_folder(path, replace) as new:
        (new / "file").write_text(text)


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


@pytest.mark.parametrize("path", ["no folder/a.pth", "file/a.pth"])
def test_where_nothing_can_be_written_is_an_error(path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"), atomic(tmp_path / path):
        pass


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "set"
    with whole_folder(path) as new:
        (new / "file").write_text("first")
        assert not path.exists()
    assert (path / "file").read_text() == "first"
    with pytest.raises(FileExistsError):
        fill(path, "second")
    assert (path / "file").read_text() == "first"
    assert os.listdir(path.parent) == ["set"]


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


def test_a_killed_process_changes_nothing_and_its_leftovers_go_in_time(tmp_path):
    code = """
import os, pathlib, signal, sys
from runtime.files import whole_folder
with whole_folder(pathlib.Path(sys.argv[1]), replace=True) as new:
    (new / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)"""
    fill(tmp_path / "a", "old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a" / "file").read_text() == "old"
    [leftover] = tmp_path.glob(f".*{UNFINISHED}")
    fill(tmp_path / "b", "")
    assert leftover.is_dir()  # it might be at work
    os.utime(leftover, (0, 0))
    fill(tmp_path / "c", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    code = "import sys; from pathlib import Path; from runtime.files import *\nwith locked(Path(sys.argv[1])): print()"

    def another():
        call = [sys.executable, "-c", code, str(tmp_path / "lock")]
        return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)

    with locked(tmp_path / "lock"):
        assert f"another process holds {tmp_path / 'lock'}" in another().stderr
    assert another().returncode == 0


@pytest.mark.skipif(not files.fcntl, reason="needs flock")
def test_without_locks_nobody_waits(tmp_path, monkeypatch):
    """As on Lustre without flock."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with locked(tmp_path / "lock"), locked(tmp_path / "lock"):
        pass
    with pytest.raises(FileNotFoundError), locked(Path(tmp_path / "nowhere" / "lock")):
        pass
