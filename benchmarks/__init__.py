"""What the library costs, each figure a ratio against a named peer that was measured in the same run.

`python -m benchmarks` (or `make bench`) measures everything, `python -m benchmarks loss rerank` those parts. A part that is done
is kept in `_build/benchmarks` until the code changes, so that a run that was cut short goes on where it was.
"""
