"""How are the pretrained weights made? By the commands of their model card, one after the other.

    make weights DATA=DIR                             hours on a GPU; into runs/weights/, and again to go on

Nothing in resources/pretrained/ is replaced: the folders of the new files are printed.
"""

import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trained import ROOT, run_folder
from runtime import cli
from runtime.cli import Settings, option
from runtime.errors import exit_on_input_error

CARD = ROOT / "resources/pretrained/README.md"
ROW = re.compile(r"^\| `(\S+\.pth)` \|.*\| `python train\.py (.+?)`", re.MULTILINE)


class WeightsSettings(Settings):
    """the weights"""

    data: Path = option(..., "the data set's folder", "DIR")
    out: Path = option(Path("runs/weights"), "folder in which each run's folder is made", "DIR")


def commands(data: Path, autoencoder: Path) -> dict[str, list[str]]:
    """The options of train.py that make each file of the model card, with these paths for DIR and vqvae.pth."""
    paths = {"DIR": str(data), "vqvae.pth": str(autoencoder)}
    return {name: [paths.get(word, word) for word in shlex.split(rest)] for name, rest in ROW.findall(CARD.read_text())}


@exit_on_input_error
def main() -> int:
    settings = cli.parse(WeightsSettings, __doc__)
    first = commands(settings.data, Path())["vqvae.pth"]
    run = run_folder(settings.out / "vqvae", first)
    for name, options in commands(settings.data, run / "vqvae.pth").items():
        folder = run if options == first else run_folder(settings.out / Path(name).with_suffix(""), options)
        print(f"{name}: {folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
