"""Install the library from the clone that holds this file, and go there. The first cell of a notebook runs it on Colab.

PyTorch stays the one that is here: it fits this machine's GPU, and is large.
"""

import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

book = Path(__file__).resolve().parents[1]
as_it_is = book / "_build" / "torch.txt"
as_it_is.parent.mkdir(exist_ok=True)
as_it_is.write_text("".join(f"{name}=={version(name)}\n" for name in ("torch", "torchvision")))
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", as_it_is, f"{book}[all]"]
subprocess.run(pip, check=True)
importlib.invalidate_caches()
os.chdir(book)
if torch.cuda.is_available():
    print("A GPU is here: profile = 'full' takes what the budget says.")
else:
    print("No GPU is here: profile = 'quick' runs in about a minute, and longer results are recorded ones.")
    print("(Runtime > Change runtime type)")
