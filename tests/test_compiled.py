"""What `make setup` compiles is all that a search with re-ranking needs, whatever the form of its vectors."""

import subprocess
import sys

import pytest

# In a process of its own, where no other test has used the loops.
FORMS = """
import sys, torch
from gl_core import rerank
from glbook import precompile

precompile.compile_all()
ours = [module for name, module in sys.modules.items() if name.startswith("gl_core.")]
loops = {loop for module in ours for loop in vars(module).values() if hasattr(loop, "signatures")}
before = {loop: set(loop.signatures) for loop in loops}
for dtype in (torch.float32, torch.float64):
    vectors, gallery = torch.randn(300, 16, dtype=dtype), torch.randn(150, 16, dtype=dtype)
    for k1, k2 in ((3, 1), (60, 10)):
        for others in (None, gallery):
            for top_k in (None, 5):
                rerank.k_reciprocal(vectors, others, k1=k1, k2=k2, top_k=top_k)
assert sum(len(signatures) > 0 for signatures in before.values()) >= 5, before
for loop in loops:
    assert set(loop.signatures) == before[loop], loop
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_no_loop_is_compiled_after_setup():
    done = subprocess.run([sys.executable, "-c", FORMS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
