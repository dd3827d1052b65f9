"""What may come from outside? What a typed model says of it; what breaks that is one line with the field's path.

class Place(Schema):
    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]

Place.checked(content, where="vqvae.pth")        # vqvae.pth: size.0 must be at least 1, not -3
"""

import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import InputError

COMPLAINTS = {  # type of pydantic's error -> what we say of the value
    "greater_than_equal": "must be at least {ge}, not {input}",
    "greater_than": "must be more than {gt}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "less_than": "must be less than {lt}, not {input}",
    "multiple_of": "must be a multiple of {multiple_of}, not {input}",
    "finite_number": "must be a finite number, not {input}",
    "int_parsing": "must be a whole number, not {input}",
    "int_parsing_size": "must be a smaller number, not {input}",
    "int_from_float": "must be a whole number, not {input}",
    "int_type": "must be a whole number, not {input}",
    "float_parsing": "must be a number, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "string_type": "must be a text, not {input}",
    "string_unicode": "must be a text in UTF-8, not {input}",
    "string_too_long": "must be shorter",
    "string_pattern_mismatch": "must look like {pattern}, not {input}",
    "list_type": "must be a list, not {input}",
    "dict_type": "must be names and values, not {input}",
    "too_short": "must have at least {min_length} values, not {actual_length}",
    "too_long": "must have at most {max_length} values, not {actual_length}",
    "is_instance_of": "must be a {class}, not {input}",
    "literal_error": "must be {expected}, not {input}",
    "extra_forbidden": "is no setting of this version",
    "missing": "is missing",
    "recursion_loop": "holds itself",
}


MOST = 5  # complaints of one file
SHORT = reprlib.Repr()
SHORT.maxlevel = 1  # a small file can hold a list of lists of lists that would take for ever to be written out


class Schema(BaseModel):
    """What a file may hold: nothing is converted, so that a text is no number, and no number is NaN."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        extra="forbid",
        protected_namespaces=(),
    )

    @classmethod
    def checked(cls, content: Any, where: object) -> Self:
        """This model of `content`, which comes from the file `where`. Raises InputError that names each wrong field."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{where}: {'; '.join(complaints(error))}") from error


def complaints(error: ValidationError, named: Callable[[str], str] = str) -> Iterator[str]:
    """What pydantic found wrong, the first few things; `named` makes of a field's path what it is called."""
    for one in error.errors()[:MOST]:
        known = {key: f"{value:g}" if isinstance(value, float) else value for key, value in one.get("ctx", {}).items()}
        if one["type"] == "value_error":  # of a validator of ours, which says it all
            yield str(known["error"])
        else:
            text = COMPLAINTS.get(one["type"], "{msg}, not {input}")
            field = named(".".join(map(str, one["loc"])))
            yield f"{field} " + text.format(msg=one["msg"], input=shown(one["input"]), **known)


def shown(value: Any) -> str:
    """A value in a complaint: all of it, unless it is long, and visible when it is empty."""
    if isinstance(value, list | dict | tuple | set):
        value = SHORT.repr(value)
    elif not isinstance(value, str | int | float | None):
        value = f"a {type(value).__name__}"
    text = str(value) or "''"
    return text if len(text) <= 40 else f"{text[:40]}..."
