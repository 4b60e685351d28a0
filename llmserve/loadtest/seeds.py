"""Random numbers that can be had again."""

from __future__ import annotations

import random


def seeded(*of: object) -> random.Random:
    """A generator that is a function of these values alone."""
    return random.Random("/".join(str(each) for each in of))  # noqa: S311  # no secrets here
