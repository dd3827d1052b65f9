"""What is known of the people of a data set? The columns of `participants.tsv`, as BIDS has it.

https://bids-specification.readthedocs.io: tab-separated, a row for each `participant_id`, `n/a` where a value is
missing. `participants.json` beside it may tell a column's `Units`, and `Levels`, its categories.
"""

import csv
import io
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from reading.names import known_person, natural
from runtime.errors import InputError, visible
from runtime.schema import Schema, complaints
from runtime.wording import counted

TABLE, DESCRIPTION = "participants.tsv", "participants.json"
ID = "participant_id"
MISSING = ("", "n/a", "na", "nan")
MOST_CATEGORIES = 10  # of a column without Levels; what has more is free text
LARGEST = 1e30  # numbers are standardised, and have to fit float32


class Covariate(NamedTuple):
    name: str  # the column's, as in the file
    unit: str | None
    categories: tuple[str, ...] | None  # as in the file; None for a number


@dataclass(frozen=True)
class Participants:
    """What a table says of a data set's people."""

    covariates: list[Covariate]
    values: dict[str, list[float]]  # of each person, one a covariate: NaN where missing; a category is its index
    notes: list[str]  # what of the table isn't used

    def summary(self, splits: dict[str, Collection[str]]) -> list[str]:
        """A line for each covariate: `age (years): 18 to 96; of 150 of 155 train, 10 of 10 test people`."""
        lines = []
        for i, (name, unit, categories) in enumerate(self.covariates):
            known = {person: own[i] for person, own in self.values.items() if not np.isnan(own[i])}
            content = ", ".join(categories or ()) or f"{min(known.values()):g} to {max(known.values()):g}"
            have = [f"{len(known.keys() & own):,} of {len(set(own)):,} {split}" for split, own in splits.items()]
            lines.append(f"{name}{f' ({unit})' if unit else ''}: {content}; of {', '.join(have)} people")
        return lines


class Description(Schema):
    """What participants.json tells of a column, as far as it is used."""

    model_config = ConfigDict(extra="ignore")

    unit: str | None = Field(None, alias="Units")
    levels: dict[str, Any] | None = Field(None, alias="Levels")


def read_participants(root: Path, people: Collection[str]) -> Participants | None:
    """Read the table in the data set's root, or the one in the folder above that knows some of its people.

    Columns of numbers become numbers, others with at most ten different values, or with Levels, categories; a column
    with the same value for everybody is left out. Returns None where there is no table. Raises InputError when it, or
    its description, isn't a file as BIDS has it, a row or name is there twice, or a number is infinite.
    """
    for folder in (root, root.parent):
        if not os.path.lexists(folder / TABLE):
            continue
        names, rows = _rows(folder / TABLE)
        found = {person: row for person in people if (row := rows.get(_key(person)))}
        if found or folder == root:
            return _participants(folder, names, rows, found, people)
    return None


def _participants(folder: Path, names: list[str], rows: dict, found: dict, people: Collection[str]) -> Participants:
    described = {}
    if os.path.lexists(path := folder / DESCRIPTION):
        try:
            described = TypeAdapter(dict[str, Description]).validate_json(_text(path))
        except ValidationError as error:
            raise InputError(f"{path}: {complaints(error)}") from error
    covariates, columns, left_out, notes = [], [], [], []
    for i, name in enumerate(names):
        if name == ID:
            continue
        cells = {person: (line, row[i]) for person, (line, row) in found.items() if row[i].casefold() not in MISSING}
        about = described.get(name, Description())
        numbers = None if about.levels else _numbers(cells, f"{folder / TABLE}, column {name}")
        texts = {text for _, text in cells.values()}
        if len(set(numbers.values()) if numbers else texts) < 2:
            left_out.append(f"{name} (the same for everybody)" if texts else f"{name} (nobody has a value)")
        elif numbers is None and not about.levels and len(texts) > MOST_CATEGORIES:
            left_out.append(f"{name} ({len(texts):,} different texts, such as {max(texts)})")
        else:
            order = [level for level in about.levels or () if level in texts]
            order += sorted(texts.difference(order), key=natural)
            covariates.append(Covariate(name, about.unit, None if numbers else tuple(order)))
            columns.append(numbers or {person: float(order.index(text)) for person, (_, text) in cells.items()})
    if left_out:
        notes.append(f"columns left out: {', '.join(left_out)}")
    if missing := [person for person in people if person not in found]:
        notes.append(f"no row for {len(missing):,} of {counted(len(people), 'person', 'people')}, such as {missing[0]}")
    if alone := rows.keys() - {_key(person) for person in found}:
        example = rows[min(alone)][1][names.index(ID)]
        notes.append(f"{counted(len(alone), 'row')} of nobody in the data set, such as {example}")
    values = {person: [column.get(person, np.nan) for column in columns] for person in people}
    return Participants(covariates, values, [visible(f"{TABLE}: {note}") for note in notes])


def _key(person: str) -> str:
    """What `case_7` and `case_007`, `sub-OAS10061` and `OAS1_0061`, or `7` and `sub-07` have in common."""
    known = known_person(f"sub-{person}" if person.isdecimal() else person) or person
    return "".join(filter(str.isalnum, known.casefold().removeprefix("sub-")))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # spreadsheets put a mark before the first letter
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 at byte {error.start:,}: save it as UTF-8 text") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def _rows(path: Path) -> tuple[list[str], dict[str, tuple[int, list[str]]]]:
    """The columns' names, and by `_key` of the person the number of the line, and its cells."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t", strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    names = lines[0][1] if lines else []
    if len(names) == 1 and names[0] != ID and ID in names[0]:
        raise InputError(f"{path}, line 1: the columns must be separated by tabs, not as in {names[0]}")
    if ID not in names:
        raise InputError(f"{path}, line 1: no column {ID}, only {', '.join(names) or 'an empty line'}")
    if "" in names:
        raise InputError(f"{path}, line 1: column {names.index('') + 1} has no name")
    if doubled := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{path}, line 1: column {doubled[0]} is there twice: rename one")
    rows: dict[str, tuple[int, list[str]]] = {}
    at = names.index(ID)
    for line, cells in lines[1:]:
        if len(cells) != len(names):
            raise InputError(f"{path}, line {line}: {counted(len(cells), 'column')}, where line 1 has {len(names)}")
        if cells[at].casefold() in MISSING:
            raise InputError(f"{path}, line {line}, column {ID}: no person")
        first, known = rows.setdefault(_key(cells[at]), (line, cells))
        if [*known[:at], *known[at + 1 :]] != [*cells[:at], *cells[at + 1 :]]:
            raise InputError(f"{path}: {cells[at]} has two rows that differ, in lines {first} and {line}: keep one")
    if not rows:
        raise InputError(f"{path} has no rows of people: fill it, or move it away")
    return names, rows


def _numbers(cells: dict[str, tuple[int, str]], where: str) -> dict[str, float] | None:
    """The column's numbers, None where some cell is none."""
    try:
        numbers = {person: float(text) for person, (_, text) in cells.items()}
    except ValueError:
        return None
    for person, (line, text) in cells.items():
        if not abs(numbers[person]) < LARGEST:
            raise InputError(f"{where}, line {line}: {text} is no finite number: write n/a where it isn't known")
    return numbers
