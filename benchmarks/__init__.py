"""What the library costs, each figure a ratio against a named peer that was measured in the same run.

`python -m benchmarks` (or `make bench`) measures everything, `python -m benchmarks loss reranking` those parts. What is
done is kept in `_build/benchmarks`, so that at the same commit a run that was cut short goes on where it was.
"""
