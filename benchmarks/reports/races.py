"""Sections of benchmarks/RESULTS.md on races with peers: feeding, preparation, staging; also start-up, serving."""

from collections.abc import Iterator
from typing import Any

from feeding.contenders import RESTARTS
from reports.words import (
    Summary,
    format_dataset,
    format_median,
    format_number,
    format_options,
    format_ratio,
    format_spread,
    format_versions,
    list_method,
    list_origin,
    list_unable,
    make_table,
)

FEEDING = (
    *("", "images/s", "Penstock is", "of its rate on originals", "CPU s per 1,000", "memory, MB", "bytes per image"),
    *("first batch, s", "type", "windows"),
)
PREPARATION = (
    *("", "images/s", "Penstock is", "images/s once on disk", "Penstock is", "MB/s", "CPU s per 1,000"),
    *("bytes per image", "syncs"),
)
OF_ORIGINALS = "times_its_rate_on_originals"  # a field of those that read restart shards
LEAST_UNDISTURBED = 3  # windows of a contender: fewer have no median


def rate_of(each: dict[str, Any]) -> Summary:
    """Return the images/s from which ratios are computed: of the undisturbed windows if enough, else of all windows."""
    quiet = each.get("undisturbed_images_per_second")
    return quiet if quiet and len(quiet["repetitions"]) >= LEAST_UNDISTURBED else each["images_per_second"]


def name_contender(name: str, names: dict[str, str]) -> str:
    """Return a contender's name for readers, from a table of names without those that read restart shards."""
    reader = name.removesuffix(RESTARTS)
    return names.get(reader, reader) + ", restarts" * (name != reader)


def sort_by_rate(contenders: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the contenders with their names, the fastest first."""
    return sorted(contenders.items(), key=lambda item: -rate_of(item[1])["median"])


def describe_feeding(content: dict[str, Any]) -> Iterator[str]:
    """Yield each race of the loaders, with every contender's version and configuration."""
    data = content["dataset"]
    yield (
        f"{format_dataset(data)}; {content['transform']}; batch {content['batch_size']}, {content['workers']} workers, "
        f"on the {content['device'].upper()}; alternating windows of {content['seconds']:g} s. Median (min to max); "
        "bytes are those of all files of a format."
    )
    yield ""
    for name, contenders in content["races"].items():
        yield from (f"**{name[0].upper()}{name[1:]}**", "")
        yield from make_table(FEEDING, [_feeding_row(*each) for each in sort_by_rate(contenders)])
        configurations = [_configuration_row(*each) for each in contenders.items()]
        yield from make_table(("", "configuration", "reads", "options", "versions"), configurations)
    if "restarts" in data:
        yield from _describe_restarts(data["restarts"])
    yield from list_unable(content)
    yield from list_origin(content)
    yield from list_method(content)


def _describe_restarts(each: dict[str, Any]) -> Iterator[str]:
    """Yield what restart shards cost on disk, and what they save in reading and decoding."""
    read, decoded, mcus, size = (
        f"{each[name]:.3f}" for name in ("read_share", "decoded_share", "mcu_share", "size_ratio")
    )
    yield (
        f"Restart shards: {each['spliced_share']:.1%} of the images are spliced. For an epoch's windows, {read} of "
        f"the JPEGs' bytes are read and {decoded} decoded; of their MCUs, {mcus} are decoded. The JPEGs have {size} "
        f"times the bytes of the originals, and SHARD.seg has {each['index_bytes_per_image']:,.0f} bytes per image."
    )
    yield ""


def _feeding_row(name: str, each: dict[str, Any]) -> list[str]:
    rate, quiet = each["images_per_second"], each.get("undisturbed_images_per_second")
    num_quiet = len(quiet["repetitions"]) if quiet else 0
    windows = f"{num_quiet} of {len(rate['repetitions'])} undisturbed"
    cpu_seconds, memory = each["cpu_seconds_per_1000_images"], each["memory_bytes"]
    return [
        *(name, format_spread(rate_of(each)), format_ratio(each.get("ours_in_images_per_second"))),
        format_ratio(each.get(OF_ORIGINALS)),
        *(format_median(cpu_seconds), format_number(round(memory["median"] / 1e6))),
        *(f"{each['bytes_per_image']:,.0f}", format_number(each["first_batch_seconds"]), each["type"], windows),
    ]


def _configuration_row(name: str, each: dict[str, Any]) -> list[str]:
    return [name, each["what"], each["data"], format_options(each["options"]), format_versions(each["versions"])]


def describe_preparation(content: dict[str, Any]) -> Iterator[str]:
    """Yield each race of the programs that write images into shards."""
    yield from (f"{format_dataset(content['dataset'])}. Median (min to max).", "")
    for name, race in content["races"].items():
        size = f"{race['num_images']:,} images, {race['image_bytes'] / 1e6:,.0f} MB"
        yield from (f"**{name[0].upper()}{name[1:]}** ({size})", "")
        contenders: dict[str, dict[str, Any]] = race["contenders"]
        rows = [_preparation_row(*each, race["num_images"]) for each in contenders.items()]
        yield from make_table(PREPARATION, rows)
        configurations = [
            [contender, each["what"], format_versions(each["versions"])] for contender, each in contenders.items()
        ]
        yield from make_table(("", "configuration", "versions"), configurations)
    yield from list_unable(content)
    yield from list_origin(content)
    yield from list_method(content)


def _preparation_row(name: str, each: dict[str, Any], num_images: int) -> list[str]:
    ratios = [format_ratio(each.get(f"ours_in_{kind}")) for kind in ("images_per_second", "durable_images_per_second")]
    return [
        *(name, format_spread(each["images_per_second"]), ratios[0]),
        *(format_spread(each["durable_images_per_second"]), ratios[1], format_median(each["megabytes_per_second"])),
        format_number(1000 * each["cpu_seconds"]["median"] / num_images),
        *(f"{each['output_bytes'] / num_images:,.0f}", each["durability"]),
    ]


LOOPBACK = "the bucket is on a server on this machine, which shares its cores"


def describe_staging(content: dict[str, Any]) -> Iterator[str]:
    """Yield the cost of copying a dataset from S3, for each program."""
    yield from (f"{content['dataset']['bytes'] / 1e9:.2f} GB. Median (min to max).", "")
    rows = []
    for name, each in content["programs"].items():
        ratios = [
            f"{format_number(found['median'])} × {its}" for its, found in each.get("cpu_compared_with", {}).items()
        ]
        figures = (
            format_spread(each["cpu_seconds_per_gb"]),
            ", ".join(ratios),
            format_spread(each["megabytes_per_second"]),
        )
        rows.append([name, *figures, each["what"], each["version"]])
    yield from make_table(("", "CPU s per GB", "compared with", "MB/s", "command", "version"), rows)
    yield from list_unable(content)
    yield from list_origin(content)
    yield from list_method(content)


def describe_startup(content: dict[str, Any]) -> Iterator[str]:
    """Yield the seconds to open a split and the seconds to its first batch."""
    yield from (f"A dataset of {format_dataset(content['dataset'])}, repeated under new keys.", "")
    rows = [
        [moment, format_spread(each["open_seconds"]), format_spread(each["first_batch_seconds"])]
        for moment, each in content["moments"].items()
    ]
    yield from make_table(("position in an epoch", "to open, s", "from opening to the first batch, s"), rows)
    yield from list_origin(content)
    if "bucket" in content:
        yield from describe_bucket_starts(content["bucket"])


def describe_bucket_starts(content: dict[str, Any]) -> Iterator[str]:
    """Yield the seconds from the command to the first batch, for each state of the cache of a bucket."""
    size, (before, after) = f"{content['index_bytes'] / 1e6:,.0f} MB", content["load_average"]
    yield f"From the command to the first batch, imports included; the sample index has {size}; {LOOPBACK}. The load"
    yield from (f"average of the machine was {before:.1f} before and {after:.1f} after.", "")
    rows = [
        [name, format_spread(each["opened_seconds"]), format_spread(each["first_batch_seconds"])]
        for name, each in content["starts"].items()
    ]
    yield from make_table(("from", "until the split is open, s", "until the first batch, s"), rows)
    yield from list_origin(content)


def describe_serving(content: dict[str, Any]) -> Iterator[str]:
    """Yield the seconds that the app needs to answer one photograph."""
    model, (width, height) = content["model"], content["photo"]["pixels"]
    about = f"{model['name']} at {model['size']} px, on the CPU with {content['threads']} threads"
    yield from (f"{about}; a photograph of {width:,} × {height:,} pixels; five classes, each with a map.", "")
    rows = [[part, format_spread(content[f"{part}_seconds"])] for part in ("decode", "answer", "whole")]
    yield from make_table(("part", "seconds"), rows)
    yield from list_origin(content)
