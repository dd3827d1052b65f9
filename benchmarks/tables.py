"""What does a table look like, and where does it go? Markdown for reading, JSON for everything else."""

import json
from pathlib import Path

from runtime.files import atomic


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table; columns of numbers stand to the right."""
    columns = zip(*rows, strict=True) if rows else [[]] * len(heads)
    numbers = [all(not cell or cell[0].isdigit() or cell == "-" for cell in column) for column in columns]
    ruled = ["---:" if right else "---" for right in numbers]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruled, *rows))


def save(out: Path, name: str, text: str, numbers: dict) -> None:
    """Write NAME.md and NAME.json in `out`, each ending with a newline; raises InputError when that fails."""
    for file_name, content in ((f"{name}.md", text), (f"{name}.json", json.dumps(numbers, indent=2))):
        with atomic(out / file_name) as file:
            file.write(content.encode() + b"\n")
