"""Run on Colab by the first cell of a notebook: install the library, go there.

The library comes from the clone that holds this file. PyTorch stays the one
that is here: it fits this machine's GPU, and is large.
"""

import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

book = Path(__file__).resolve().parents[1]
kept = book / "_build" / "torch.txt"
kept.parent.mkdir(exist_ok=True)
kept.write_text(
    "".join(f"{it}=={version(it)}\n" for it in ("torch", "torchvision"))
)
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", kept]
# Editable, so that a kernel that is started again finds the records, too.
subprocess.run([*pip, "--editable", f"{book}[all]"], check=True)
sys.path.insert(0, str(book))
importlib.invalidate_caches()
os.chdir(book)
if torch.cuda.is_available():
    print("A GPU is here: profile = 'full' takes what the budget says.")
else:
    print(
        "No GPU is here: profile = 'quick' runs in about a minute, and longer"
    )
    print("results are recorded ones. (Runtime > Change runtime type)")
