"""How do typed settings become a command line? Each field an option, its checks the option's, each bad value one line.

    class PredictSettings(Settings):
        '''What to sample'''
        samples: int = Field(64, ge=0, description="how many")

    settings = cli.parse(PredictSettings, __doc__)           # --samples 16

A class is a group in `--help`, titled with its docstring; a command's settings are the classes that it inherits from.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from runtime.errors import InputError

METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
COMPLAINTS = {  # type of pydantic's error -> what we say of the value
    "greater_than_equal": "must be at least {ge}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "finite_number": "must be a finite number, not {input}",
    "int_parsing": "must be a whole number, not {input}",
    "int_from_float": "must be a whole number, not {input}",
    "int_type": "must be a whole number, not {input}",
    "float_parsing": "must be a number, not {input}",
    "float_type": "must be a number, not {input}",
    "literal_error": "must be {expected}, not {input}",
    "extra_forbidden": "is no setting of this version",
    "missing": "is missing",
}


class Settings(BaseSettings):
    """Settings of a command: nothing but what is given to it, no environment variables."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
    )

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **others):
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _choice_of_numbers(cls, value: Any, field: ValidationInfo) -> Any:
        """The text "8" for a `Literal[4, 8, 16]`: pydantic takes a text for a number everywhere but there."""
        kind = cls.model_fields[field.field_name].annotation
        choices = [choice for part in (kind, *get_args(kind)) for choice in get_args(part)]
        return int(value) if value in [str(choice) for choice in choices if isinstance(choice, int)] else value

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """The settings with these values, the others' defaults.

        Raises InputError that names each option (or, with `where`, each field of that file) and what it must be.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError("; ".join(_complaints(error, where))) from error


Kind = TypeVar("Kind", bound=Settings)


def option(default: Any, description: str, metavar: str | None = None, **checks) -> Any:
    """A field of `Settings`: default, help text, and pydantic's checks (`ge`, `le`)."""
    extra = {"metavar": metavar} if metavar else None
    return Field(default, description=description, json_schema_extra=extra, **checks)


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def given(kind: type[Settings], description: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """The options on the command line (`arguments`, default that of this process), unchecked, without defaults.

    Raises InputError when an option is unknown or lacks its value. `--help` prints and exits.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
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
        if how.get("nargs") == "*":
            how["nargs"] = "+"
        groups[title].add_argument(*names, **how)

    CliSettingsSource(kind, root_parser=parser, add_argument_method=add)  # its own reading would split "a,b.png"
    return vars(parser.parse_args(arguments))


def parse(kind: type[Kind], description: str, arguments: list[str] | None = None) -> Kind:
    """The settings of a command line. Raises InputError, one line for whatever is wrong."""
    return kind.checked(given(kind, description, arguments))


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


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


def _complaints(error: ValidationError, where: str) -> Iterable[str]:
    """A line for each thing that pydantic found wrong."""
    for one in error.errors():
        path = ".".join(map(str, one["loc"]))
        name = f"{where}: {path}" if where else flag(path)
        if one["type"] == "value_error":  # of a validator of ours, which says it all
            yield f"{where}: {one['ctx']['error']}" if where else str(one["ctx"]["error"])
        else:
            text = COMPLAINTS.get(one["type"], "{msg}, not {input}")
            yield f"{name} " + text.format_map({"msg": one["msg"], "input": one["input"], **one.get("ctx", {})})
