"""What makes a chapter be executed again: what its outputs depend on, and nothing else."""

import pytest

from glbook import fingerprint

CHAPTER = {"cells": [{"cell_type": "code", "source": "%matplotlib inline\nfrom ours import used", "metadata": {}}]}
FILES = {
    "ours/__init__.py": "home = {'loaded': 'later'}",
    "ours/used.py": "from ours.deeper import x",
    "ours/deeper.py": "def x():\n    'A docstring.'\n    return 1  # a comment",
    "ours/later.py": "y = 2",
    "ours/unused.py": "z = 3",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(fingerprint, "FOLDER", tmp_path)
    monkeypatch.setattr(fingerprint, "PACKAGES", ("ours",))
    return tmp_path / "ours"


def key(chapter=CHAPTER, around="") -> str:
    fingerprint._imports.cache_clear()
    fingerprint._meaning.cache_clear()
    return fingerprint.chapter_key(chapter, around)


def test_a_docstring_a_comment_and_what_is_not_imported_change_nothing(package):
    before = key()
    (package / "deeper.py").write_text("def x():\n    'Another one.'\n    return (1)")
    (package / "unused.py").write_text("z = 4")
    prose = {"cells": [{"cell_type": "markdown", "source": "Words.", "metadata": {}}, *CHAPTER["cells"]]}
    assert key(prose) == before


@pytest.mark.parametrize("module", ["used", "deeper", "later"])
def test_code_that_is_imported_changes_the_key(package, module):
    before = key()
    (package / f"{module}.py").write_text(FILES[f"ours/{module}.py"] + "\nmore = 1")
    assert key() != before


def test_cells_and_surroundings_change_the_key(package):
    other = {"cells": [CHAPTER["cells"][0] | {"source": "from ours import used  # and more"}]}
    assert len({key(), key(other), key(around="other results")}) == 3


def test_results_and_tables_are_surroundings(tmp_path):
    found = [fingerprint.surroundings(tmp_path)]
    for name in ("data/results/run.json", "book/sweeps/one.yaml", "book/published.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        found.append(fingerprint.surroundings(tmp_path))
    (tmp_path / "book" / "intro.md").write_text("Words.")
    found_again = fingerprint.surroundings(tmp_path)
    assert len(set(found)) == 4 and found_again == found[-1]
