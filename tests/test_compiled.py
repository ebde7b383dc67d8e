"""What `make setup` compiles is all that a search with re-ranking needs, whatever the form of its vectors."""

import subprocess
import sys

# In a process of its own, where no other test has used the loops.
FORMS = """
import torch
from gl_core import compiled, rerank

loops = [loop for loop in vars(rerank).values() if hasattr(loop, "signatures")]
compiled.compile_all()
before = {loop.__name__: set(loop.signatures) for loop in loops}
for dtype in (torch.float32, torch.float64):
    vectors, gallery = torch.randn(300, 16, dtype=dtype), torch.randn(150, 16, dtype=dtype)
    for k1, k2 in ((3, 1), (60, 10)):
        for others in (None, gallery):
            for top_k in (None, 5):
                rerank.k_reciprocal(vectors, others, k1=k1, k2=k2, top_k=top_k)
for loop in loops:
    assert set(loop.signatures) == before[loop.__name__], loop
print(*sorted(loop.__name__ for loop in loops if len(loop.signatures) > 0))
"""


def test_no_loop_is_compiled_after_setup():
    done = subprocess.run([sys.executable, "-c", FORMS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The others are called by these alone, and compiled into them; they show in the first process only.
    assert {"_reciprocal", "_expanded", "_weights", "_mix_rows", "_mix_blocks"} <= set(done.stdout.split())
