"""The section of benchmarks/RESULTS.md on the GPU suite: the stages of one run, which are files of one folder."""

from collections.abc import Iterator
from typing import Any

from gpu.cases import STAGES
from gpu.table import conclude, summarize_case
from reports.words import format_machine, format_versions, make_table

HEADER = ("case", "status", "figures", "seconds", "date")


def describe_suite(stages: list[dict[str, Any]]) -> Iterator[str]:
    """Yield all cases in the order of their stages, the conclusions, and the machines that the cases ran on."""
    order = {stage: number for number, stage in enumerate(STAGES)}
    stages = sorted(stages, key=lambda content: order.get(content["stage"], len(order)))
    results = {name: case for content in stages for name, case in content["cases"].items()}
    yield from make_table(HEADER, [_case_row(name, case) for name, case in results.items()])
    yield from (f"* {line}" for line in conclude(results))
    origins = [
        f"* `{case['command']}`, commit {case['commit']}, on {format_machine(case['hardware'])}, with "
        f"{format_versions(case['versions'])}"
        for case in results.values()
    ]
    yield from dict.fromkeys(origins)
    yield ""


def _case_row(name: str, case: dict[str, Any]) -> list[str]:
    """Return a case's row."""
    return [name, case["status"], summarize_case(case), f"{case.get('seconds', 0):.1f}", case["date"]]
