"""The machinery of the benchmarks: sides are compared before they are timed, memory is that of one call."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from stub_book import ROOT

from benchmarks import __main__ as command
from benchmarks import gpu, measure, parts, reranking
from benchmarks.table import markdown
from gl_core.rerank import k_reciprocal
from gl_core.training.config import Config
from glbook import runs


def case(**given):
    sides = {measure.OURS: lambda: time.sleep(0.01), "slow": lambda: time.sleep(0.03)}
    return measure.Case("a case", lambda: sides, **{"repeats": 3, "memory": None} | given)


def test_the_speed_is_a_ratio_of_medians():
    row = measure.measure("part", case(bounds={"slow": 1.5}), quick=False)
    assert 1.5 < row["speedup"]["slow"] < 6
    assert row["met"] is True and row["seconds"]["slow"] > row["seconds"][measure.OURS]


@pytest.mark.parametrize("missed", [{"bounds": {"slow": 100.0}}, {"seconds": 0.001}])
def test_a_missed_target_is_said(missed):
    assert measure.measure("part", case(**missed), quick=True)["met"] is False


def test_without_a_target_nothing_is_met():
    assert measure.measure("part", case(), quick=True)["met"] is None


def test_sides_that_disagree_are_not_timed():
    def agree(results):
        raise AssertionError("3 is not 4")

    with pytest.raises(AssertionError, match="3 is not 4"):
        measure.measure("part", case(agree=agree), quick=True)


@pytest.mark.slow
def test_the_peak_of_memory_is_that_since_it_was_forgotten():
    # In a process of its own: one that has run other tests serves small arrays from memory that it kept.
    code = """
import numpy as np
from benchmarks import measure
block = np.ones(40_000_000, np.uint8)
del block
measure.forget_peak()
before, _ = measure.resident()
block = np.ones(80_000_000, np.uint8)
del block
now, peak = measure.resident()
print(peak - before, now - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert 75e6 < peak < 100e6 and now < 40e6


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    (found,) = parts.load("reranking", quick=True)
    megabytes = measure.extra_memory("reranking", found.name, measure.OURS, quick=True)
    assert 0 < megabytes < 500


def test_the_dense_textbook_is_the_same_re_ranking():
    vectors = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = k_reciprocal(vectors, k1=9, k2=4, lambda_value=0.3)
    np.testing.assert_allclose(reranking.dense(vectors.numpy(), 9, 4, 0.3), ours.numpy(), atol=1e-12)


@pytest.mark.parametrize("part", ["loss", "neighbours", "clusters", "reranking"])
def test_the_sides_of_every_part_agree(part):
    for found in parts.load(part, quick=True):
        found.agree({name: side() for name, side in found.prepare().items()})
        assert list(found.prepare())[0] == measure.OURS


def test_a_wrong_peer_is_noticed():
    (found,) = parts.load("reranking", quick=True)
    results = {name: side() for name, side in found.prepare().items()}
    results[reranking.DENSE] = results[reranking.DENSE] + 0.01
    with pytest.raises(AssertionError, match="differ"):
        found.agree(results)


def test_a_whole_step_and_a_bare_one_both_train():
    # What is measured on a GPU, small enough for any machine.
    config = Config(classes_per_batch=2, samples_per_class=3, image_size=32, device="cpu", learning_rate=0.01)
    for name, step in gpu.whole_step(config, num_classes=5).items():
        losses = [step() for _ in range(12)]
        assert np.isfinite(losses).all() and min(losses[-3:]) < losses[0], name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_that_of_a_call():
    peak = measure.peak_above_now("gpu")
    torch.empty(50_000_000, dtype=torch.uint8, device="cuda")
    assert 50 <= peak() < 60


def test_full_cases_have_names_of_their_own_and_targets():
    cases = [found for part in parts.NAMES for found in parts.load(part)]
    assert len({found.name for found in cases}) == len(cases)
    assert sum(bool(found.target) for found in cases) >= 8


def test_a_table_is_no_run(tmp_path):
    row = measure.measure("part", case(), quick=True) | {"load": 0.0, "measured": "now", "commit": "0123"}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "20260101.json").write_text(json.dumps(command.table([row])))
    assert runs.load_runs(tmp_path).empty
    assert "x the speed of slow" in command.line(row)


def test_unknown_parts_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks", "looss"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no part 'looss'" in capsys.readouterr().err


def test_a_run_that_was_cut_short_goes_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(command.records, "project_root", lambda: tmp_path)
    monkeypatch.setattr(command.measure, "measure", lambda part, found, quick: seen.append(part) or {"part": part})
    for commit, times in (("0123", 1), ("0123", 1), ("4567", 2), ("4567-dirty", 3), ("4567-dirty", 4)):
        monkeypatch.setattr(command.records, "commit", lambda commit=commit: commit)
        row = command._measured("reranking", case(), quick=False)
        assert len(seen) == times and row["part"] == "reranking" and "commit" in row


def test_the_page_shows_ratios_and_what_was_missed():
    rows = [
        measure.measure("loss", case(bounds={"slow": bound}, target="much faster"), quick=True) | {"load": 0.5}
        for bound in (1.5, 100.0)
    ]
    page = markdown(command.table(rows))
    assert "1 of 2 targets are met" in page and "much faster: met" in page and "much faster: **not met**" in page
    assert f"{rows[0]['speedup']['slow']:.2f} x slow" in page and "## The loss" in page and "## Re-ranking" not in page
