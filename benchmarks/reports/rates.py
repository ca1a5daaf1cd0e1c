"""Tables of rates and times: races of loaders, writers and copies; stages of a training; start-up; the app."""

from typing import Any

from reports.records import (
    format_dataset,
    format_median,
    format_number,
    format_options,
    format_ratio,
    format_spread,
    make_table,
    origin_tables,
    rate_of,
)
from tables import Table

OF_ORIGINALS = "times_its_rate_on_originals"  # a field of those that read restart shards
SPENT = ("wait", "take", "step", "read", "decode", "copy")  # of a batch's time: the consumer's, then the producer's
STAGES = ("loader", "model", "train")  # of a recipe's phase
LOOPBACK = "the bucket is on a server on this machine, which shares its cores"


# Races with others.


def sort_by_rate(contenders: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the contenders with their names, the fastest first."""
    return sorted(contenders.items(), key=lambda item: -rate_of(item[1])["median"])


def tables_of_feeding(content: dict[str, Any]) -> list[Table]:
    """Return each race of the loaders, with every contender's version and configuration."""
    data = content["dataset"]
    about = (
        f"{format_dataset(data)}; {content['transform']}; batch {content['batch_size']}, {content['workers']} workers, "
        f"on the {content['device'].upper()}; alternating windows of {content['seconds']:g} s. Median (min to max); "
        "bytes are those of all files of a format."
    )
    tables = [Table(notes=[about])]
    for race, contenders in content["races"].items():
        rows = (_feeding_row(name, each) for name, each in sort_by_rate(contenders))
        tables += [make_table(rows, title=race[0].upper() + race[1:]), _table_of_configurations(contenders)]
    if "restarts" in data:
        tables.append(Table(notes=[_describe_restarts(data["restarts"])]))
    return [*tables, *origin_tables(content)]


def _feeding_row(name: str, each: dict[str, Any]) -> dict[str, str]:
    rate, quiet = each["images_per_second"], each.get("undisturbed_images_per_second")
    num_quiet = len(quiet["repetitions"]) if quiet else 0
    return {
        "": name,
        "images/s": format_spread(rate_of(each)),
        "Penstock is": format_ratio(each.get("ours_in_images_per_second")),
        "of its rate on originals": format_ratio(each.get(OF_ORIGINALS)),
        "CPU s per 1,000": format_median(each["cpu_seconds_per_1000_images"]),
        "memory, MB": format_number(round(each["memory_bytes"]["median"] / 1e6)),
        "bytes per image": f"{each['bytes_per_image']:,.0f}",
        "first batch, s": format_number(each["first_batch_seconds"]),
        "type": each["type"],
        "windows": f"{num_quiet} of {len(rate['repetitions'])} undisturbed",
    }


def _table_of_configurations(contenders: dict[str, Any]) -> Table:
    """Return what each contender runs; only readers have a format and options."""
    return make_table(
        {
            "": name,
            "configuration": each["what"],
            "reads": each.get("data", ""),
            "options": format_options(each.get("options", {})),
            "versions": format_options(each["versions"]),
        }
        for name, each in contenders.items()
    )


def _describe_restarts(each: dict[str, Any]) -> str:
    """Return what restart shards cost on disk, and what they save in reading and decoding."""
    return (
        f"Restart shards: {each['spliced_share']:.1%} of the images are spliced. For an epoch's windows, "
        f"{each['read_share']:.3f} of the JPEGs' bytes are read and {each['decoded_share']:.3f} decoded; of their "
        f"MCUs, {each['mcu_share']:.3f} are decoded. The JPEGs have {each['size_ratio']:.3f} times the bytes of the "
        f"originals, and SHARD.seg has {each['index_bytes_per_image']:,.0f} bytes per image."
    )


def tables_of_preparation(content: dict[str, Any]) -> list[Table]:
    """Return each race of the programs that write images into shards."""
    tables = [Table(notes=[f"{format_dataset(content['dataset'])}. Median (min to max)."])]
    for name, race in content["races"].items():
        title = f"{name[0].upper()}{name[1:]} ({race['num_images']:,} images, {race['image_bytes'] / 1e6:,.0f} MB)"
        rows = (_preparation_row(writer, each, race["num_images"]) for writer, each in race["contenders"].items())
        tables += [make_table(rows, title), _table_of_configurations(race["contenders"])]
    return [*tables, *origin_tables(content)]


def _preparation_row(name: str, each: dict[str, Any], num_images: int) -> dict[str, str]:
    return {
        "": name,
        "images/s": format_spread(each["images_per_second"]),
        "Penstock is": format_ratio(each.get("ours_in_images_per_second")),
        "images/s once on disk": format_spread(each["durable_images_per_second"]),
        "Penstock is, on disk": format_ratio(each.get("ours_in_durable_images_per_second")),
        "MB/s": format_median(each["megabytes_per_second"]),
        "CPU s per 1,000": format_number(1000 * each["cpu_seconds"]["median"] / num_images),
        "bytes per image": f"{each['output_bytes'] / num_images:,.0f}",
        "syncs": each["durability"],
    }


def tables_of_staging(content: dict[str, Any]) -> list[Table]:
    """Return the cost of copying a dataset from S3, for each program."""
    rows = []
    for name, each in content["programs"].items():
        compared = each.get("cpu_compared_with", {}).items()
        rows.append(
            {
                "": name,
                "CPU s per GB": format_spread(each["cpu_seconds_per_gb"]),
                "compared with": ", ".join(f"{format_number(ratio['median'])} × {other}" for other, ratio in compared),
                "MB/s": format_spread(each["megabytes_per_second"]),
                "command": each["what"],
                "version": each["version"],
            }
        )
    about = f"{content['dataset']['bytes'] / 1e9:.2f} GB. Median (min to max)."
    return [Table(notes=[about]), make_table(rows), *origin_tables(content)]


def tables_of_sweeps(content: dict[str, Any]) -> list[Table]:
    """Return images/s by number of decoding threads, and by stored size."""
    threads = [
        {"decoding threads, original images": str(each["num_threads"])} | _point(each) for each in content["threads"]
    ]
    sizes = [
        {"stored size": each["name"], "bytes per image": f"{each['bytes_per_image']:,.0f}"} | _point(each)
        for each in content["sizes"]
    ]
    about = f"{format_dataset(content['dataset'])}. Median (min to max)."
    return [Table(notes=[about]), make_table(threads), make_table(sizes), *origin_tables(content)]


def _point(each: dict[str, Any]) -> dict[str, str]:
    cpu_seconds = format_median(each.get("cpu_seconds_per_1000_images"))
    return {"images/s": format_spread(rate_of(each)), "CPU s per 1,000": cpu_seconds}


# Stages of one's own program.


def tables_of_throughput(content: dict[str, Any]) -> list[Table]:
    """Return each stage's rate, the times of a batch, the bottleneck with advice, and the recipe's hours and cost."""
    model = f"; {content['model']}, {content['amp']}" if content.get("model") else ""
    about = (
        f"{_describe_images(content)}; batch {content['batch_size']}, {content['size']} pixels{model}; processes "
        f"{content['num_processes']}, decoding threads of each {content['threads']}, on the "
        f"{content['device'].upper()}. Median (min to max)."
    )
    rates = (_stage_row(name, each) for name, each in content["stages"].items())
    spent = {name: times for name, each in content["stages"].items() if (times := each.get("milliseconds_a_batch"))}
    times = (
        {"milliseconds per batch": name} | {part: format_number(each[part]) if part in each else "" for part in SPENT}
        for name, each in spent.items()
    )
    verdict = Table(notes=_list_verdict(content))
    return [Table(notes=[about]), make_table(rates), make_table(times), verdict, *origin_tables(content)]


def _describe_images(content: dict[str, Any]) -> str:
    """Return the dataset of a record, with the mean size of its images if the record has it."""
    size = content["dataset"].get("mean_bytes")
    return format_dataset(content["dataset"]) + (f", {size / 1000:,.0f} KB per image" if size else "")


def _stage_row(name: str, each: dict[str, Any]) -> dict[str, str]:
    sizes = each.get("bytes_per_image")
    return {
        "stage": name,
        "images/s per process": format_spread(each["images_per_second"]),
        "images/s in total": format_spread(each["total"]),
        "MB/s": _format_either(each.get("megabytes_per_second")),
        "CPU s per 1,000": _format_either(each.get("cpu_seconds_per_1000_images")),
        "KB per image: read/stored/decoded": (
            "/".join(f"{sizes[kind] / 1000:.0f}" for kind in ("read", "stored", "decoded")) if sizes else ""
        ),
    }


def _format_either(value: float | dict[str, Any] | None) -> str:
    """Return a value, or one with its spread; "" for None."""
    if value is None:
        return ""
    return format_spread(value) if isinstance(value, dict) else format_number(float(value))


def _list_verdict(content: dict[str, Any]) -> list[str]:
    """Return the efficiency; the bottleneck and the advice, as the record words them; the recipe's hours and cost."""
    lines = []
    if efficiency := content.get("efficiency"):
        lines.append(f"efficiency, training / min(loader, model): {format_spread(efficiency)}")
    if verdict := content.get("verdict"):
        said = " ".join(verdict["says"])
        others = [each for each in verdict.get("advice", []) if each["what"] not in said]
        lines += verdict["says"]
        lines += [f"{each['what']}: {format_number(each['images_per_second'])} images/s" for each in others]
    elif recipe := content.get("recipe"):
        cost = "" if recipe["dollars"] is None else f", {format_number(recipe['dollars'])} dollars"
        lines.append(f"{recipe['name']}, {recipe['epochs']} epochs: {format_number(recipe['hours'])} hours{cost}")
    return lines


def tables_of_phases(content: dict[str, Any]) -> list[Table]:
    """Return a recipe's images/s at each resolution, each phase's share of the recipe, and the verdict."""
    recipe = content["recipe"]
    about = (
        f"{recipe['name']}, {recipe['epochs']:g} epochs; {_describe_images(content)}; {content['model']}, "
        f"{content['amp']}, batch {content['batch_size']}; processes {content['num_processes']}, on the "
        f"{content['device'].upper()}. Images/s, median (min to max)."
    )
    rows = [_phase_row(phase, phase["stages"], phase["bottleneck"]) for phase in content["phases"]]
    if evaluation := content.get("evaluation"):
        rows.append(_phase_row(evaluation, {"train": evaluation["evaluate"]}, "evaluation"))
    return [Table(notes=[about]), make_table(rows), Table(notes=content["says"]), *origin_tables(content)]


def _phase_row(phase: dict[str, Any], stages: dict[str, Any], bottleneck: str) -> dict[str, str]:
    """Return a phase's row; the evaluation has no shares, and one rate."""
    size, measured = phase["size"], phase["measured_size"]
    rates = {name: format_spread(stages[name]["total"]) if name in stages else "" for name in STAGES}
    images, time = (f"{phase[f'share_of_{of}']:.1%}" if f"share_of_{of}" in phase else "" for of in ("images", "time"))
    return {
        "px": str(size),
        "measured at": "" if measured == size else format_number(measured),
        "images": images,
        "loader": rates["loader"],
        "model": rates["model"],
        "training": rates["train"],
        "time": time,
        "bottleneck": bottleneck,
    }


def tables_of_startup(content: dict[str, Any]) -> list[Table]:
    """Return the seconds to open a split and to its first batch, and those from a command, by a bucket's cache."""
    bucket = tables_of_bucket_starts(content["bucket"]) if "bucket" in content else []
    if "moments" not in content:
        return bucket
    rows = (
        {
            "position in an epoch": moment,
            "to open, s": format_spread(each["open_seconds"]),
            "from opening to the first batch, s": format_spread(each["first_batch_seconds"]),
        }
        for moment, each in content["moments"].items()
    )
    about = f"A dataset of {format_dataset(content['dataset'])}, repeated under new keys."
    return [Table(notes=[about]), make_table(rows), *origin_tables(content), *bucket]


def tables_of_bucket_starts(content: dict[str, Any]) -> list[Table]:
    """Return the seconds from the command to the first batch, for each state of the cache of a bucket."""
    before, after = content["load_average"]
    about = (
        f"From the command to the first batch, imports included; the sample index has "
        f"{content['index_bytes'] / 1e6:,.0f} MB; {LOOPBACK}. The load average of the machine was {before:.1f} before "
        f"and {after:.1f} after."
    )
    rows = (
        {
            "from": name,
            "until the split is open, s": format_spread(each["opened_seconds"]),
            "until the first batch, s": format_spread(each["first_batch_seconds"]),
        }
        for name, each in content["starts"].items()
    )
    return [Table(notes=[about]), make_table(rows), *origin_tables(content)]


def tables_of_serving(content: dict[str, Any]) -> list[Table]:
    """Return the seconds that the app needs to answer one photograph."""
    model, (width, height) = content["model"], content["photo"]["pixels"]
    about = (
        f"{model['name']} at {model['size']} px, on the CPU with {content['threads']} threads; a photograph of "
        f"{width:,} × {height:,} pixels; five classes, each with a map. At most {content['peak_mb']:,.0f} MB of memory."
    )
    parts = ("decode", "answer", "whole")
    rows = ({"part": part, "seconds": format_spread(content[f"{part}_seconds"])} for part in parts)
    return [Table(notes=[about]), make_table(rows), *origin_tables(content)]
