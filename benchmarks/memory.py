"""One side of one case in a fresh process: prints the extra memory of a call in 10^6 bytes, the second one.

The first call starts threads and fills caches. With `MALLOC` all that it takes goes back to the system, so that the
second one takes it anew.
"""

import argparse
import gc
import json

from benchmarks import measure, parts


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("part", "case", "side"):
        parser.add_argument(name)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    case = next(case for case in parts.load(given.part, given.quick) if case.name == given.case)
    side = case.prepare()[given.side]
    side()
    gc.collect()
    peak = measure.peak_above_now("host")
    side()
    print(json.dumps(peak()))


if __name__ == "__main__":
    main()
