"""Two chapters of the book, executed whole as a reader would: the idea, and a training."""

import json
import subprocess
import sys

import pytest
from stub_book import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["propagation", "training"])
def test_a_chapter_runs(chapter, tmp_path):
    command = [sys.executable, "-m", "glbook", "run", chapter, "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (notebook,) = tmp_path.glob("*.ipynb")
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 3
