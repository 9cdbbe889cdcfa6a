"""For the reference of `make docs`: doctests of a docstring as code; as text, Markdown would take `[0]` for a link."""
import re

import griffe


class Doctests(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^>>> (?:.+\n?)+", fenced, obj.docstring.value, flags=re.M)


def fenced(found: re.Match) -> str:
    return f"```pycon\n{found[0].rstrip()}\n```\n"
