"""Is a flipped bit noticed? Where a file has a checksum that tells, it must be: .nii.gz, and PNG.

    python benchmarks/flips.py [--flips 400] [--seed 0] [--json FILE]

Flips single bits of a made-up file of each kind and reads it as every command does: it is refused, or it gives the same
picture as before (a bit that nothing is read from), or another one. Exits with status 1 if there is any of the last.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bad_inputs import blob, png
from reading import images, nifti

OTHER = "another picture"


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def tried(path: Path, data: bytes, read: Callable[[Path], np.ndarray], flips: int, rng: random.Random) -> Counter:
    """What became of so many flips of different bits of the file `path`, which holds `data` before."""
    path.write_bytes(data)
    whole, outcomes = read(path), Counter()
    for bit in rng.sample(range(8 * len(data)), flips):
        path.write_bytes(flipped(data, bit))
        try:
            picture = read(path)
        except ValueError:
            outcomes["refused"] += 1
        else:
            outcomes["the same picture" if np.array_equal(picture, whole) else OTHER] += 1
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=400, help="of each kind of file (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the bits (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    settings = parser.parse_args()
    voxels = np.stack([blob(seed) for seed in range(8)], axis=2).astype(np.int16)
    packed = gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes(), mtime=0)
    kinds = {
        ".nii.gz": (packed, lambda path: nifti.read(path, 2, None)),
        ".png": (png(blob(1)), lambda path: images.read(path)[0]),
    }
    counts, rng = {}, random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        for suffix, (data, read) in kinds.items():
            counts[suffix] = tried(Path(folder) / f"flipped{suffix}", data, read, settings.flips, rng)
    print(json.dumps(counts, indent=2))
    if settings.json:
        settings.json.write_text(json.dumps(counts, indent=2) + "\n")
    return 1 if any(count[OTHER] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
