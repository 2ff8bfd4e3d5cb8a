# SPDX-License-Identifier: Apache-2.0
"""Chaos for longer than the test suite's: `make chaos`, or as root

    python -m tests.chaos [kills|mix] [--events N] [--seed N]

    kills    workers killed at random moments, one after another (50)
    mix      that, and masters killed, workers hung, killed while they repair, while others load the services,
             reload the configuration and change weights (40)

Exit status 1 at the first connection, frame or record that is not as it must be; the seed repeats the same events.
"""

import argparse
import random
import sys

from tests.chaos import kills, mix

RUNS = {"kills": (kills.run, 50), "mix": (mix.run, 40)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"{' or '.join(RUNS)}; default: one after the other")
    parser.add_argument("--events", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args()
    if unknown := [name for name in args.which if name not in RUNS]:
        parser.error(f"{unknown[0]}: there are {', '.join(RUNS)}")
    for name in args.which or RUNS:
        run, events = RUNS[name]
        print(f"{name}: seed {args.seed}", flush=True)
        try:
            run(args.events or events, random.Random(args.seed))
        except Exception as e:
            print(f"{name}: FAILED with seed {args.seed}: {e}", file=sys.stderr)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
