"""Where do the slices come from? Folders of pictures or volumes become one uint8 array a split, and batches of it.

    python dataset.py check DIR                         look at every file of a data set; exit status 1 on problems
    python dataset.py split DIR OUT                     make splits by person of files in any folders, by links
    python dataset.py demo DIR [--people N] [--seed S]  make the synthetic demo set
    python dataset.py cache [--clear]                   what is kept of decoded sets, and where; delete it

A data set is a folder with a folder for each split: the OASIS PNG layout `keras_png_slices_{train,validate,test}`
with `case_NNN_slice_S.nii.png` in it, the HipMRI NIfTI layout `keras_slices_{train,validate,test}` with
`case_NNN_week_W_slice_S.nii.gz`, or plain `{train,validate,test}` with either kind, or with 3-D volumes (NIfTI,
Analyze, MGH). A participants.tsv beside them, or in the folder above, says what is known of the people.
"""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from reading import cache, decoding, demo, images, inputs, splitting
from reading.listing import SPLITS, Listing, scan
from reading.names import person_of
from reading.nifti import WHOLE, Cut
from reading.participants import Participants, read_participants
from reading.places import find
from runtime.cli import Parser
from runtime.errors import InputError, exit_on_input_error, visible
from runtime.signals import StopSignals
from runtime.wording import counted

PUBLISHED = {"train": (9664, 302), "validate": (1120, 35), "test": (544, 17)}  # slices, people: OASIS PNG set
MOST_LEVELS = 1024  # that a slice's number can tell: a prior keeps statistics of each
Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Slices:
    """One split: N slices, in natural order of person and file name."""

    images: np.ndarray  # uint8 [N, H, W], memory-mapped and read-only
    names: list[str]  # one a slice, to be shown: the file's; of a volume's slices, the volume's with the level added
    people: list[str]  # "case_001"
    levels: np.ndarray  # int64 [N] in [0, 1024), slice index from the name, or along a volume's axis; -1 without one
    paths: list[Path]  # the file that each slice came from; of a DICOM series, its folder
    ranges: np.ndarray | None = None  # float64 [N, 2], the volume's intensities that 0 and 255 stand for
    frames: list[tuple[slice, slice]] | None = None  # of files read one by one: where each lies on the canvas
    notes: list[str] = field(default_factory=list)  # what was done to which file that its owner has to know
    affine: np.ndarray | None = None  # float64 [4, 4], voxel of the first volume on its canvas -> mm

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def box(self) -> "Box":
        """Where all content of the slices lies."""
        return content_box(self.images)

    @property
    def level_count(self) -> int:
        """One more than the highest slice level; 0 where none is known."""
        return int(self.levels.max()) + 1

    def first_people(self, number: int) -> "Slices":
        """The slices of the first `number` people; a view, not a copy."""
        keep = set(list(dict.fromkeys(self.people))[:number])
        n = sum(person in keep for person in self.people)  # slices are in order of people, so these come first
        names = ("images", "names", "people", "levels", "paths", "ranges", "frames")
        return replace(self, **{name: column[:n] for name in names if (column := getattr(self, name)) is not None})


@dataclass(frozen=True)
class DataSet:
    title: str  # shown on every figure
    root: Path
    synthetic: bool
    splits: dict[str, Slices]
    fingerprint: str  # SHA-256 of the whole set's names and pixels, whichever splits and people were asked for
    spacing: float | None = None  # mm, of the cubes that volumes were resampled to
    participants: Participants | None = None  # of all people of all splits; read anew each time


# ------------------------------------------------------------------------------------------- loading


def _list(data: str | None, person: str | None = None) -> Listing:
    try:
        return scan(find(data), person)
    except OSError as error:
        raise InputError(f"can't read {error.filename}: {error.strerror or error}") from error


def load(
    data: str | None,
    splits: Iterable[str] = SPLITS,
    allow_overlap: bool = False,
    limit_people: int | None = None,
    cut: Cut = WHOLE,
    person: str | None = None,
) -> DataSet:
    """Load a data set, from its cache when its files haven't changed, else by decoding all of it once.

    `data`: a folder, "demo" (a synthetic set, made on first use), or None for the usual places (see `places.find`).
    `limit_people` keeps the first people of each split. `cut` says how 3-D volumes become slices. `person`: a regular
    expression that finds the person in a file's name, where names aren't those of a common set.
    Raises InputError when there is no data set, a file in it can't be read, a split asked for is missing or empty,
    participants.tsv is unsound, or a person is in two splits (of all that the set has) and `allow_overlap` is off.
    """
    if limit_people is not None and limit_people < 1:
        raise InputError(f"the limit of people must be at least 1, not {limit_people}")
    cut.check()
    listing = _list(data, person)
    if listing.broken:
        raise InputError(decoding.some(listing.broken))
    for split in splits:
        if not listing.files.get(split):
            raise InputError(listing.what_lies_in(split))
    if (doubled := listing.overlap()) and not allow_overlap:
        raise InputError(f"{decoding.some(doubled)}: move them, or go on with --allow-overlap (scores will flatter)")

    participants = read_participants(listing.root, listing.everyone())
    index, folder = cache.open_or_build(listing, cut)
    loaded = {split: _open_split(listing, index, folder, split) for split in splits}
    notes = [listing.note(), *index["notes"], *(participants.notes if participants else [])]
    loaded[next(iter(loaded))].notes[:0] = [visible(note) for note in notes if note]
    synthetic = demo.is_demo(listing.root)
    title = "synthetic demo set" if synthetic else visible(listing.root.resolve().name)
    if limit_people is not None:
        loaded = {split: part.first_people(limit_people) for split, part in loaded.items()}
        title += f", first {counted(limit_people, 'person', 'people')} of each split"
    return DataSet(title, listing.root, synthetic, loaded, index["fingerprint"], cut.spacing, participants)


def read_files(paths: list[Path], cut: Cut = WHOLE) -> Slices:
    """Decode just these pictures (PNG, JPEG, TIFF, BMP, WebP), or volumes (NIfTI, Analyze, MGH, DICOM), into memory.

    A folder stands for the files in it; one of DICOM files is a series, that is, one volume. Slices of any height and
    width up to 1024 keep their own pixels, each in the middle of a black canvas: the smallest that holds all of
    them, its sides multiples of 16. `cut` says how volumes become slices. What was done to a file besides is in the
    `notes` of the result. Raises InputError naming each bad file.
    """
    cut.check()
    if not paths:
        raise InputError("give at least one file to read")
    parts = inputs.read(paths, cut)
    canvas = images.whole_blocks(tuple(np.max([part.pictures.shape[1:] for part in parts], axis=0).tolist()))
    names = [visible(name) for part in parts for name in part.names]
    pictures = [picture for part in parts for picture in part.pictures]
    return Slices(
        images=np.stack([images.fit(picture, canvas) for picture in pictures]),
        names=names,
        people=[person_of(name) for name in names],
        levels=_known([level for part in parts for level in part.levels]),
        paths=[part.path for part in parts for _ in part.names],
        ranges=None if parts[0].span is None else np.array([part.span for part in parts for _ in part.names]),
        frames=[images.placement(picture.shape, canvas)[1] for picture in pictures],
        notes=[note for part in parts for note in part.notes],
    )


def _notes(columns: dict, canvas: tuple[int, int], split: str) -> list[str]:
    done = {"padded": columns["padded"], "shrunk": columns["resized"]}
    sizes = [f"{counted(number, 'slice')} {what}" for what, number in done.items() if number]
    notes = [f"{split}: {' and '.join(sizes)} to fit {'x'.join(map(str, canvas))}"] if sizes else []
    if beyond := sum(level >= MOST_LEVELS for level in columns["levels"]):
        above = f"with a number of {MOST_LEVELS:,} or more, taken as of no known level"
        notes.append(f"{split}: {counted(beyond, 'slice')} {above}")
    return notes


def _known(levels: list[int]) -> np.ndarray:
    """Slice levels int64 [N], -1 where it isn't known, or larger than any scan has."""
    levels = np.array(levels, np.int64)
    return np.where(levels < MOST_LEVELS, levels, -1)


def _open_split(listing: Listing, index: dict, folder: Path, split: str) -> Slices:
    columns = index["splits"][split]
    return Slices(
        images=cache.open_array(folder, split),
        names=[visible(name) for name in columns["names"]],
        people=[listing.people[split][file] for file in columns["files"]],
        levels=_known(columns["levels"]),
        paths=[listing.folders[split] / file for file in columns["files"]],
        ranges=np.array(columns["ranges"], np.float64) if listing.has_volumes else None,
        notes=_notes(columns, index["canvas"], split),
        affine=None if columns["affine"] is None else np.array(columns["affine"]),
    )


# ------------------------------------------------------------------------------------------- the content box


SIDE = 16  # pixels, of which the sides of what a network sees are multiples: it halves them up to four times


class Box(NamedTuple):
    """A rectangle of a picture. Convolving the black margins around the head is a choice, not a need."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, pictures: Array) -> Array:
        """[..., H, W] -> [..., height, width], a view."""
        return pictures[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def around(self, margin: int, shape: tuple[int, int]) -> "Box":
        """This box and `margin` pixels more on each side, where a picture [H, W] has them."""
        top, left = max(self.top - margin, 0), max(self.left - margin, 0)
        bottom, right = min(self.top + self.height + margin, shape[0]), min(self.left + self.width + margin, shape[1])
        return Box(top, left, bottom - top, right - left)

    def inside(self, outer: "Box") -> "Box":
        """This box in the coordinates of one that holds it."""
        return Box(self.top - outer.top, self.left - outer.left, self.height, self.width)

    def paste(self, pictures: Array, shape: tuple[int, int]) -> Array:
        """[..., height, width] -> [..., H, W], zero outside the box. The inverse of `crop` for black margins."""
        full = (*pictures.shape[:-2], *shape)
        tensor = isinstance(pictures, torch.Tensor)
        canvas = pictures.new_zeros(full) if tensor else np.zeros(full, pictures.dtype)
        self.crop(canvas)[...] = pictures
        return canvas


def content_box(pictures: np.ndarray, least: Box | None = None) -> Box:
    """The smallest box, sides multiples of 16, that holds every non-zero pixel of [N, H, W], and `least`.

    A side whose multiple would exceed the picture's is taken whole, so pictures whose margins aren't black give the
    whole picture; pictures with no content at all give `least`, or else the smallest box there is.
    """
    filled = np.zeros(pictures.shape[1:], bool)
    for start in range(0, len(pictures), 64):  # in pieces that stay in the processor's cache
        filled |= pictures[start : start + 64].any(axis=0)
    if least is not None:
        least.crop(filled)[...] = True

    def side(filled: np.ndarray) -> tuple[int, int]:
        if not filled.any():
            return 0, min(SIDE, len(filled))
        first, last = np.flatnonzero(filled)[[0, -1]]
        length = min(-(-(last + 1 - first) // SIDE) * SIDE, len(filled))
        middle = (first + last + 1 - length) // 2
        return int(np.clip(middle, 0, len(filled) - length)), int(length)

    (top, height), (left, width) = side(filled.any(axis=1)), side(filled.any(axis=0))
    return Box(top, left, height, width)


# ------------------------------------------------------------------------------------------- batches


def shuffled_shares(
    size: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[torch.Tensor]:
    """This process's share, int64 [batch_size / world_size], of every whole batch of `size` things in random order.

    The order is a function of (seed, epoch) alone. What doesn't fill a last batch is left out.
    """
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))
    steps = size // batch_size
    return list(order[: steps * batch_size].view(steps, world_size, -1)[:, rank])


class Batches:
    """Batches of a split: float32 [b, 1, h, w] in [0, 1] on the device, and int64 [b] indices on the CPU.

    The slices stay uint8 until they are on the device: all of them live there when they fit in half of a GPU's
    free memory; else each batch is gathered from the memory map.

    `batch_size` counts the slices of all `world_size` processes together: each gets an equal, contiguous share of
    it, so N processes see the batches that one would. `box` crops every slice. Raises InputError when the shares
    can't be equal.
    """

    def __init__(
        self,
        slices: Slices,
        batch_size: int,
        device: torch.device | str,
        box: Box | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        if batch_size % world_size:
            raise InputError(f"the batch size {batch_size} can't be shared equally by {world_size} processes")
        if len(slices) < world_size:
            raise InputError(f"{world_size} processes can't share {counted(len(slices), 'slice')}: give more")
        self.size = len(slices)
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        # A set smaller than one batch gives one batch of all of it, as far as it can be shared out equally.
        self.batch_size = min(batch_size, self.size // world_size * world_size)
        self.steps = self.size // self.batch_size
        self.pictures = slices.images if box is None else box.crop(slices.images)
        self.resident = self._resident() if self.device.type == "cuda" else None

    def _resident(self) -> torch.Tensor | None:
        """All slices on the GPU, uint8 [N, h, w], or None when they would take over half of its free memory."""
        free, _ = torch.cuda.mem_get_info(self.device)
        if self.pictures.nbytes > free // 2:
            return None
        resident = torch.empty(self.pictures.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, self.size, 1024):  # in pieces: never a second copy of the set in memory
            piece = torch.from_numpy(np.array(self.pictures[start : start + 1024]))  # a copy: the slices are read-only
            resident[start : start + len(piece)] = piece
        return resident

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in an order that (seed, epoch) alone decide, from step `start` on (to resume).

        What doesn't fill a last batch is left out, and is different slices in every epoch.
        """
        order = shuffled_shares(self.size, self.batch_size, seed, epoch, self.rank, self.world_size)
        return self._batches(order[start:])

    def in_order(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every slice exactly once over all processes: each goes through a contiguous part, the last batch short."""
        first, last = (part * self.size // self.world_size for part in (self.rank, self.rank + 1))
        return self._batches(list(torch.arange(first, last).split(self.batch_size // self.world_size)))

    def _batches(self, order: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        fetched = map(self._gather, order) if self.resident is None else self._from_resident(order)
        for pictures, indices in zip(fetched, order, strict=True):
            yield pictures.unsqueeze(1).to(torch.float32).div_(255), indices

    def _gather(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 [b, h, w] from the memory map."""
        pictures = torch.from_numpy(self.pictures[indices.numpy()])
        if self.device.type == "cuda":  # by way of pinned memory, so that nobody waits for the copy
            pictures = pictures.pin_memory().to(self.device, non_blocking=True)
        return pictures

    def _from_resident(self, order: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        if order:  # one copy of the epoch's order: nothing waits for the CPU after it
            on_device = torch.cat(order).to(self.device)
            for indices in on_device.split([len(indices) for indices in order]):
                yield self.resident.index_select(0, indices)


# ------------------------------------------------------------------------------------------- command line


def check(folder: str, cut: Cut = WHOLE, person: str | None = None) -> tuple[list[str], list[str]]:
    """Decode every file of a data set and print what it holds; returns a line for each problem, and for each note.

    Raises InputError when there is no data set in `folder`.
    """
    cut.check()
    listing = _list(folder, person)
    print(f"{visible(listing.root)}{' (synthetic)' if demo.is_demo(listing.root) else ''}")
    problems = listing.overlap() + listing.broken
    survey = decoding.Survey(problems)
    for split in SPLITS:
        files = listing.files.get(split, [])
        if not files:
            problems.append(listing.what_lies_in(split))
            continue
        with ThreadPoolExecutor(decoding.THREADS) as pool, tqdm(desc=split, total=len(files), disable=None) as bar:
            units = decoding.plan(listing.folders[split], files, cut, pool, problems)
            deque(survey.decode(split, units, cut, pool, bar), maxlen=0)  # for what the survey learns
        people = Counter(listing.people[split].values())
        print(f"{split:>9}: {counted(len(files), 'file')} of {counted(len(people), 'person', 'people')}", end="")
        if listing.folders[split].name.startswith("keras_png_slices_") and not demo.is_demo(listing.root):
            print(" (published OASIS PNG set: {:,} of {})".format(*PUBLISHED[split]), end="")
        kinds = Counter(look.kind for look in survey.looks.get(split, []))
        print("".join(f"; {number:,} of {kind}" for kind, number in kinds.most_common()))
        print(f"{'':>9}  {_examples(people)}")
    notes = [listing.note(), *survey.notes()]
    try:
        participants = read_participants(listing.root, listing.everyone())
    except InputError as error:
        problems.append(str(error))
    else:
        if participants:
            for line in participants.summary({split: own.values() for split, own in listing.people.items()}):
                print(visible(line))
            notes += participants.notes
    return problems + survey.problems(), [note for note in notes if note]


def _examples(people: Counter) -> str:
    """`people: case_001, case_002, ..., case_302; 32 files each`."""
    names, files = [visible(name) for name in people], sorted(set(people.values()))
    shown = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
    each = f"{files[0]:,} to {files[-1]:,} files" if len(files) > 1 else counted(files[0], "file")
    return f"people: {', '.join(shown)}; {each} each"


def show_cache(clear: bool) -> None:
    """Print what the cache holds and its size; with `clear`, delete it first."""
    before = sum(cache.stored().values())
    if clear:
        cache.clear()
    left = cache.stored()
    after = sum(left.values())
    deleted = f", {(before - after) / 1e6:,.1f} MB deleted" if clear else ""
    print(f"{cache.cache_root()}: {after / 1e6:,.1f} MB{deleted}")
    for folder, size in left.items():
        print(f"{size / 1e6:9,.1f} MB  {folder.name}: {cache.content_of(folder)}")


@exit_on_input_error
@StopSignals()
def main() -> int:
    parser = Parser(description="Look at a data set, split files by person, or make the synthetic set.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("check", help="decode every file of a data set; exit status 1 on problems")
    look.add_argument("dir", help="the folder with the split folders, the one above it, or demo")
    look.add_argument("--axis", type=int, default=2, help="of 3-D volumes: 0 sagittal, 1 coronal, 2 axial (default)")
    look.add_argument("--slices", metavar="START:STOP", help="of 3-D volumes, those to take (default: all)")
    look.add_argument(
        "--spacing", metavar="MM", type=float, help="resample 3-D volumes to cubic voxels of this size in mm"
    )
    parts = commands.add_parser("split", help="make splits by person of the files in a folder and in its folders")
    parts.add_argument("dir", type=Path, help="a flat, BIDS or class folder, or OASIS-1 as it is downloaded")
    parts.add_argument("out", type=Path, help="a new folder, for links to the files")
    for command in (look, parts):
        command.add_argument("--person", metavar="REGEX", help="finds the person in a file's name (default: by names)")
    make = commands.add_parser("demo", help="make a synthetic set from the MNI152 template")
    make.add_argument("dir", type=Path, help="a new folder")
    make.add_argument("--people", type=int, default=demo.PEOPLE, help="32 slices each (default: %(default)s)")
    make.add_argument("--seed", type=int, default=demo.SEED, help="the same seed makes the same set (default: 0)")
    decoded = commands.add_parser("cache", help="show what is kept of the data sets that were decoded, and where")
    decoded.add_argument("--clear", action="store_true", help="delete it; it is made again where it is needed")
    args = parser.parse_args()

    if args.command == "cache":
        show_cache(args.clear)
        return 0
    if args.command == "demo":
        demo.make(args.dir, args.people, args.seed)
        print(f"synthetic set of {counted(args.people, 'person', 'people')}, seed {args.seed}: {visible(args.dir)}")
        return 0
    if args.command == "split":
        print("\n".join(map(visible, splitting.split(args.dir, args.out, args.person))))
        return 0
    problems, notes = check(args.dir, Cut(args.axis, args.slices, args.spacing), args.person)
    print("\n".join(visible(f"note: {note}") for note in notes), end="\n" if notes else "")
    print("\n".join([counted(len(problems), "problem"), *map(visible, problems)]) if problems else "no problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
