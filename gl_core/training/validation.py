"""What a value may be is declared once, as a type for pydantic; here it becomes one line that a user can act on."""

import difflib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from gl_core._extras import require

require("pydantic", extra="train")
from pydantic import AfterValidator, TypeAdapter, ValidationInfo  # noqa: E402

__all__ = ["did_you_mean", "one_of", "refusal"]

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping of names to values",
    "null": "None",
}
BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "not empty",
}


def one_of(choices: Callable[[], Collection[str]]) -> AfterValidator:
    """For `Annotated[str, one_of(names)]`: the value must be one of `names()`, looked up when a value is checked."""

    def check(value: str, info: ValidationInfo) -> str:
        if value not in choices():
            raise ValueError(f"{info.field_name}={value!r}: must be one of {', '.join(choices())}")
        return value

    return AfterValidator(check)


def _in_words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        parts = [_in_words(part) for part in schema["anyOf"]]
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    words = KINDS.get(schema.get("type", ""), "another value")
    if schema.get("items"):
        words += f", each item {_in_words(schema['items'])}"
    bounds = [text.format(f"{schema[bound]:.10g}") for bound, text in BOUNDS.items() if bound in schema]
    if not bounds:
        return words
    return words + (", " if {"minimum", "minLength"} & set(schema) else " ") + " and ".join(bounds)


def refusal(name: str, value: Any, declared: Any) -> str:
    """The line that refuses a value, as it is not of the declared type.

    >>> from typing import Annotated
    >>> from pydantic import Field
    >>> refusal("share", 2, Annotated[float, Field(gt=0, le=1)])
    'share=2: must be a number above 0 and at most 1'
    >>> refusal("seeds", 0, list[int] | None)
    'seeds=0: must be a list, each item a whole number, or None'
    """
    return f"{name}={value!r}: must be {_in_words(TypeAdapter(declared).json_schema())}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a line that refuses a name: the most similar one that is known, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
