"""Checks of names and numbers, with errors that give the field, the value and the choices."""
import difflib
from collections.abc import Iterable
from typing import Any


def choose(field: str, value: str, choices) -> str:
    """Return `value` if it is one of the choices; otherwise raise a ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown.{did_you_mean(value, choices)} "
                         f"Choices: {', '.join(sorted(choices))}")
    return value


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Return " Did you mean …?" with up to three choices that are similar; "" without any."""
    near = difflib.get_close_matches(str(value), list(choices), 3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def at_least(field: str, value: Any, least: int) -> None:
    """Raise a ValueError where `value` is not a whole number, or is below `least`."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{field}={value!r}: must be a whole number, at least {least}")
