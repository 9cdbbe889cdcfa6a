"""What there is to choose from, as the text of `clstudy list` and as the tables of the README."""
import re

from clstudy.losses.vocabularies import VOCABULARIES
from clstudy.training.config import AXES, registry
from clstudy.utils.options import described

AXIS_OF = {f"{axis}s": axis for axis in AXES}
TABLES = ("methods", "benchmarks", "streams", "tuners")  # of the README
NAMES = (*AXIS_OF, "augmentations", "vocabularies")


def listing(name: str) -> str:
    """Return the choices of one of `NAMES`, each with what it is and a line for each option."""
    if name in AXIS_OF:
        choices = registry(AXIS_OF[name])
    else:
        choices = VOCABULARIES if name == "vocabularies" else registry("augmentation")
    lines = []
    for key, choice in choices.items():
        lines.append(f"  {key:16} {first_sentence(choice.__doc__ or '')}".rstrip())
        lines += _options(choice) if name in AXIS_OF else []
    return "\n".join(lines)


def _options(choice: type) -> list[str]:
    lines = []
    for one in described(choice):
        default = f"={one.default}" if one.default else ""
        about = f"; {one.help}" if one.help else ""
        lines.append(f"  {'':16} {one.name}{default}: {one.allowed}{about}")
    return lines


def markdown(name: str) -> str:
    """Return the choices of an axis as a Markdown table: name, what it is, source; for methods also
    how each was checked."""
    rows = [["name", "what it is", "source"], ["---"] * 3]
    checks = ["checked against the paper", "---"]
    for key, choice in registry(AXIS_OF[name]).items():
        about = first_sentence(choice.__doc__ or "").removesuffix(".")
        rows.append([f"`{key}`", about, choice.source])
        if name == "methods":
            checks.append(f"◐ {choice.checked}" if choice.checked else "")
    if name == "methods":
        rows = [[*row, check] for row, check in zip(rows, checks, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def filled(text: str, name: str) -> str:
    """Return a text with its table between `<!-- NAME -->` and `<!-- /NAME -->` written anew."""
    return put(text, name, markdown(name))


def put(text: str, name: str, content: str) -> str:
    """Return a text with `content` between `<!-- NAME -->` and `<!-- /NAME -->`, if it has
    these."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if start not in text or end not in text:
        return text
    return text[:text.index(start)] + start + content + text[text.index(end):]


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring's first paragraph, in one line."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z])|:$", paragraph)[0]
