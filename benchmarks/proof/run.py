"""`python -m proof.run JOB`: run benchmarks/throughput.py under throttles; its record is the last line of output."""

from typing import Any

from answer import Job, run_job
from proof.throttles import few_cores, slow_storage
from throughput import measure_throughput, parse_arguments

from train.dist import join_world


def run_throttled(job: Job) -> dict[str, Any]:
    """Return the record of a throttled measurement; the job's `words` are a command line of throughput.py."""
    with few_cores(job["num_cores"]), slow_storage(job["megabytes_per_second"]), join_world("cpu") as world:
        return measure_throughput(parse_arguments(job["words"]), world)


if __name__ == "__main__":
    run_job(run_throttled)
