"""What does a file's name say? The kind of file, the person, the slice level, and the place among other names."""

import re

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NIFTI = (".nii", ".nii.gz")
VOLUMES = (*NIFTI, ".mgh", ".mgz", ".img", ".img.gz")  # Analyze and NIfTI pairs are listed by the file with the voxels
DIGITS = {"case_": 3, "sub-": 2}  # of a person's number; OASIS-1 and -2 have 4

# The first group is the person; what follows it are visits, runs and modalities.
NUMBERED = re.compile(r"(case_|OAS[12]_|sub-)([0-9]+)(?![A-Za-z0-9])", re.IGNORECASE)  # published OASIS PNG set, HipMRI
PERSON = re.compile(
    r"(sub-[a-z0-9]+"  # BIDS
    r"|OAS[34][0-9]{4}(?![0-9])"  # OASIS-3 and -4
    r"|(?:ADNI_?)?[0-9]{3}_?S_?[0-9]{4,5}(?![0-9])"
    r"|(?:PPMI|AIBL)_[0-9]+(?=_)"
    r"|IXI[0-9]+(?=[-_.]|$)"
    r"|HC[ADY][0-9]{7}|[0-9]{6}(?=_(?:[37]T|T[12]w|MR|V[0-9]|fMRI|brain))"  # HCP
    r"|BraTS-[a-z]+-[0-9]+|BraTS20(?:_training|_validation|[0-9]{2})_[0-9]+"
    r"|BraTS1[0-9]_[a-z0-9]+_[a-z0-9]+(?=_[0-9]+(?:_|$)))",
    re.IGNORECASE,
)
SUFFIXES = re.compile(  # of other names
    r"(?:[-_ ](?:(?:ses|session|visit|week|month|day|run|echo|acq|tp|timepoint)[-_]?[0-9]+[a-z]?|[vmwd][0-9]{1,4}"
    r"|baseline|bl|follow-?up[0-9]*|fu[0-9]*|t[12](?:w|ce?|gd|n|f)?|flair|pdw?|mprage|mpr|dwi|adc|swi|brain|stripped"
    r"|mask|seg|labels?))+$",
    re.IGNORECASE,
)
COUNTER = re.compile(  # "12", "0 (1)", "img_3", "mildDem12": a number that is nobody's
    r"(?:slice|slc|img|image|im|scan|axial|brain|mri|mr|picture|pic|file|frame|sample"
    r"|(?:very|mild|moderate|non|demented|dem|ad|cn|mci|[-_ ])+)?[-_ ()0-9]+",
    re.IGNORECASE,
)
SLICE = r"(?:_slice_|(?<=mpr-[1-9])_)"  # stands before a slice's number; the latter in pictures made of OASIS-1


def is_volume(name: str) -> bool:
    """Whether it is the name of a file that may hold a volume: NIfTI, Analyze (its .img) or MGH."""
    return name.lower().endswith(VOLUMES)


def is_data(name: str) -> bool:
    """Whether it is the name of a picture or a volume."""
    # Dot files include the `._case_001...` that macOS leaves beside every file on a foreign disk.
    return not name.startswith(".") and name.lower().endswith((*PICTURES, *VOLUMES))


def suffix_of(name: str) -> str:
    """`.png`, `.nii.gz`; of a name without one, the name."""
    found = re.search(r"(\.[a-z0-9]{1,8})?\.gz$|\.[a-z0-9]{1,8}$", name, re.IGNORECASE)
    return found.group().lower() if found else name


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `slice_2` before `slice_10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name)]


def known_person(name: str) -> str | None:
    """The person in a file name of a common data set (`case_001_slice_3.nii.png` -> `case_001`), else None.

    OASIS-1 to -4, ADNI, IXI, HCP, BraTS, HipMRI and BIDS are known; `case_1`, `sub-7` and `OAS1_61` are the same people
    as `case_001`, `sub-07` and `OAS1_0061`.
    """
    if numbered := NUMBERED.match(name):
        prefix, number = numbered.groups()
        prefix = prefix.upper() if prefix[0] in "Oo" else prefix.lower()
        return prefix + number.lstrip("0").rjust(DIGITS.get(prefix, 4), "0")
    found = PERSON.match(name)
    return re.sub("^ADNI_", "", found.group(1)) if found else None


def person_of(name: str) -> str:
    """`known_person`; of any other file its name up to the slice's number, without visit and modality."""
    if known := known_person(name):
        return known
    base = re.split(rf"{SLICE}|\.", name, maxsplit=1)[0]
    stripped = SUFFIXES.sub("", base)
    return base if not stripped or COUNTER.fullmatch(stripped) else stripped


def level_of(name: str) -> int:
    """The axial slice index in a file name (`case_001_slice_3.nii.png` -> 3), -1 where it has none."""
    found = re.search(r"(?:slice_|(?<=mpr-[1-9])_)([0-9]{1,9})(?![0-9])", name)
    return int(found.group(1)) if found else -1


def stem(name: str) -> str:
    """A volume's or DICOM file's name without `.nii`, `.nii.gz` or `.dcm`."""
    return re.sub(r"\.((nii|img|hdr)(\.gz)?|mg[hz]|dcm|dicom|ima)$", "", name, flags=re.IGNORECASE)


def volume_of(name: str) -> str:
    """The volume that a slice was cut from: `case_004_week_0_slice_3.nii.gz` -> `case_004_week_0`, PNG likewise."""
    return re.sub(rf"{SLICE}[0-9]+(\.nii)?(\.[A-Za-z]+)?$", "", stem(name))
