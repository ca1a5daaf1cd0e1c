"""`python -m proof.run JOB`: benchmarks/throughput.py under throttles, its record as the last line of the output."""

from typing import Any

from answer import Job, answer
from proof.throttles import few_cores, slow_storage
from throughput import measure, parse_arguments

from train.dist import join_world


def run(job: Job) -> dict[str, Any]:
    """The record; the job's `words` are a command line of throughput.py."""
    with few_cores(job["num_cores"]), slow_storage(job["megabytes_per_second"]), join_world("cpu") as world:
        return measure(parse_arguments(job["words"]), world)


if __name__ == "__main__":
    answer(run)
