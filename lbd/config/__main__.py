# SPDX-License-Identifier: Apache-2.0
"""`python -m lbd.config`: the reference as Markdown; `python -m lbd.config schema`: the JSON Schema."""

import json
import sys

from lbd.config.reference import reference
from lbd.config.schema import schema


def main(arguments: list[str]) -> int:
    if arguments == []:
        print(reference(), end="")
    elif arguments == ["schema"]:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
    else:
        print("usage: python -m lbd.config [schema]", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
