"""Checks of names and options, with errors that give the field, the value and the choices."""
import difflib
from typing import Any


def choose(field: str, value: str, choices) -> str:
    """`value`, if it is one of the choices; otherwise a ValueError with the near ones and all."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), list(choices), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"{field}={value!r} is unknown.{hint} Choices: {', '.join(sorted(choices))}")
    return value


def at_least(field: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number from `least` on."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{field}={value!r}: must be a whole number, at least {least}")
