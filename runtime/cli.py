"""How do typed settings become a command line? Each field an option, its checks the option's, each bad value one line.

    class PredictSettings(Settings):
        '''What to sample'''
        samples: int = option(64, "how many", ge=0, le=100_000)

    settings = cli.parse(PredictSettings, __doc__)           # --samples 16

A class is a group in `--help`, titled with its docstring; a command's settings are the classes that it inherits from.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import CliSettingsSource

from runtime.errors import InputError, Parser, catch_imports, exit_on_input_error
from runtime.schema import complaints

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "bf16"]
SURROGATE = re.compile("[\ud800-\udfff]")  # what Python makes of bytes that are no UTF-8
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Settings(BaseModel):
    """Settings of a command: what is given to it, the defaults, and nothing else, such as environment variables."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _texts(cls, value: Any, field: ValidationInfo) -> Any:
        """The text "8" for a `Literal[4, 8, 16]`, a number everywhere else; and no path that JSON can't hold."""
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not text.isascii() and SURROGATE.search(text) for text in texts):
            raise PydanticCustomError("string_unicode", "must be a text in UTF-8")
        kind = cls.model_fields[field.field_name].annotation
        choices = [choice for part in (kind, *get_args(kind)) for choice in get_args(part)]
        return int(value) if value in [str(choice) for choice in choices if isinstance(choice, int)] else value

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """The settings with these values, the others' defaults.

        The values are texts from a command line; or, with `where`, what the JSON file of that name holds, which can
        tell 1 from "1" and true. Raises InputError that names each option, or field of the file, and what it must be.
        """
        try:
            if where:
                return cls.model_validate_json(json.dumps(values), strict=True)
            return cls.model_validate(values)
        except ValidationError as error:
            told = "; ".join(complaints(error, str if where else _option))
            raise InputError(f"{where}: {told}" if where else told) from error


Kind = TypeVar("Kind", bound=Settings)


def option(default: Any, description: str, metavar: str | None = None, **checks) -> Any:
    """A field of `Settings`: default, help text, and pydantic's checks (`ge`, `le`)."""
    extra = {"metavar": metavar} if metavar else None
    return Field(default, description=description, json_schema_extra=extra, **checks)


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def _option(field: str) -> str:
    """`input.3`, an item of a list, -> `--input`."""
    return flag(field.partition(".")[0])


def given(kind: type[Settings], description: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """The options on the command line (`arguments`, default that of this process), unchecked, without defaults.

    Raises InputError when an option is unknown or lacks its value. `--help` prints and exits.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if lacking := [argument for argument in arguments if argument.startswith("--") and argument.endswith("=--")]:
        raise InputError(f"{lacking[0]} gives no value")  # argparse takes "--" away, and an empty list for the value
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    groups: dict[str, argparse._ArgumentGroup] = {}

    def add(target: argparse.ArgumentParser, *names: str, **how) -> None:
        name = how.get("dest", names[0])  # a positional argument has its name alone
        field, title = kind.model_fields[name], _group_of(kind, name)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        if "dest" in how and "metavar" in how:
            how["metavar"] = _metavar(field, how["metavar"])
        if field.default is False or field.default in (None, []):
            how["help"] = field.description
        if how.get("nargs") == "*":  # a list: of one value at least, where it is given
            how["nargs"] = "+"
        groups[title].add_argument(*names, **how)

    spelling = {"cli_kebab_case": True, "cli_implicit_flags": "toggle", "cli_hide_none_type": True}
    CliSettingsSource(kind, **spelling, root_parser=parser, add_argument_method=add)
    return vars(parser.parse_args(arguments))  # not by the source, to which "null" is None and "a,b.png" two files


def parse(kind: type[Kind], description: str, arguments: list[str] | None = None) -> Kind:
    """The settings of a command line. Raises InputError, one line for whatever is wrong."""
    return kind.checked(given(kind, description, arguments))


def refuse_early(kind: type[Kind], description: str, check: Callable[[Kind], None]) -> None:
    """End this process when the command line asks for help, or `parse` or `check` complain of it; else do nothing.

    For the first lines of a script whose other imports take seconds, and may fail: that is then one line, too. `main`
    parses the command line anew.
    """
    catch_imports()
    if status := exit_on_input_error(lambda: check(parse(kind, description)))():
        sys.exit(status)


def _group_of(kind: type[Settings], name: str) -> str:
    """First line of the docstring of the class that declares a field."""
    owner = next(base for base in kind.__mro__ if name in vars(base).get("__annotations__", {}))
    return owner.__doc__.splitlines()[0].rstrip(".")


def _metavar(field: Any, theirs: str) -> str:
    if field.json_schema_extra:
        return field.json_schema_extra["metavar"]
    if theirs.startswith("{"):  # choices
        return theirs
    kinds = {field.annotation, *get_args(field.annotation)}
    return next(name for kind, name in METAVARS.items() if kind in kinds)
