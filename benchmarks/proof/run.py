"""`python -m proof.run JOB`: run benchmarks/throughput.py under throttles; its record is the last line of output."""

from contextlib import ExitStack
from typing import Any

from answer import Job, run_job
from proof.throttles import few_cores, slow_communication, slow_launches, slow_loader, slow_storage
from throughput import find_recipe, measure_phases, measure_throughput, parse_arguments

from train.dist import join_world


def run_throttled(job: Job) -> dict[str, Any]:
    """Return the record of a throttled measurement; the job's `words` are a command line of throughput.py."""
    arguments = parse_arguments(job["words"])
    with few_cores(job["num_cores"]), slow_storage(job["megabytes_per_second"]), ExitStack() as stack:
        # Delays of some seconds, 0 for none.
        if job["exchange_seconds"]:
            stack.enter_context(slow_communication(job["exchange_seconds"]))
        if job["launch_seconds"]:
            stack.enter_context(slow_launches(job["launch_seconds"]))
        if job["batch_seconds"]:
            stack.enter_context(slow_loader(job["slow_size"], job["batch_seconds"]))
        world = stack.enter_context(join_world("cpu"))
        recipe = find_recipe(arguments)
        return measure_phases(arguments, recipe, world) if recipe else measure_throughput(arguments, world)


if __name__ == "__main__":
    run_job(run_throttled)
