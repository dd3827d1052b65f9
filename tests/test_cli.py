"""Typed settings as a command line: what is wrong with a value is one line, whatever it is, and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pytest
from pydantic import field_validator
from pydantic_settings import CliVariadicArg

from modules import AUTOENCODERS
from runtime import cli
from runtime.cli import Settings, option
from runtime.errors import InputError
from training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "9" * 400


def run_train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """`python train.py` as a user runs it."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    env = os.environ | {"COLUMNS": "120"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--lr=-0.5"], "--lr must be at least 0, not -0.5"),
        (["--depth=17"], "--depth must be at most 16, not 17"),
        ([f"--epochs={DIGITS}"], f"--epochs must be at most 1000000, not {DIGITS[:40]}..."),
        (["--beta=nan"], "--beta must be a finite number, not nan"),
        (["--epochs=many"], "--epochs must be a whole number, not many"),
        (["--epochs="], "--epochs must be a whole number, not ''"),
        (["--epochs=2.5"], "--epochs must be a whole number, not 2.5"),
        (["--lr=fast"], "--lr must be a number, not fast"),
        (["--model=unet"], "--model must be 'vqvae', 'vqvae2' or 'rqvae', not unet"),
        (["--downsample=5"], "--downsample must be 4, 8 or 16, not 5"),
        (["--prior-lr=--"], "--prior-lr=-- gives no value"),
        (["--epochs"], "argument --epochs: expected one argument; see train.py --help"),
        (["--epoch=3"], "unrecognized arguments: --epoch=3; see train.py --help"),
        (["stray"], "unrecognized arguments: stray; see train.py --help"),
        (["--tensorboard=yes"], "argument --tensorboard: ignored explicit argument 'yes'; see train.py --help"),
        (["--epochs=0", "--seed=-1"], "--epochs must be at least 1, not 0; --seed must be at least 0, not -1"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_complaint_is_one_line_and_status_2(arguments, complaint, tmp_path):
    done = run_train(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert set(lines[0].removeprefix("error: ").split("; ")) == set(complaint.split("; "))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("train.py --help", 0),
        ("train.py --epochs 0", 2),
        ("train.py --data nowhere", 2),
        ("train.py --resume nowhere", 2),
        ("train.py --data demo --autoencoder no.pth", 2),
        ("predict.py --help", 0),
        ("predict.py no.pth", 2),
        ("predict.py {weights} --input no.png", 2),
        ("predict.py {weights} --input {picture} --save-nifti", 2),
        ("predict.py {weights} --prior no.pth", 2),
        ("predict.py {weights} --data nowhere", 2),
    ],
)
def test_what_can_be_told_at_once_is_told_before_torch_is_loaded(command, status, tmp_path):
    """It takes a second or more to import, and what else is imported beside it, several."""
    weights, picture = ROOT / "resources/pretrained/vqvae.pth", ROOT / "resources/codes.png"
    script, *arguments = [part.format(weights=weights, picture=picture) for part in command.split()]
    code = f"""import runpy, sys
sys.argv = {[script, *arguments]}
try:
    runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
except SystemExit as end:
    assert "torch" not in sys.modules
    raise"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == (status > 0)


def test_the_names_of_autoencoders_are_those_of_the_networks():
    assert get_args(TrainSettings.model_fields["model"].annotation) == tuple(AUTOENCODERS)


def test_help_has_groups_names_of_values_and_defaults(tmp_path):
    done = run_train("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["options:", "where to start:", "data:", "autoencoder:", "painter:", "prior:", "run:"]
    text = " ".join(done.stdout.split())
    for shown in (
        "--epochs N ",
        "--lr X ",
        "--out DIR ",
        "--resume RUN ",
        "--downsample {4,8,16} ",
        "--limit-people N ",
    ):
        assert shown in text
    for name, field in TrainSettings.model_fields.items():
        if field.default is not None and field.default is not False:
            told = f"{field.description} (default: {field.default})"
            assert "".join(told.split()) in "".join(text.split()), name  # argparse breaks lines at hyphens, too
    assert "None" not in text
    assert "null" not in text


def test_environment_variables_change_nothing(tmp_path):
    """Some libraries of settings read them: DATA and SEED are names that a shell may well hold."""
    disguised = {"DATA": "elsewhere", "SEED": "-1", "EPOCHS": "many", "MODEL": "unet", "OASIS_DIR": ""}
    done = run_train("--data=nowhere", cwd=tmp_path, **disguised)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no folder nowhere:")


# ------------------------------------------------------------------------------------------- the parts


class Sizes(Settings):
    """how large."""

    levels: int = option(3, "how many", ge=1, le=9)
    share: float | None = option(None, "how much (default: all)", ge=0, le=1)
    side: Literal[4, 8] | None = option(None, "how long", "SIDE")
    parts: CliVariadicArg[list[int]] = option([], "of what", "PART")


class Words(Settings):
    """what to say"""

    word: str = option("yes", "a word")
    place: Path = option(Path("here"), "a place")
    loud: bool = option(False, "whether to shout")

    @field_validator("word")
    @classmethod
    def _known(cls, word: str) -> str:
        if word == "no":
            raise ValueError("--word no is not said here; say yes")
        return word


class Speech(Words, Sizes):
    """all of it"""


def test_a_command_line_becomes_typed_values():
    given = ["--levels=5", "--share", "0.5", "--side=8", "--word=null", "--place=a b/c", "--loud"]
    assert cli.parse(Speech, "", given) == Speech(
        levels=5, share=0.5, side=8, word="null", place=Path("a b/c"), loud=True
    )
    assert cli.parse(Speech, "", []) == Speech()
    assert cli.parse(Speech, "", ["--parts", "1", "2", "--loud"]) == Speech(parts=[1, 2], loud=True)
    assert cli.parse(Speech, "", ["--levels=2", "--levels=4"]).levels == 4  # the last one counts
    assert cli.parse(Speech, "", ["--side=4"]).model_fields_set == {"side"}


def test_json_of_the_settings_gives_them_back():
    settings = Speech(share=0.25, side=4, place=Path("there"), loud=True)
    assert Speech.checked(json.loads(json.dumps(settings.model_dump(mode="json"))), where="file") == settings


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"levels": 10}, "F: levels must be at most 9, not 10"),
        ({"levels": "3"}, "F: levels must be a whole number, not 3"),
        ({"levels": True}, "F: levels must be a whole number, not True"),
        ({"levels": 2.5}, "F: levels must be a whole number, not 2.5"),
        ({"levels": None}, "F: levels must be a whole number, not None"),
        ({"levels": int(DIGITS)}, f"F: levels must be at most 9, not {DIGITS[:40]}..."),
        ({"share": "much"}, "F: share must be a number, not much"),
        ({"share": float("nan")}, "F: share must be a finite number, not nan"),
        ({"side": 5}, "F: side must be 4 or 8, not 5"),
        ({"word": 3}, "F: word must be a text, not 3"),
        ({"word": "no"}, "F: --word no is not said here; say yes"),
        ({"place": [1]}, "F: place must be a text, not [1]"),
        ({"loud": "yes"}, "F: loud must be true or false, not yes"),
        ({"width": 3}, "F: width is no setting of this version"),
        ({"_env_file": "x"}, "F: _env_file is no setting of this version"),
    ],
    ids=str,
)
def test_complaint_about_a_file_names_it_and_the_field(values, complaint):
    with pytest.raises(InputError) as caught:
        Speech.checked(values, where="F")
    assert str(caught.value) == complaint


def test_a_required_value_that_is_missing():
    class Needy(Settings):
        """needs"""

        name: str

    with pytest.raises(InputError, match="--name is missing"):
        Needy.checked({})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [(["--parts"], "expected at least one argument"), (["--parts", "1", "x"], "--parts must be a whole number, not x")],
)
def test_a_list_has_a_value_at_least_and_a_wrong_one_names_the_option(given, complaint):
    with pytest.raises(InputError, match=complaint):
        cli.parse(Speech, "", given)


def test_a_validators_own_words_are_the_complaint():
    with pytest.raises(InputError) as caught:
        cli.parse(Speech, "", ["--word=no"])
    assert str(caught.value) == "--word no is not said here; say yes"


def test_groups_of_the_help_are_the_classes(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Speech, "what it does", ["--help"])
    _, _, text = capsys.readouterr().out.partition("what it does")
    assert text.index("how large:") < text.index("--levels N") < text.index("what to say:") < text.index("--word TEXT")
    assert "--share X" in text
    assert "--side SIDE" in text
    assert "(default: all)" in text
    assert "how long\n" in text  # no default to tell
    assert "whether to shout\n" in text


def test_settings_stay_as_they_were_made():
    with pytest.raises(ValueError, match="frozen"):
        Speech().levels = 4
