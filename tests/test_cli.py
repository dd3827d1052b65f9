"""Typed settings as a command line: a wrong value is one line, whatever it is, and exit status 2."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import ROOT
from pydantic import Field, field_validator

from runtime import cli
from runtime.cli import Settings, option
from runtime.errors import InputError
from training.settings import TrainCommand, TrainSettings


class Sizes(Settings):
    """how large."""

    levels: int = option(3, "how many", ge=0, le=9)
    share: Annotated[float, Field(ge=0, le=1)] | None = option(None, "how much (default: all)")
    side: Literal[4, 8] | None = option(None, "how long", "SIDE")
    parts: list[int] = option([], "of what", "PART")


class Words(Settings):
    """what to say"""

    word: str = option("yes", "a word")
    place: Path = option(Path("here"), "a place, 100% sure")
    loud: bool = option(False, "whether to shout")

    @field_validator("word")
    @classmethod
    def _known(cls, word: str) -> str:
        if word == "no":
            raise ValueError("--word no is not allowed here")
        return word


class Speech(Words, Sizes):
    """all of it"""


class Needy(Settings):
    """needs"""

    name: str = option(..., "whose")


def test_a_command_line_becomes_typed_values():
    arguments = ["--levels=5", "--share", "0.5", "--side=8", "--word=null", "--place=a b/c", "--loud"]
    speech = cli.parse(Speech, "", arguments)
    assert speech == Speech(levels=5, share=0.5, side=8, word="null", place=Path("a b/c"), loud=True)
    assert cli.parse(Speech, "", []) == Speech()
    assert cli.parse(Speech, "", ["--parts", "1", "2", "--loud"]) == Speech(parts=[1, 2], loud=True)
    assert cli.parse(Speech, "", ["--levels=2", "--levels=4"]).levels == 4  # the last one counts
    assert cli.parse(Speech, "", ["--side=4"]).model_fields_set == {"side"}
    assert cli.parse(Needy, "", ["me"]).name == "me"
    assert Speech.from_json(speech.model_dump_json().encode(), "file") == speech


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: name"),
        (["--levels", "-1"], "--levels must be greater than or equal to 0, not -1"),
        (["--levels=" + 400 * "9"], "--levels must be less than or equal to 9, not 99999"),
        (["--levels=many"], "argument --levels: invalid int value: 'many'; see "),
        (["--share=nan"], "--share must be a finite number, not nan"),
        (["--side=5"], "argument --side: invalid choice: 5 (choose from 4, 8)"),
        (["--level=3"], "unrecognized arguments: --level=3"),
        (["--parts", "1", "x"], "argument --parts: invalid int value: 'x'"),
        (["--word=no"], "--word no is not allowed here"),
        (["--place=" + os.fsdecode(b"\xff")], "argument --place: invalid path value"),
        (["--levels=10", "--share=2"], "--levels must be less than or equal to 9, not 10; --share must be less than"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_option_is_named(arguments, message):
    with pytest.raises(InputError) as caught:
        cli.parse(Speech if arguments else Needy, "", arguments)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"levels": "3"}', "F: levels must be a valid integer, not '3'"),
        ('{"share": NaN}', "F: share must be a finite number, not nan"),
        ('{"width": 3}', "F: width: Extra inputs are not permitted"),
        ("[]", "F: it must be an object, not []"),
        ("[" * 100_000, "F: Invalid JSON: "),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_wrong_in_a_file_is_named(text, message):
    with pytest.raises(InputError) as caught:
        Speech.from_json(text.encode(), "F")
    assert str(caught.value).startswith(message)


def test_help_has_a_group_for_each_class_with_values_and_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Speech, "what it does", ["--help"])
    _, _, text = capsys.readouterr().out.partition("what it does")
    assert text.index("how large:") < text.index("--levels N") < text.index("what to say:") < text.index("--word TEXT")
    for shown in ("how many (default: 3)", "--share X", "--side SIDE", "how long\n", "shout\n", "100% sure"):
        assert shown in text


def test_help_of_training_is_complete(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        cli.parse(TrainCommand, "", ["--help"])
    assert stop.value.code == 0
    text = "".join(capsys.readouterr().out.split())
    for name, field in TrainSettings.model_fields.items():
        default = "" if field.default is None or field.default is False else f"(default:{field.default})"
        assert "".join(field.description.split()) + default in text, name
    assert "None" not in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.py --epochs=0 --out={folder}/runs", "--epochs must be greater than or equal to 1, not 0"),
        ("predict.py resources/pretrained/vqvae.pth --volumes=1 --around=no.png --out={folder}/x", "--around: no file"),
        ("dataset.py check {folder}/nowhere", "no folder "),
    ],
)
def test_a_wrong_command_line_is_one_line_and_writes_nothing(command, message, tmp_path):
    """Environment variables with the names of options change nothing, and an unknown MPLBACKEND does no harm."""
    odd = {"SEED": "-1", "EPOCHS": "many", "OASIS_DIR": "", "MPLBACKEND": "module://notebook_only"}
    call = [sys.executable, *command.format(folder=tmp_path).split()]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | odd, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
