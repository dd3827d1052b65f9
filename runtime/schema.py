"""How is data from outside checked? By a typed model; what doesn't fit it is one line with the field's path.

class Place(Schema):
    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]

Place.checked(content, where="vqvae.pth")    # vqvae.pth: size.0 must be greater than or equal to 1, not -3
"""

import reprlib
from collections.abc import Callable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import InputError

MAX_COMPLAINTS = 5


class Schema(BaseModel):
    """What a file may hold. Nothing is converted: the text "1" is not a number, and NaN isn't one either."""

    model_config = ConfigDict(
        strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid"
    )

    @classmethod
    def checked(cls, content: Any, where: object) -> Self:
        """This model of `content`, read from the file `where`. Raises InputError that names each wrong field."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{where}: {complaints(error)}") from error


def complaints(error: ValidationError, name: Callable[[str], str] = str) -> str:
    """The first few of pydantic's complaints on one line; `name` turns a field's path into what the user knows."""
    lines = []
    for one in error.errors()[:MAX_COMPLAINTS]:
        field, message = name(".".join(map(str, one["loc"]))), one["msg"]
        if one["type"] == "value_error":  # raised by a validator of ours, whose message is complete
            message = str(one["ctx"]["error"])
        elif message.startswith("Input should "):
            message = (
                f"{field or 'it'} {message.replace('Input should', 'must', 1)}, not {reprlib.repr(one['input'])[:60]}"
            )
        elif field:
            message = f"{field}: {message}"
        lines.append(message)
    return "; ".join(lines)
