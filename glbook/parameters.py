"""The parameters of a chapter: what its `parameters` cell declares, values from the command line, and their check.

A chapter declares `name: type = default`, in the cell tagged `parameters`. The types are those of Python, checked by
pydantic as they stand: a whole number may stand for a float, nothing else is converted.
"""

import ast
import builtins
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gl_core.training.validation import did_you_mean, refusal
from glbook.chapters import find

__all__ = ["Parameter", "check_parameters", "parameters", "parse_value", "read_yaml"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a chapter, as its `parameters` cell declares it: `name: type = default`.

    A default of None says that None is allowed, too.
    """

    name: str
    type: Any
    default: Any

    @property
    def optional(self) -> bool:
        """Whether the value may be None."""
        return self.accepts(None)

    def accepts(self, value: Any) -> bool:
        """Whether a value is of the declared type, or stands for one."""
        try:
            self.check(value)
        except ValueError:
            return False
        return True

    def check(self, value: Any) -> Any:
        """The value with the declared type. Raises ValueError, naming name, value and type, if it is of another."""
        declared = self.type | None if self.default is None and self.type is not Any else self.type
        try:
            return TypeAdapter(declared, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
        except ValidationError:
            raise ValueError(refusal(self.name, value, declared)) from None


def parameters(chapter: str) -> dict[str, Parameter]:
    """The parameters of a chapter, in the order of its `parameters` cell."""
    notebook = json.loads(find(chapter).read_text(encoding="utf-8"))
    tagged = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(next(tagged, {"source": ""})["source"])).body
    known = vars(builtins) | vars(typing)
    found = {}
    for line in lines:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            declared = eval(ast.unparse(line.annotation), dict(known))
            found[line.target.id] = Parameter(line.target.id, declared, ast.literal_eval(line.value))
    return found


def parse_value(text: str, parameter: Parameter) -> Any:
    """A value from the command line. What is declared a string stays one; all else is read as YAML: 30, 1e-3, [1, 2].

    "none" and "null" give None where that is allowed, but "none" is a word where no setting is None (augmentation).

    >>> parse_value("1e-3", Parameter("learning_rate", float, None))
    0.001
    >>> parse_value("2011", Parameter("data_root", str, None))
    '2011'
    """
    from gl_core.training.config import Config

    is_word = isinstance(getattr(Config, parameter.name, None), str)
    if parameter.optional and text.lower() in ("none", "null") and not (text == "none" and is_word):
        return None
    if parameter.type is not Any and parameter.accepts(text):
        return text
    try:
        return read_yaml(text)
    except ValueError:
        return text


def read_yaml(text: str) -> Any:
    """What a text in YAML says, with numbers and words as YAML 1.2 has them; a key given twice is refused.

    Of YAML 1.1, which PyYAML reads, this leaves out that 010 is eight, 1:30 is ninety and `no` is false: these are
    strings, and a parameter that is a number refuses them.

    Raises:
        ValueError: the text is not YAML, or gives a key twice.

    >>> read_yaml("{a: 1e-3, b: [010, 1:30, no], c: true, d: null}")
    {'a': 0.001, 'b': ['010', '1:30', 'no'], 'c': True, 'd': None}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict = {}

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    for kind, pattern in (
        ("null", r"~|null|Null|NULL|"),
        ("bool", r"true|True|TRUE|false|False|FALSE"),
        ("int", r"[-+]?(0|[1-9][0-9]*)"),
        ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), None)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def check_parameters(chapter: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters with their declared types, checked before anything starts.

    Raises:
        ValueError: a name that the chapter does not have, a value of another type, or settings that
            `gl_core.training.config.Config` refuses.
    """
    declared = parameters(chapter)
    for name in given:
        if name not in declared:
            known = (", ".join(declared) or "none") + did_you_mean(name, declared)
            raise ValueError(f"{name}: chapter {chapter!r} has no such parameter; it has {known}")
    checked = {name: declared[name].check(value) for name, value in given.items()}
    settings = {name: parameter.default for name, parameter in declared.items()} | checked
    if "dataset" in settings:
        from gl_core.training.config import Config

        Config.from_parameters(settings)
    return checked
