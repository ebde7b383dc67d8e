"""The repository as a whole: what is locked, linked, spelled and stored."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from stub_book import ROOT

from glbook import citations

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def tracked() -> list:
    """The files that git has, or would have with `git add --all`."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def lines_with(pattern: str) -> list[str]:
    """Where a pattern stands in a tracked text file."""
    found = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        content = path.read_bytes()
        if b"\0" in content:
            continue
        lines = content.decode().splitlines()
        found += [f"{name}:{number}: {line[:200]}" for number, line in enumerate(lines, 1) if re.search(pattern, line)]
    return found


def test_the_lock_satisfies_the_requirements_and_hashes_every_package():
    for file in ("requirements.lock", "requirements-bootstrap.txt"):
        entries = re.findall(r"^(\S+?)==(\S+)(.*?)(?=^\S|\Z)", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)
        assert entries and all("--hash=sha256:" in rest for _, _, rest in entries)
    locked = dict(re.findall(r"^(\S+?)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [*PROJECT["project"]["dependencies"], *sum(extras, []), *PROJECT["dependency-groups"]["dev"]]
    for requirement in map(Requirement, required):
        if requirement.name != "gl_core":
            version = locked[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), requirement


def test_nothing_names_a_machine_or_a_package_index():
    assert lines_with(r"(?<![\w.~/])/(?:work|home|Users|root|mnt|opt)/\w") == []
    # A lock made with an index named in it would send every reader there.
    assert lines_with(r"--(?:extra-)?index-ur[l]|--find-link[s]|\bpypi[.]|python[h]osted") == []


def test_only_kept_data_is_in_git():
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert all(
        name == "data/README.md" or name.startswith("data/results/") for name in names if name.startswith("data/")
    )
    assert not any(name.startswith(("_build/", ".venv/")) for name in names)


def test_the_table_of_contents_lists_every_page():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = [toc["root"], *(entry["file"] for entry in toc["chapters"])]
    pages = {path.stem for path in (ROOT / "book").iterdir() if path.suffix in (".md", ".ipynb")}
    assert set(listed) == pages and len(listed) == len(pages)


def test_the_address_of_the_repository_is_that_of_the_configuration():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    ours = url.removeprefix("https://github.com/")
    hosts = r"https://(?:github\.com|colab\.research\.google\.com/github)"
    lines = lines_with(hosts + "/[^/]+/" + ours.split("/")[1])
    assert lines and [line for line in lines if not re.search(f"{hosts}/{ours}\\b", line)] == []


def test_links_lead_to_files_that_are_here():
    """Badges and links to the repository, links from one file to another, and the files that are named in passing."""
    files = {path.relative_to(ROOT).as_posix() for path in tracked()}
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    ours = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"].removeprefix("https://github.com/")
    counted = 0
    for path in tracked():
        if path.suffix not in (".md", ".ipynb", ".yml", ".toml", ".cff"):
            continue
        text = path.read_text()
        if path.suffix == ".ipynb":
            text = "\n\n".join(
                cell["source"] for cell in nbformat.read(path, 4).cells if cell["cell_type"] == "markdown"
            )
        links = re.findall(rf"{ours}/(?:blob|tree|edit|raw)/main/([^\s)\"'#]+)", text)
        beside = [link for link in re.findall(r"\]\((?!\w+:)([^\s)#]+)", text) if path.suffix in (".md", ".ipynb")]
        links += [os.path.relpath(path.parent / link, ROOT) for link in beside]
        links += re.findall(r"`((?:book|gl_core|glbook|tests|benchmarks|data/results)/[\w./]*\w)`", text)
        assert [link for link in links if link not in files | folders] == [], path.name
        counted += len(links)
    assert counted > 50


def test_the_repository_can_move(tmp_path):
    """On a copy: every link to the old place is one to the new."""
    for path in tracked():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    old = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"].removeprefix("https://github.com/")
    owner, name = old.split("/")
    refused = subprocess.run(["make", "repository", "URL=elsewhere"], cwd=tmp_path, capture_output=True, text=True)
    assert (
        refused.returncode and "make repository URL=https://github.com/OWNER/NAME: URL is 'elsewhere'" in refused.stderr
    )
    subprocess.run(
        ["make", "repository", "URL=https://github.com/somebody/else"], cwd=tmp_path, check=True, capture_output=True
    )
    config = yaml.safe_load((tmp_path / "_config.yml").read_text())
    assert config["repository"]["url"] == "https://github.com/somebody/else"
    assert config["sphinx"]["config"]["html_baseurl"] == "https://somebody.github.io/else/"
    left = [
        path
        for path in tracked()
        if old in (text := (tmp_path / path.relative_to(ROOT)).read_text(errors="replace"))
        or f"{owner}.github.io" in text
    ]
    assert left == []
    assert "colab.research.google.com/github/somebody/else/blob/main" in (tmp_path / "book" / "task.ipynb").read_text()


def test_the_citation_on_the_first_page_is_that_of_the_file():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = (ROOT / "book" / "intro.md").read_text()
    box = dict(re.findall(r"^  (\w+) += \{+(.*?)\}+,$", page, re.MULTILINE))
    assert (box["title"], box["version"], box["url"]) == (cited["title"], cited["version"], cited["repository-code"])
    assert box["author"] == cited["authors"][0]["name"] and str(cited["version"]) == PROJECT["project"]["version"]


def test_the_spelling():
    files = [str(path) for path in tracked() if "data/results" not in str(path)]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *files], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["lint-imports", "mypy"])
def test_the_tools_have_nothing_to_say(tool):
    """Imports run one way and in no circle; the types of the library fit."""
    done = subprocess.run([Path(sys.executable).with_name(tool)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_stored_without_outputs_and_with_plain_metadata(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "accelerator", "colab"}
        for cell in notebook["cells"]:
            assert set(cell["metadata"]) <= {"tags", "mystnb"}
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None
        nbformat.validate(nbformat.read(path, 4))

    def test_describes_its_figures(self, path):
        for cell in nbformat.read(path, 4).cells:
            described = cell.metadata.get("mystnb", {})
            if "figure" in described:
                assert described["figure"]["caption"].strip() and described["image"]["alt"].strip()

    def test_lists_what_it_cites_and_nothing_else(self, path):
        """`python -m glbook.citations` brings the lists up to date."""
        bibliography = ROOT / "book" / "references.bib"
        *texts, last = (cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        keys = citations.cited("\n".join(texts), citations.labels(bibliography))
        assert keys and last == citations.REFERENCES + citations.reference_list(keys, bibliography)

    def test_reads_without_sphinx(self, path):
        """Colab and GitHub show directives and roles as they stand."""
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        assert re.findall(r"^(?:```|:::)\{.*|\{[\w:.-]+\}`[^`]*`|^\([\w-]+\)=$", text, re.MULTILINE) == []

    def test_validates_its_parameters_before_any_work(self, path):
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        tags = [cell.metadata.get("tags", []) for cell in cells]
        assert "setup" in tags[0] and "parameters" in tags[1]
        assert "Config.from_parameters(globals())" in cells[3].source


GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi"
    r"|varphi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)(?![a-zA-Z])"
)


def symbols(text: str) -> set[str]:
    """The letters that stand for something in the formulas of a page, without words and operators."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = set()
    for displayed, inline in re.findall(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+?)\$", text, re.DOTALL):
        formula = re.sub(r"\\(?:text|mathrm|operatorname|begin|end)\*?\{[^}]*\}", " ", displayed or inline)
        for pattern in (r"\\math(?:cal|bb)\{\w\}", GREEK, r"\\[a-zA-Z]+"):
            found |= set(re.findall(pattern, formula))
            formula = re.sub(pattern, " ", formula)
        found |= set(re.findall(r"[a-zA-Z]", formula))
    return {symbol for symbol in found if re.fullmatch(rf"\w|\\math(?:cal|bb)\{{\w\}}|{GREEK}", symbol)}


def test_formulas_are_told_from_text():
    text = "$$\\max_{i} \\tau x^2 \\text{ if } \\mathcal{A}_c$$ costs \\$5 and `$HOME` and $\\bar\\pi$\n"
    text += "```sh\n$p $q\n```\n"
    assert symbols(text) == {"i", "\\tau", "x", "\\mathcal{A}", "c", "\\pi"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_symbol_is_on_the_page_of_notation(path):
    """Among those of all chapters or, for the use of this one, among those of one chapter only."""
    general, single = (ROOT / "book" / "notation.md").read_text(encoding="utf-8").split("### In one chapter only")
    known = symbols(general.split("## Symbols")[1])
    for row in re.findall(r"^\|.+\|$", single, re.MULTILINE):
        if f"{{doc}}`{path.stem}`" in row.split("|")[2]:
            known |= symbols(row)
    cells = nbformat.read(path, 4).cells
    used = symbols("\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert used - known == set()


def test_a_figure_has_a_name_of_its_own_in_the_whole_book():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS
        for cell in nbformat.read(path, 4).cells
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert len(names) > 20 and [name for name in names if names.count(name) > 1] == []
