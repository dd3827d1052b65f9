"""What does a file's name say? The kind of file, the person, the slice level, and the place among other names."""

import re

PICTURES = (".png", ".jpg", ".jpeg")
NIFTI = (".nii", ".nii.gz")
DIGITS = {"case_": 3, "sub-": 2}  # of a person's number; OASIS has 4


def is_nifti(name: str) -> bool:
    """Whether it is a NIfTI file's name."""
    return name.lower().endswith(NIFTI)


def is_data(name: str) -> bool:
    """Whether it is the name of a picture or a NIfTI file."""
    # Dot files include the `._case_001...` that macOS leaves beside every file on a foreign disk.
    return not name.startswith(".") and name.lower().endswith((*PICTURES, *NIFTI))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `slice_2` before `slice_10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name)]


def person_of(name: str) -> str:
    """The person in a file name: `case_001_slice_3.nii.png` -> `case_001`.

    BIDS (`sub-07_...`) and OASIS (`OAS1_0061_MR2...` -> `OAS1_0061`) names are known too; `case_1`, `sub-7` and
    `OAS1_61` are the same people. Any other file is its own person, up to its `_slice_` part.
    """
    if numbered := re.match(r"(case_|OAS[0-9]_|sub-(?=[0-9]+(?![A-Za-z0-9])))([0-9]+)", name):
        prefix, number = numbered.groups()
        return prefix + number.lstrip("0").rjust(DIGITS.get(prefix, 4), "0")
    known = re.match(r"sub-[A-Za-z0-9]+", name)
    return known.group() if known else re.split(r"_slice_|\.", name, maxsplit=1)[0]


def level_of(name: str) -> int:
    """The axial slice index in a file name (`case_001_slice_3.nii.png` -> 3), -1 where it has none."""
    found = re.search(r"slice_([0-9]{1,9})(?![0-9])", name)
    return int(found.group(1)) if found else -1


def stem(name: str) -> str:
    """A NIfTI or DICOM file's name without `.nii`, `.nii.gz` or `.dcm`."""
    return re.sub(r"\.(nii(\.gz)?|dcm|dicom|ima)$", "", name, flags=re.IGNORECASE)


def volume_of(name: str) -> str:
    """The volume that a slice was cut from: `case_004_week_0_slice_3.nii.gz` -> `case_004_week_0`, PNG likewise."""
    return re.sub(r"_slice_[0-9]+(\.nii)?(\.[A-Za-z]+)?$", "", stem(name))
