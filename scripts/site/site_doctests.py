"""The reference of `make docs` shows doctests as code: in text, Markdown takes `[0]` for a link."""
import re

import griffe


class Doctests(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^>>> (?:.+\n?)+", fenced, obj.docstring.value,
                                         flags=re.M)


def fenced(found: re.Match) -> str:
    return f"```pycon\n{found[0].rstrip()}\n```\n"
