"""Checks of names and options, with errors that give the field, the value and the choices."""
import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def choose(field: str, value: str, choices) -> str:
    """`value`, if it is one of the choices; otherwise a ValueError with the near ones and all."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), list(choices), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{field}={value!r} is unknown.{hint} Choices: {', '.join(sorted(choices))}")
    return value


def at_least(field: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number from `least` on."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{field}={value!r}: must be a whole number, at least {least}")


def check_arguments(field: str, function, given: dict[str, Any], reserved: tuple[str, ...] = ()) -> None:
    """Refuse options that the function does not take; the error lists those that it takes."""
    known = {name: p for name, p in inspect.signature(function).parameters.items() if name not in reserved}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            options = ", ".join(f"{n}={p.default!r}" if p.default is not p.empty else n for n, p in known.items())
            raise ValueError(f"{field}: {name!r} is unknown.{hint} Choices: {options or 'none'}")
    for name, parameter in known.items():
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if named and parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{field}: {name!r} is needed by {function.__name__}")


@contextmanager
def _in_words(field: str, given: dict[str, Any]) -> Iterator[None]:
    """A value of another type than an option has fails in a comparison: say which field it was."""
    try:
        yield
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{field}={given!r}: {error}") from None
