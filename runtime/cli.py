"""How do typed settings become a command line? Each field is an option, and pydantic checks its value.

    class PredictSettings(Settings):
        '''What to sample'''
        samples: int = option(64, "how many", ge=0, le=100_000)

    settings = cli.parse(PredictSettings, __doc__)           # --samples 16

A command's settings are the classes that it inherits from: in `--help`, each is a group titled with its docstring.
"""

import argparse
import inspect
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from runtime.errors import InputError
from runtime.schema import complaints

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "bf16"]
LARGEST_SEED = 2**31
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Settings(BaseModel):
    """Settings of a command: each field made by `option`, required ones are positional arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def from_json(cls, text: bytes, where: object) -> Self:
        """The settings in a JSON file `where`. Raises InputError that names each wrong field."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise InputError(f"{where}: {complaints(error)}") from error


Kind = TypeVar("Kind", bound=Settings)


def option(default: Any, description: str, metavar: str | None = None, **checks) -> Any:
    """A field of `Settings`: default (`...` if there is none), help text, and pydantic's checks (`ge`, `le`)."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar}, **checks)


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`; `from_` -> `--from`; `input.3`, an item of a list, -> `--input`."""
    return name and "--" + name.partition(".")[0].rstrip("_").replace("_", "-")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse(kind: type[Kind], description: str, arguments: list[str] | None = None) -> Kind:
    """The settings in `arguments`, by default this process's command line; `--help` prints and exits.

    Raises InputError when an option is unknown, or its value isn't of its type or out of its range.
    """
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # so that `model_fields_set` is what the user gave
    )
    groups: dict[type, argparse._ArgumentGroup] = {}
    for name, field in kind.model_fields.items():
        owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
        if owner not in groups:
            groups[owner] = parser.add_argument_group(owner.__doc__.splitlines()[0].rstrip("."))
        flags = [] if field.is_required() else [flag(name)]
        groups[owner].add_argument(*flags, dest=name, **_argument(field))
    try:
        return kind.model_validate(vars(parser.parse_args(arguments)))
    except ValidationError as error:
        raise InputError(complaints(error, flag)) from error


def path(text: str) -> Path:
    """A path that JSON can hold. Raises UnicodeEncodeError, which is a ValueError, for bytes that aren't UTF-8."""
    text.encode()
    return Path(text)


def _argument(field: FieldInfo) -> dict[str, Any]:
    """What argparse needs to know of a field."""
    kind, help_text = field.annotation, field.description.replace("%", "%%")
    while get_origin(kind) in (Annotated, Union, UnionType):  # X | None
        kind = get_args(kind)[0]
    if kind is bool:
        return {"action": "store_true", "help": help_text}
    if not field.is_required() and field.default not in (None, []):
        help_text += f" (default: {field.default})"
    how: dict[str, Any] = {"type": kind, "help": help_text}
    if get_origin(kind) is list:
        [kind] = get_args(kind)
        how |= {"type": kind, "nargs": "+", "action": "extend"}
    if get_origin(kind) is Literal:
        how |= {"type": type(get_args(kind)[0]), "choices": get_args(kind)}
    if kind is Path:
        how["type"] = path
    usual = None if field.is_required() else METAVARS.get(kind)  # None is argparse's own
    return how | {"metavar": field.json_schema_extra["metavar"] or usual}
