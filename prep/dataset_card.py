"""Write the dataset card, README.md next to the split folders: what the dataset is, and where its splits are.

`datasets.load_dataset(DIR)` reads the YAML header of the card. Without a card the most common ending of a file decides:
with one shard per split it takes `samples.arrow`, the sample index, for the data. The card follows from the manifests
alone, so that the same splits give the same bytes. A README.md that does not begin as a card of Penstock is the user's,
and is kept.
"""

import glob
import json
import re
from collections.abc import Iterable, Mapping

from prep.card import README, UNKNOWN, select_license
from prep.dataset import FORMAT_VERSION, Manifest, Options
from prep.errors import one_line
from prep.store import Store

START = "---\n# Written by Penstock"  # of each card that Penstock may write again
ADVICE = "and again whenever a split is finished: to keep a text of your own, delete this line."
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` accepts
ALL_SPLITS = "all"  # what it reserves
FLAGS = {"limit": "--limit", "max_side": "--max-side", "short_side": "--short-side", "quality": "--quality"}
TABLE_HEAD = ("split", "images", "classes", "shards", "MB", "source", "revision", "prepared with")

License = Mapping[str, object]


def is_users_readme(content: bytes | None) -> bool:
    """Return True if this is the content of a README.md that Penstock did not write."""
    return content is not None and not content.startswith(START.encode())


def describe_kept_readme(out: Store) -> str:
    """Return a warning in one line if a dataset has a README.md of the user; empty if not."""
    if not is_users_readme(out.read(README)):
        return ""
    return (
        f"{out}/{README} was not written by Penstock and is kept: for `datasets.load_dataset`, put the `configs` of "
        "docs/format.md into it, or move it away and run the same command again"
    )


def make_dataset_card(manifests: Mapping[str, Manifest]) -> bytes:
    """Return the dataset card; the keys of `manifests` are the folders of the splits, in any order."""
    manifests = dict(sorted(manifests.items()))
    licenses = {folder: select_license(manifest.reading.get("license")) for folder, manifest in manifests.items()}
    sources = dict.fromkeys(_quote_source(manifest) for manifest in manifests.values())
    lines = [
        f"{START}, {ADVICE}",
        *_list_data_files(manifests),
        *_declare_license(list(licenses.values())),
        "---",
        f"# WebDataset shards of {', '.join(sources) or 'no split'}",
        "",
        f"Prepared by Penstock, format {_name_formats(manifests.values())}: {_describe_members(manifests.values())}",
        "`samples.arrow` is the index of a split; `manifest.json` has its class names and digests.",
        "",
        _table_row(TABLE_HEAD),
        "|---" * len(TABLE_HEAD) + "|",
        *(_table_row(_describe_split(folder, manifest)) for folder, manifest in manifests.items()),
        "",
        *_describe_licenses(licenses),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'load_dataset("DIR", split="{next(iter(_name_splits(manifests).values()), "train")}", streaming=True)',
        "```",
        "",
        "Without `streaming=True` it copies all images to its cache first.",
    ]
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")  # names of files may be no valid Unicode


# The YAML header. Strings are written as JSON, which YAML reads.


def _list_data_files(folders: Iterable[str]) -> list[str]:
    names = _name_splits(folders)
    if not names:
        return []
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for folder, name in names.items():
        lines += [f"  - split: {_quote(name)}", f"    path: {_quote(f'{glob.escape(folder)}/*.tar')}"]
    return lines


def _name_splits(folders: Iterable[str]) -> dict[str, str]:
    """Return a different name for each split that `datasets` accepts: its folder's, if possible."""
    names: dict[str, str] = {}
    for folder in folders:
        name = folder if SPLIT_NAME.fullmatch(folder) else re.sub(r"\W", "_", folder)
        while name in names.values() or name.lower() == ALL_SPLITS:
            name += "_"
        names[folder] = name
    return names


def _declare_license(licenses: list[License]) -> list[str]:
    """Return what the header says about the licence: nothing if the splits differ."""
    if not licenses or any(each != licenses[0] for each in licenses):
        return []
    return [f"{key}: {_quote(value)}" for key, value in (licenses[0] or {"license": UNKNOWN}).items()]


def _quote(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# The text.


def _quote_source(manifest: Manifest) -> str:
    return "adopted tars" if manifest.options is None else one_line(f"`{manifest.source.name}`")


def _name_formats(manifests: Iterable[Manifest]) -> str:
    versions = {manifest.format_version for manifest in manifests} or {FORMAT_VERSION}
    return " and ".join(map(str, sorted(versions)))


def _describe_members(manifests: Iterable[Manifest]) -> str:
    if any(manifest.options is None for manifest in manifests):
        return "the adopted tars are as they were, with the samples that `ledger.jsonl` lists as rejected."
    return "each image is `KEY.jpg` in a tar, and its label `KEY.cls`."


def _describe_split(folder: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the cells of a split's row in the table."""
    return (
        folder,
        f"{manifest.num_images:,}",
        f"{len(manifest.class_names):,}",
        f"{len(manifest.shards):,}",
        f"{manifest.size_bytes / 1e6:,.1f}",
        _quote_source(manifest),
        f"`{manifest.source.revision}`",
        _list_flags(manifest.options),
    )


def _list_flags(options: Options | None) -> str:
    """Return the flags of prep/shard.py that chose or changed images; "-" for none."""
    if options is None:
        return "prep/adopt.py"
    given = {flag: getattr(options, name) for name, flag in FLAGS.items()}
    texts = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    return " ".join(f"`{text}`" for text in [*texts, *(["--restarts"] if options.restarts else [])]) or "-"


def _table_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _describe_licenses(licenses: Mapping[str, License]) -> list[str]:
    """Return a line on the licence of all splits, or one for each if they differ."""
    texts = {folder: _describe_license(found) for folder, found in licenses.items()}
    if len(set(texts.values())) == 1:
        return [f"Licence: {next(iter(texts.values()))}"]
    return [f"- Licence of {folder}: {text}" for folder, text in texts.items()]


def _describe_license(found: License) -> str:
    if not found:
        return "unknown, the source declares none. Look it up where the images come from."
    return "as the source declares it: " + one_line(", ".join(f"`{key}: {value}`" for key, value in found.items()))
