"""Chapters as Colab meets them: an environment with PyTorch and without the library, a folder with only a notebook.

A local repository stands in for the one on GitHub. Two chapters are run whole; with COLAB_ALL=1 all of them.
"""

import json
import os
import subprocess
import sys
import sysconfig

import pytest
import torch
import yaml
from stub_book import ROOT
from test_repository import NOTEBOOKS, tracked

URL = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
WHOLE = [path.stem for path in NOTEBOOKS] if os.environ.get("COLAB_ALL") else ["task", "photographs"]
# Executes some cells of a notebook, and then says what it ran with.
RUN = """
import sys, nbformat, nbclient
path, some = sys.argv[1], sys.argv[2]
notebook = nbformat.read(path, 4)
code = [cell for cell in notebook.cells if cell.cell_type == "code"]
if some == "first":
    code = code[:1]
notebook.cells = code + [nbformat.v4.new_code_cell("import gl_core; print(gl_core.__file__, torch.__version__)")]
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(*(output.get("text", "") for cell in (code[0], notebook.cells[-1]) for output in cell.outputs))
"""


class Colab:
    def __init__(self, folder):
        self.folder, repository = folder, folder / "repository"
        for path in tracked():
            copy = repository / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        git = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-C", repository]
        for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"]):
            subprocess.run([*git, *command], check=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        # All packages of this environment but the library, which is there by a .pth file that is not read from here.
        (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": URL,
            "JUPYTER_PLATFORM_DIRS": "1",
        }

    def run(self, path, some):
        work = self.folder / f"{path.stem}-{some}"
        work.mkdir()
        (work / path.name).write_bytes(path.read_bytes())
        command = [self.folder / "env" / "bin" / "python", "-c", RUN, path.name, some]
        done = subprocess.run(command, cwd=work, env=self.environment, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout, work


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    return Colab(tmp_path_factory.mktemp("colab"))


@pytest.mark.slow
def test_the_first_cell_installs_the_library_and_leaves_torch(colab):
    output, work = colab.run(NOTEBOOKS[0], "first")
    *_, package, version = output.split()
    assert package.startswith(str(work / "group-loss-book")) and version == torch.__version__
    assert (colab.folder / "env" / "bin" / "glbook").is_file()
    assert list((colab.folder / "env" / "lib").glob("python*/site-packages/*gl_core*"))
    assert not list((colab.folder / "env" / "lib").glob("python*/site-packages/torch*"))
    assert ("A GPU is here" if torch.cuda.is_available() else "No GPU is here: profile = 'quick'") in output
    # The records are there, for the pages that show them.
    assert list((work / "group-loss-book").glob("data/results/*.json"))


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_the_first_cell_is_the_same_everywhere_and_clones_the_branch_of_the_badges(name):
    first, other = (json.loads(path.read_text()) for path in (NOTEBOOKS[0], ROOT / "book" / f"{name}.ipynb"))
    setup, same = (next(cell for cell in each["cells"] if cell["cell_type"] == "code") for each in (first, other))
    source = "".join(same["source"])
    assert source == "".join(setup["source"]) and "setup" in same["metadata"]["tags"]
    branch = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["branch"]
    assert f'url = "{URL}"\n' in source and f"--branch {branch} $url" in source
    assert other["metadata"]["accelerator"] == "GPU"


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_chapter_runs(colab, name):
    output, _ = colab.run(ROOT / "book" / f"{name}.ipynb", "whole")
    assert str(colab.folder) in output and torch.__version__ in output
