"""Read the dataset card: what a Hugging Face dataset declares in README.md's YAML header and in dataset_infos.json.

The library `datasets` is not used for it: it takes 1.5 s to import, needs a writable cache for a dataset on the hub,
and misreads a local path with a bracket or an asterisk in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prep.errors import InputError

README, STANDALONE, LEGACY = "README.md", ".huggingface.yaml", "dataset_infos.json"
CARD_FILES = (README, STANDALONE, LEGACY)
DEFAULT = "default"
LICENSE_KEYS = ("license", "license_name", "license_details", "license_link")
UNKNOWN = "unknown"  # the hub's value of `license` for data whose licence is not known


@dataclass(frozen=True)
class Feature:
    """The declared type of a column."""

    kind: str  # "image", "label", or the name of another type
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Info:
    """The columns and row counts that a card declares for one configuration."""

    features: Mapping[str, Feature] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)  # split -> rows


@dataclass(frozen=True)
class Configuration:
    """The files that a card declares for a configuration; without patterns, file names decide the splits."""

    patterns: Mapping[str, tuple[str, ...]] | None = None  # split -> glob patterns
    folder: str = ""  # the files are below it


@dataclass(frozen=True)
class Card:
    """All that a dataset declares; empty if it has no card."""

    infos: Mapping[str, Info] = field(default_factory=dict)
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    default: str | None = None
    license: Mapping[str, Any] = field(default_factory=dict)  # see `select_license`

    def info(self, config: str | None) -> Info:
        """Return what is declared for a configuration; for None, the default one or the only one."""
        if config in self.infos:
            return self.infos[config or ""]
        if config is None and DEFAULT in self.infos:
            return self.infos[DEFAULT]
        is_only = len(self.infos) == 1 and len(self.configurations) <= 1
        return next(iter(self.infos.values())) if is_only else Info()


def read_card(texts: Mapping[str, str]) -> Card:
    """Parse a card.

    Args:
        texts: name -> text of those of CARD_FILES that exist.

    Raises:
        InputError: a file cannot be parsed, or several configurations are the default one.
    """
    try:
        return _read_card(texts)
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # YAML and JSON can have any shape
        raise InputError(f"{' or '.join(texts)} is not a dataset card ({error!r}): correct it, or remove it") from error


def _read_card(texts: Mapping[str, str]) -> Card:
    # Collect the YAML of all files, then what dataset_infos.json and the YAML declare for each configuration.
    header: dict[str, Any] = {}
    for name, text in texts.items():
        if name != LEGACY:
            header |= _parse_yaml(name, _front_matter(text) if name == README else text)
    infos: dict[str, Info] = {}
    if LEGACY in texts:
        infos |= _legacy_infos(texts[LEGACY])
    infos |= {str(each.get("config_name", DEFAULT)): _info(each) for each in _dicts(header.get("dataset_info"))}

    # The files of each configuration, and the default one.
    declared = {str(each.get("config_name", DEFAULT)): each for each in _dicts(header.get("configs"))}
    configurations = {name: _configuration(each) for name, each in declared.items()}
    marked = [name for name, each in declared.items() if name == DEFAULT or each.get("default")]
    if len(marked) > 1:
        raise InputError(f"{README} marks several configurations as the default ({', '.join(marked)}): use --config")
    return Card(infos, configurations, marked[0] if marked else None, select_license(header))


def select_license(declared: Any) -> dict[str, Any]:
    """Return what a card's header, or a manifest, declares about the licence; empty if that is nothing.

    Values are text or lists of text. A link is only kept if it is an address: a file of the source is not copied.
    """
    found = declared if isinstance(declared, dict) else {}
    chosen = {key: found[key] for key in LICENSE_KEYS if found.get(key) and _is_text(found[key])}
    if not str(chosen.get("license_link", "http")).startswith("http"):
        del chosen["license_link"]
    return {} if chosen.get("license") in (UNKNOWN, [UNKNOWN]) else chosen


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _front_matter(text: str) -> str:
    """Return the YAML between the first two lines `---` of a Markdown file; empty if it does not start with one."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return ""
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    return "\n".join(lines[1:end]) if end else ""


def _parse_yaml(name: str, text: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only cards need it: adopting and training do not

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        cause = " ".join(str(error).split())
        raise InputError(f"{name}: its YAML header cannot be parsed ({cause}): correct it, or remove it") from error
    return found if isinstance(found, dict) else {}


def _dicts(found: Any) -> list[dict[str, Any]]:
    """Return the mappings in a value that may be a list or a single mapping."""
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _info(found: dict[str, Any]) -> Info:
    """Read an entry of `dataset_info` in YAML, where `features` and `splits` are lists of named entries."""
    features = {str(each["name"]): _yaml_feature(each) for each in _dicts(found.get("features")) if "name" in each}
    return Info(features, _num_rows(_dicts(found.get("splits"))))


def _yaml_feature(entry: dict[str, Any]) -> Feature:
    dtype = entry.get("dtype")
    if isinstance(dtype, dict) and isinstance(dtype.get("class_label"), dict):
        return Feature("label", _class_names(dtype["class_label"]))
    if isinstance(dtype, dict):
        dtype = next(iter(dtype), "struct")  # as {"image": {"decode": False}}
    if isinstance(dtype, str):
        return Feature(dtype)
    return Feature(next((key for key in entry if key not in ("name", "dtype")), "struct"))  # list, sequence, struct


def _class_names(declared: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a ClassLabel, which declares a list, a mapping from number to name, or only a count."""
    names = declared.get("names")
    if isinstance(names, dict):
        by_label = {int(label): str(name) for label, name in names.items()}
        if sorted(by_label) != list(range(len(by_label))):
            raise InputError(f"{README} names the classes {sorted(by_label)}: number them 0 to {len(by_label) - 1}")
        return tuple(by_label[label] for label in range(len(by_label)))
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    return tuple(str(label) for label in range(int(declared.get("num_classes") or 0)))


def _num_rows(splits: list[dict[str, Any]]) -> dict[str, int]:
    """Return {split: declared number of rows}, without entries that declare none."""
    return {
        str(each["name"]): each["num_examples"]
        for each in splits
        if "name" in each and isinstance(each.get("num_examples"), int) and each["num_examples"] > 0
    }


def _legacy_infos(text: str) -> dict[str, Info]:
    try:
        found = json.loads(text)
        infos = {name: info_from_json(each) for name, each in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{LEGACY} cannot be parsed ({error}): correct it, or remove it") from error
    return {DEFAULT: next(iter(infos.values()))} if len(infos) == 1 else infos


def info_from_json(found: Mapping[str, Any]) -> Info:
    """Read a `datasets.DatasetInfo` in JSON, as dataset_infos.json, dataset_info.json and parquet metadata have it.

    Raises:
        ValueError, TypeError, AttributeError: it has another shape.
    """
    splits = found.get("splits") or {}
    features = {str(name): _json_feature(each) for name, each in (found.get("features") or {}).items()}
    return Info(features, _num_rows([{"name": name, **each} for name, each in splits.items()]))


def _json_feature(found: Any) -> Feature:
    if not isinstance(found, dict):
        return Feature("list" if isinstance(found, list) else "struct")
    kind = found.get("_type")
    if kind == "ClassLabel":
        return Feature("label", _class_names(found))
    return Feature({"Image": "image", "Value": str(found.get("dtype"))}.get(str(kind), str(kind or "struct")))


def _configuration(entry: dict[str, Any]) -> Configuration:
    """Read an entry of `configs`; its `data_files` may be a path, a list of paths, a mapping or a list of mappings."""
    folder = str(entry.get("data_dir") or "").strip("/")
    declared = entry.get("data_files")
    if declared is None:
        return Configuration(None, folder)
    if isinstance(declared, list) and any(isinstance(each, dict) for each in declared):
        pairs = [(str(each.get("split")), each.get("path")) for each in _dicts(declared)]
    elif isinstance(declared, dict):
        pairs = [(str(split), path) for split, path in declared.items()]
    else:
        pairs = [("train", declared)]
    return Configuration({split: _patterns(path) for split, path in pairs}, folder)


def _patterns(found: Any) -> tuple[str, ...]:
    return tuple(str(each).removeprefix("./") for each in (found if isinstance(found, list) else [found]))
