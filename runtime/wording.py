"""How are numbers and times written? Counts with a noun in singular or plural, times in the largest units."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 slice`, `1,120 slices`, `2 people`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
