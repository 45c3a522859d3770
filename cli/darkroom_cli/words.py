"""Numbers as people write them."""


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def money(usd: float) -> str:
    """Cents where they matter: "$0.0390" below a dollar's cent precision, else "$12.30"."""
    return f"${usd:,.4f}" if 0 < usd < 1 else f"${usd:,.2f}"


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    whole = round(seconds)
    for size, unit, small_size, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
