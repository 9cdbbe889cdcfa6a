"""The grammar of values: one for the command line, TOML files and the parameters of notebooks.

    7   1e-3   [3, 5]   {"a": 1}   "a,b"    a value as Python writes it
    true   false                            True and False, in capitals or not
    emoji                                   any other text is itself
    sit,finetune                            several values; commas in brackets and quotes part none
    0..4                                    the numbers 0, 1, 2, 3, 4, alone or among other values
    none                                    None where the setting may be None; otherwise the text

>>> [value for part in parts('sit, "a,b", [3,5], 0..2, True') for value in values(part)]
['sit', 'a,b', [3, 5], 0, 1, 2, True]
"""
import ast
import re
from typing import Any

WORDS = {"true": True, "false": False}
LONGEST = 100_000  # numbers of a range; a longer one is a slip
DIGITS = 18


def parts(text: str) -> list[str]:
    """Split a text at the commas outside of all brackets and quotes."""
    found, depth, quote, start = [], 0, "", 0
    for i, sign in enumerate(text):
        after_a_letter = text[i - 1:i].isalnum()  # there, a quote is an apostrophe
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and not after_a_letter:
            quote = sign
        elif sign in "[{(" or sign in ")}]":
            depth += 1 if sign in "[{(" else -1
        elif sign == "," and not depth:
            found.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*found, text[start:]]]


def values(part: str) -> list:
    """Read one part: a range as its numbers, anything else as one value."""
    return numbers(part) or [literal(part)]


def literal(text: str) -> Any:
    """Read a text as the Python value that it writes; if it writes none, return the text."""
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def numbers(text: str) -> list[int]:
    """Read 0..4 as its numbers; return [] for a text that is no range.

    ValueError: the range goes down or is too long."""
    ends = re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", text)
    if not ends:
        return []
    if max(map(len, ends.groups())) > DIGITS:
        raise ValueError(f"{text.strip()[:50]}: a range has numbers of at most {DIGITS} digits")
    first, last = map(int, ends.groups())
    if last < first:
        raise ValueError(f"{text.strip()}: a range goes upwards")
    if last - first >= LONGEST:
        raise ValueError(f"{text.strip()}: a range has at most {LONGEST:,} numbers")
    return list(range(first, last + 1))


def is_none(given: Any) -> bool:
    """Return whether a value is the word `none`."""
    return isinstance(given, str) and given.strip().lower() == "none"
