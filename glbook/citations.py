"""Citations as plain words, which a notebook shows wherever it is opened, and which the book turns into links.

A chapter cites a work as it is printed, [Zhou et al., 2003] or Zhou et al. [2003], several as [A, 2001; B and C, 2002],
and lists what it cites under "References". `to_roles` makes of this what Sphinx knows: roles, and a list made from the
.bib file.

    python -m glbook.citations    writes the lists of all chapters anew
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pybtex.database import Entry

__all__ = ["cited", "labels", "reference_list", "to_roles"]

REFERENCES = "## References\n\n"
# What looks like a citation, whether the work is known or not: [Name, 2003] and Name [2003], but no link and no code.
_LIKE_ONE = re.compile(r"(?<!\w)\[([^\W\d][^\[\]$]*, \d{4})\](?![(\[])|([\w.'-]+) \[(\d{4})\](?![(\[])")


@cache
def labels(path: Path) -> dict[str, str]:
    """How each work of a .bib file is cited, "Zhou et al., 2003", and its key; ValueError if two are cited alike."""
    found: dict[str, str] = {}
    for key, entry in _entries(path).items():
        names = _surnames(entry)
        people = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        label = f"{people}, {entry.fields['year']}"
        if label in found:
            raise ValueError(f"{path}: {found[label]} and {key} would both be cited as [{label}]")
        found[label] = key
    return found


def cited(text: str, known: Mapping[str, str]) -> list[str]:
    """The keys of the works that a text cites, in the order of their labels; ValueError for an unknown work."""
    groups, textual = _patterns(tuple(known))
    text = re.sub(r"`[^`\n]*`", "", text)
    found = {label for group in groups.findall(text) for label in group.split("; ")}
    found |= {f"{people}, {year}" for people, year in textual.findall(text)}
    left = _LIKE_ONE.search(textual.sub("", groups.sub("", text)))
    if left:
        raise ValueError(f"{left[0]} looks like a citation, and no work in the .bib file is cited so")
    return [known[label] for label in sorted(found)]


def to_roles(text: str, known: Mapping[str, str]) -> str:
    """A Markdown text with its citations as roles, and the directive in place of its list of references."""
    if text.startswith(REFERENCES):
        return REFERENCES + "```{bibliography}\n:filter: docname in docnames\n```"
    groups, textual = _patterns(tuple(known))
    text = groups.sub(lambda found: f"{{cite}}`{','.join(known[label] for label in found[1].split('; '))}`", text)
    return textual.sub(lambda found: f"{{cite:t}}`{known[f'{found[1]}, {found[2]}']}`", text)


@cache
def _patterns(known: tuple[str, ...]) -> tuple[re.Pattern, re.Pattern]:
    """Citations in brackets, one or several, and those whose authors stand in the text."""
    label = "|".join(map(re.escape, known))
    by_year: dict[str, list[str]] = {}
    for people, year in (each.rsplit(", ", 1) for each in known):
        by_year.setdefault(year, []).append(re.escape(people))
    inside = "|".join(rf"(?:{'|'.join(people)})(?= \[{year}\])" for year, people in by_year.items())
    return (
        re.compile(rf"\[((?:{label})(?:; (?:{label}))*)\](?![(\[])"),
        re.compile(rf"(?<!\w)({inside}) \[(\d{{4}})\](?![(\[])"),
    )


def reference_list(keys: list[str], path: Path) -> str:
    """Works as a list in Markdown, in the order of `keys`."""
    return "\n".join(f"- {_described(_entries(path)[key])}" for key in keys)


@cache
def _entries(path: Path) -> "Mapping[str, Entry]":
    from pybtex.database import parse_file

    return parse_file(str(path), bib_format="bibtex").entries


def _plain(latex: str) -> str:
    from pybtex.richtext import Text

    return str(Text.from_latex(latex)).replace("\N{NO-BREAK SPACE}", " ")


def _surnames(entry: "Entry") -> list[str]:
    return [_plain(" ".join(person.prelast_names + person.last_names)) for person in entry.persons["author"]]


def _described(entry: "Entry") -> str:
    names, fields = _surnames(entry), entry.fields
    authors = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    place = next((fields[name] for name in ("journal", "booktitle", "publisher", "school") if name in fields), None)
    parts = [f"{authors}, {fields['year']}: *{_plain(fields['title'])}*"]
    if place:
        parts.append(f"{_plain(place)} {fields.get('volume', '')}".strip())
    if "note" in fields:
        parts.append(_plain(fields["note"]))
    whole = ". ".join(part.rstrip(".") for part in parts) + "."
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", whole)


def write_lists(book: Path) -> list[Path]:
    """Bring the list of references of each chapter in a folder up to date; the chapters that were changed."""
    bibliography, changed = book / "references.bib", []
    for path in sorted(book.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        last = notebook["cells"][-1]
        if not texts or not texts[-1].startswith(REFERENCES) or last["cell_type"] != "markdown":
            continue
        keys = cited("\n".join(texts[:-1]), labels(bibliography))
        source = (REFERENCES + reference_list(keys, bibliography)).splitlines(keepends=True)
        if source != last["source"]:
            last["source"] = source
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    from gl_core.training import records

    for path in write_lists(records.project_root() / "book"):
        print(path.name)
