"""Print the record on stderr: one row per stage, then the verdict."""

from typing import Any

from reports.words import format_bytes, format_placement
from rich.console import Console
from rich.table import Table


def print_record(record: dict[str, Any]) -> None:
    """Print a title, the table of the stages, the efficiency and the verdict."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(describe_title(record), markup=False)
    console.print(build_table(record["stages"]))
    if record["efficiency"]:
        console.print(f"efficiency, train / min(loader, model): {record['efficiency']['median']:.3f}")
    for line in record["verdict"]["says"] if record["verdict"] else []:
        console.print(line, markup=False)


def describe_title(record: dict[str, Any]) -> str:
    """Return the title: what was measured, on which images and device, and where images were decoded."""
    data, hardware = record["dataset"], record["hardware"]
    device = hardware["gpu"] or f"CPU ({hardware['cores']} cores)"
    model = f"{record['model']} {record['amp']}, " if record["model"] else ""
    size = f"{record['size']} px, " if "size" in record else ""
    return (
        f"{model}{size}batch {record['batch_size']} x {record['num_processes']} on {device}; "
        f"{data['name']} [{data['label']}], {data['mean_bytes'] / 1000:,.0f} KB per image; "
        f"{format_placement(record['placement'])}"
    )


def build_table(stages: dict[str, dict[str, Any]]) -> Table:
    """Return the table of the stages, one row per stage."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "images/s", "from", "to", "per process", "CPU-s/1000", "MB/s", "KB read/stored/decoded"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, stage in stages.items():
        total, bandwidth = stage["total"], stage.get("megabytes_per_second")
        table.add_row(
            name,
            *(f"{total[key]:,.0f}" for key in ("median", "min", "max")),
            f"{stage['images_per_second']['median']:,.0f}",
            f"{stage['cpu_seconds_per_1000_images']:.2f}",
            f"{bandwidth['median']:,.0f}" if bandwidth else "",
            format_bytes(stage),
        )
    return table


def print_recipe(record: dict[str, Any]) -> None:
    """Print a title, the table of a recipe's phases, and the verdict."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{record['recipe']['name']} by resolution: {describe_title(record)}", markup=False)
    console.print(build_phases(record))
    for line in record["says"]:
        console.print(line, markup=False)


def build_phases(record: dict[str, Any]) -> Table:
    """Return the table of a recipe's phases, one row per resolution, then the evaluation."""
    table = Table(box=None, pad_edge=False)
    columns = ("px", "measured at", "images", "loader", "model", "train", "from", "to", "time", "bottleneck")
    for name in columns:
        table.add_column(name, justify="left" if name == "bottleneck" else "right")
    for phase in record["phases"]:
        rates = {name: phase["stages"][name]["total"] for name in ("loader", "model", "train")}
        table.add_row(
            str(phase["size"]),
            str(phase["measured_size"]),
            f"{phase['share_of_images']:.1%}",
            *(f"{rate['median']:,.0f}" for rate in rates.values()),
            *(f"{rates['train'][key]:,.0f}" for key in ("min", "max")),
            f"{phase['share_of_time']:.1%}",
            phase["bottleneck"],
        )
    evaluation = record["evaluation"]
    total = (f"{evaluation['evaluate']['total'][key]:,.0f}" for key in ("median", "min", "max"))
    table.add_row(str(evaluation["size"]), str(evaluation["measured_size"]), "", "", "", *total, "", "evaluation")
    return table
