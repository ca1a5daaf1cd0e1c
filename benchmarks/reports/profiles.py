"""The tables of a profile: where the time of a training step goes, by class of kernel (`throughput.py --profile`)."""

from typing import Any

from reports.records import format_dataset, format_number, format_spread, make_table, origin_tables
from tables import Table

IDLE = "idle"
MAX_SLOWDOWN = 1.5  # profiled / unprofiled step: above it the shares may not be those without the profiler
LEAST_SHOWN = 0.00005  # share of a step: a smaller overlap is 0.0%


def tables_of_profile(content: dict[str, Any]) -> list[Table]:
    """Return a step's images/s and time, its classes with idle time, and the kernels that take longest."""
    profile, rate = content["profile"], content["unprofiled"]
    wall, unprofiled = profile["wall"]["milliseconds_a_step"], rate["milliseconds_a_step"]
    counted, on_cpu = profile["counted"], content["device"] == "cpu"
    processes, decoding = content["num_processes"], content["threads"]
    threads = f", {content['torch_threads']} PyTorch threads" if on_cpu else ""
    notes = [
        f"{format_dataset(content['dataset'])}; {describe_step(content)}, on the {content['device'].upper()}; "
        f"processes: {processes}, each with {decoding} decoding threads{threads}.",
        f"Without the profiler: {format_spread(rate['images_per_second'])} images/s per process, "
        f"{format_spread(unprofiled)} ms per step{_describe_wait(content)}. Median (min to max).",
        f"With the profiler: {format_number(wall)} ms per step, {wall / unprofiled['median']:.2f} times as long, over "
        f"{profile['num_steps']} steps{' of rank 0' if processes > 1 else ''}.",
    ]
    if wall > MAX_SLOWDOWN * unprofiled["median"]:
        notes.append(
            f"The step took more than {MAX_SLOWDOWN:g} times as long with the profiler, so its shares may differ from "
            "those of training. If another program used the machine, profile again; else the operations are very short."
        )
    longest = (
        {
            counted.removesuffix("s"): each["name"],
            "class": each["class"],
            "ms per step": format_number(each["milliseconds_a_step"]),
            f"{counted} per step": f"{each['calls_a_step']:,.1f}",
        }
        for each in profile["longest"]
    )
    return [
        Table(notes=notes),
        make_table(_list_rows(content)),
        Table(notes=_explain(content)),
        make_table(longest),
        *origin_tables(content),
    ]


def describe_step(content: dict[str, Any]) -> str:
    """Return what a step is: its stage, network, sizes and type."""
    data = "fed by the loader" if content["mode"] == "train" else "on one synthetic batch"
    compiled = "" if content["compile"] == "none" else f", compiled ({content['compile']})"
    compiled += ", fused BatchNorm" if content.get("fused") == "on" else ""
    compiled += ", as CUDA graphs" if content.get("graph") else ""
    return (
        f"{content['model']}, batch {content['batch_size']}, {content['size']} pixels, {content['amp']}{compiled}, "
        f"{data}"
    )


def list_shares(content: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Return the classes and idle time with their milliseconds and shares of a step, the longest first."""
    profile = content["profile"]
    return sorted(
        (profile["classes"] | {IDLE: profile[IDLE]}).items(), key=lambda item: -item[1]["milliseconds_a_step"]
    )


def _list_rows(content: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row for each class and idle time, then for the overlap if there is one, and for the whole step."""
    profile = content["profile"]
    rows = list_shares(content)
    if profile["overlap"]["share"] >= LEAST_SHOWN:
        rows.append(("counted several times", profile["overlap"]))
    rows.append(("the step", profile["wall"]))
    return [
        {
            "class": name,
            "ms per step": format_number(each["milliseconds_a_step"]),
            "share": f"{each['share']:.1%}",
            f"{profile['counted']} per step": f"{each['calls_a_step']:,.0f}" if "calls_a_step" in each else "",
        }
        for name, each in rows
    ]


def _describe_wait(content: dict[str, Any]) -> str:
    """Return how long training waits for the loader; "" if no loader feeds it."""
    spent = content["unprofiled"].get("milliseconds_a_batch")
    return f", of which training waits {format_number(spent['wait'])} ms for data" if spent else ""


def _explain(content: dict[str, Any]) -> list[str]:
    """Return what idle time and overlap are on the device of a record."""
    if content["device"] == "cpu":
        idle = (
            "Idle: the training thread runs no operation, and its process no collective; it runs Python or waits for "
        )
        idle += "data. The time of an operation is without that of the operations that it calls."
        overlap = "a collective next to operations"
    else:
        idle = "Idle: no kernel and no copy runs on the GPU. A class counts the time in which at least one of its "
        idle += "kernels runs, on any stream, the loader's too."
        overlap = "kernels of different classes at the same time"
    if content["profile"]["overlap"]["share"] < LEAST_SHOWN:
        return [idle]
    return [idle, f"Counted several times: {overlap}. Sum of the classes + idle - this = the step."]
