"""Options of a choice on an axis of a run: a small dataclass, whose fields are the options.

A field declares once which values it takes: `rank: Annotated[int, Ge(1)] = 4  # of each update`.
Construction checks them; the comment behind a field is its help in `clstudy list`."""
import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from clstudy.utils.validation import choose, did_you_mean

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False",
         NoneType: "None", Any: "anything"}
BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


@dataclass
class Options:
    """One choice on an axis of a run. Construction checks its fields, which are its options.

    Fields with init=False are state, not options; nothing checks them."""

    title: ClassVar[str] = ""  # as figures and tables print it
    source: ClassVar[str] = ""  # authors, year, arXiv
    __no_type_check__: ClassVar[bool] = True  # jaxtyping does not check: our errors say more

    def __post_init__(self) -> None:
        for name, (annotation, adapter) in _checks(type(self)).items():
            _check(name, getattr(self, name), annotation, adapter)
        self.check()

    def check(self) -> None:
        """Raise a ValueError where options do not go together."""


@dataclass(frozen=True)
class Option:
    """One line of `clstudy list`."""

    name: str
    default: str  # the value as Python writes it; "" where one must be given
    allowed: str  # in words
    help: str


def make(axis: str, name: str, registry: Mapping[str, type], given: Mapping[str, Any]) -> Any:
    """Return the choice of this name in the registry, with the options given.

    axis: a field of RunConfig, whose options are those of `<axis>_args` in errors. ValueError: an
    unknown name or option, a missing option, a value that does not fit."""
    kind = registry[choose(axis, name, registry)]
    refuse_unknown(f"{axis}_args", kind, given)
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{axis}_args: {error}") from None


def refuse_unknown(field: str, kind: type, given: Mapping[str, Any]) -> None:
    """Raise a ValueError for options that a dataclass does not have, or lacks."""
    known = {one.name: one for one in _init_fields(kind)}
    for name in given:
        if name not in known:
            choices = ", ".join(_assignment(one) for one in known.values()) or "none"
            raise ValueError(
                f"{field}: {name!r} is unknown.{did_you_mean(name, known)} Choices: {choices}")
    for name, one in known.items():
        if not _has_default(one) and name not in given:
            raise ValueError(f"{field}: {name!r} is needed by {kind.__name__}")


def described(kind: type) -> list[Option]:
    """Return all options of a choice with their defaults and help, in the order of the fields."""
    helps = {}
    for one in reversed(kind.__mro__):
        helps |= _comments(one)
    return [Option(one.name, repr(_default(one)) if _has_default(one) else "", in_words(one.type),
                   helps.get(one.name, "")) for one in _init_fields(kind)]


def option_names(kind: type) -> list[str]:
    """Return the names of all options of a choice."""
    return [one.name for one in _init_fields(kind)]


def annotation(kind: type, name: Any) -> Any:
    """Return the annotation of an option; None if the choice has no such option."""
    return {one.name: one.type for one in _init_fields(kind)}.get(name)


def in_words(annotation: Any) -> str:
    """Say which values an annotation allows.

    >>> from annotated_types import Ge
    >>> in_words(Annotated[int, Ge(1)] | None)
    'a whole number, at least 1, or None'
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join(filter(None, (in_words(parts[0]), _range(annotation))))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, UnionType):
        *most, last = map(in_words, parts)
        comma = "," if "," in most[-1] else ""
        return f"{', '.join(most)}{comma} or {last}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_plural(in_words(parts[0]))}" if parts else "a list"
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


@cache
def _checks(kind: type) -> dict[str, tuple[Any, TypeAdapter]]:
    strict = ConfigDict(strict=True)
    return {one.name: (one.type, TypeAdapter(one.type, config=strict))
            for one in _init_fields(kind)}


def _check(name: str, value: Any, annotation: Any, adapter: TypeAdapter) -> None:
    """Raise a ValueError where a value does not fit; the value itself is not converted."""
    try:
        adapter.validate_python(value)
        return
    except ValidationError as error:
        found = error.errors()
    kind = found[0]["type"]
    if len(found) == 1 and kind == "literal_error":
        choose(name, found[0]["input"], _literals(annotation))
    if len(found) == 1 and kind == "value_error":  # of a validator in the annotation
        raise ValueError(f"{name}={value!r}: {found[0]['ctx']['error']}")
    if len(found) == 1 and kind == "sequence_str":
        raise ValueError(f"{name}={value!r}: must be {in_words(annotation)}, such as {[value]}")
    in_union = get_origin(annotation) in (Union, UnionType)
    bounds = _range(annotation) if kind in BOUNDS and not in_union else ""
    raise ValueError(f"{name}={value!r}: must be {bounds or in_words(annotation)}")


def _range(annotation: Any) -> str:
    """Say the bounds that an annotation carries; "" where it has none."""
    bounds = {}
    for one in getattr(annotation, "__metadata__", ()):
        bounds |= {end: getattr(one, end) for end in ("gt", "ge", "lt", "le")
                   if getattr(one, end, None) is not None}
    if "ge" in bounds and ("le" in bounds or "lt" in bounds):
        end = bounds["le"] if "le" in bounds else f"below {bounds['lt']}"
        return f"from {bounds['ge']} to {end}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return " and ".join(f"{words[end]} {bound}" for end, bound in bounds.items())


def _plural(words: str) -> str:
    return re.sub(r"^a (.*?)(?= of |,|$)", r"\1s", words)


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [one for part in get_args(annotation) for one in _literals(part)]


def _init_fields(kind: type) -> list[Field]:
    return [one for one in fields(kind) if one.init]


def _has_default(one: Field) -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def _default(one: Field) -> Any:
    return one.default if one.default is not MISSING else one.default_factory()


def _assignment(one: Field) -> str:
    return f"{one.name}={_default(one)!r}" if _has_default(one) else one.name


def _comments(kind: type) -> dict[str, str]:
    """Return the comment behind each field of a class, read from its source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class written at a prompt, or a built-in one
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("#").strip()
            for token in tokens if token.type == tokenize.COMMENT}
    lines = [line for line in ast.parse(source).body[0].body if isinstance(line, ast.AnnAssign)]
    return {line.target.id: said[line.end_lineno] for line in lines if line.end_lineno in said}
