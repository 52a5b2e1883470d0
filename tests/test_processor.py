"""Names of processors' levels."""

from __future__ import annotations

import pytest

from strongroom.processor import level, level_of

V2 = "fpu sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = V2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu sse2", "x86-64-v1"),
        (V2, "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V4, "x86-64-v4"),
        (V4.replace(" fma", ""), "x86-64-v2"),
        (V4.replace(" popcnt", ""), "x86-64-v1"),
    ],
)
def test_a_level_has_all_that_it_needs(flags: str, name: str) -> None:
    """And all of the levels below it."""
    assert level_of(f"processor\t: 0\nflags\t\t: {flags}\n") == name


def test_the_least_of_all_processors_counts() -> None:
    """Threads run on any of them."""
    assert level_of(f"flags : {V4}\nprocessor : 1\nflags : {V2}\n") == "x86-64-v2"


def test_what_is_not_told_is_not_made_up() -> None:
    """No flags, no level; this machine has some name."""
    assert level_of("") == level_of("processor: 0\n") == "x86-64"
    assert level()
