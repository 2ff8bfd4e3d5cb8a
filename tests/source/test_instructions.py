"""The gate: no case of the engine takes 3 % more instructions per packet than bench/instructions.json says."""

import pytest

from bench import instructions


@pytest.mark.slow
@pytest.mark.timeout(600)  # a quarter of a minute on a core of its own
def test_no_case_grew() -> None:
    if reason := instructions.lacks() or instructions.incomparable():
        pytest.skip(reason)
    counts = {name: profile.per_packet for name, profile in instructions.count([]).items()}
    status, said = instructions.verdict(instructions.figures(counts, instructions.recorded()["instructions"]))
    assert status == 0, "\n".join(said)
    for line in said:
        print(line)
