"""What does the painter make of people it never saw? Their first codes, painted, beside real slices of other people.

    python benchmarks/painter.py resources/pretrained/vqvae.pth DIR --out FILE.json

Prints the area of the two-sample test, Frechet distances and figures of tissue, each beside those of the people's own
slices (the floor); how alike a brain's neighbouring slices are; and the SSIM of painted and of plain pictures of
training and of validation people: the painter remembers the former if only theirs are the better painted.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import numpy as np

import dataset
from benchmarks.tables import markdown
from dataset import Slices
from inference.codec import PlacedCodes, to_uint8
from inference.model import TrainedModel
from runtime import cli
from runtime.cli import Device, Precision, Settings, option
from runtime.errors import exit_on_input_error
from runtime.files import atomic
from scoring import tissue
from scoring.batches import unit_batch
from scoring.judge import Judge
from scoring.metrics import reconstruction_scores, ssim

TRAINING_PEOPLE = 10  # whose SSIM is computed


class PainterSettings(Settings):
    """what to measure"""

    checkpoint: Path = option(..., "vqvae.pth with a painter.pth beside it")
    data: str = option(..., "the data set that it was trained on", "DIR")
    out: Path = option(Path("painter.json"), "where the figures go", "FILE")
    device: Device = option("auto", "where to paint")
    precision: Precision = option("auto", "in which")


def first_codes(model: TrainedModel, slices: Slices, paint: bool) -> np.ndarray:
    """Pictures of the slices' first codes, uint8 [N, H, W]: painted, with one noise for each person, or plain."""
    codes = model.codec.encode(slices.images, model.codec.box)[:1]
    if not paint:
        return to_uint8(model.codec.decode(codes))
    pictures = np.empty_like(slices.images)
    for seed, person in enumerate(dict.fromkeys(slices.people)):
        rows = np.flatnonzero(np.array(slices.people) == person)
        own = PlacedCodes((grid[rows] for grid in codes), codes.box, codes.size)
        pictures[rows] = to_uint8(model.codec.paint(own, [seed], slices_per_seed=len(rows)))
    return pictures


def neighbours(slices: Slices, images: np.ndarray) -> float:
    """Mean of 1 - SSIM of a brain's neighbouring slices."""
    pairs = [i for i in range(len(slices) - 1) if slices.people[i] == slices.people[i + 1]]
    pairs = [i for i in pairs if slices.levels[i + 1] == slices.levels[i] + 1]
    return float(np.mean([1 - ssim(*unit_batch(images[i : i + 2]).split(1)).item() for i in pairs]))


def painter_table(found: dict) -> str:
    """What is painted of the first codes of people never trained on."""
    kinds = {"own": "their own slices (floor)", "plain": "plain decoder", "painted": "painted"}
    figures = ("grey", "ribbon", "boundary", "grain")
    rows = []
    for kind, label in kinds.items():
        one = found[kind]
        areas = [f"{one['auc'][size]['mean']:.3f}" for size in ("half", "full")]
        distances = [f"{one['frechet'][space]:.3f}" for space in ("pca", "randconv", "folds")]
        tissues = tissue.cells(one["tissue"], figures)
        rows.append([label, *areas, *distances, *tissues, f"{one['neighbours']:.3f}"])
    heads = ["", "AUC, half size", "full size", "`pca`", "`randconv`", "`folds`", *figures, "neighbours"]
    return markdown(heads, rows)


def known_by_heart(found: dict) -> str:
    """SSIM of what is painted, of training and of validation people, in a sentence."""
    known, new = (found[f"ssim_{name}"] for name in ("train", "validate"))
    return (
        f"The SSIM of what is painted from the first codes of ten training people is {known['painted']:.4f} (plainly"
        f" decoded {known['plain']:.4f}), of the ten validation people {new['painted']:.4f} ({new['plain']:.4f})."
    )


@exit_on_input_error
def main() -> int:
    settings = cli.parse(PainterSettings, __doc__)
    model = TrainedModel.load(settings.checkpoint, "none", settings.device, settings.precision)
    splits = dataset.load(settings.data).splits
    train, validate, test = (splits[name] for name in ("train", "validate", "test"))
    held_out = Slices(
        images=np.concatenate([validate.images, test.images]),
        names=validate.names + test.names,
        people=validate.people + test.people,
        levels=np.concatenate([validate.levels, test.levels]),
        paths=validate.paths + test.paths,
    )
    judge = Judge(train, test)
    pictures = {"own": held_out.images}
    pictures |= {kind: first_codes(model, held_out, kind == "painted") for kind in ("plain", "painted")}
    found = {}
    for kind, images in pictures.items():
        found[kind] = {
            "auc": judge.distinguish(images, held_out.people),
            "frechet": {space: figures["frechet"] for space, figures in judge.fidelity(images).items()},
            "tissue": judge.tissue(images)["samples"],
            "neighbours": neighbours(held_out, images),
        }
        print(kind, json.dumps(found[kind]), flush=True)
    for name, part in (("train", train.first_people(TRAINING_PEOPLE)), ("validate", validate)):
        own = part.images / np.float32(255)
        found[f"ssim_{name}"] = {}
        for how in ("plain", "painted"):
            scores = reconstruction_scores(first_codes(model, part, how == "painted"), own)
            found[f"ssim_{name}"][how] = float(scores["ssim"].mean())
        print(f"ssim_{name}", found[f"ssim_{name}"])
    with atomic(settings.out) as file:
        file.write(json.dumps(found, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
