"""Where is a training's run folder? There already, or made now."""

import subprocess
import sys
from pathlib import Path

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def call(script: str, *options: object) -> None:
    """Run one of the repository's own commands; raises InputError when it fails."""
    print("python", script, *options, flush=True)
    if subprocess.run([sys.executable, ROOT / script, *map(str, options)]).returncode:
        raise InputError(f"{script} failed: see above")


def finished(folder: Path) -> Path | None:
    """The first run in `folder` that came to its end, None where there is none."""
    runs = (page.parent for page in sorted(folder.glob("*/report.html")))  # the last thing that train.py writes
    return next(runs, None)


def run_folder(folder: Path, options: list[str]) -> Path:
    """A finished run in `folder`; train.py makes it now with these options, or resumes it, where there is none."""
    if run := finished(folder):
        return run
    begun = next(folder.glob("*/last.pth"), None)
    call("train.py", *(["--resume", begun.parent] if begun else [*options, "--out", folder]))
    return finished(folder)
