"""Choose the columns of a table that hold the images and the labels, by their documented names and their types.

A flag decides; else a documented name; else the only column that is declared as the wanted type. Otherwise the run
stops and names the candidates. Integers under other names (`width`, `id`) are labels only if a flag says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from prep.card import Feature, info_from_json
from prep.errors import InputError, list_some
from prep.source import Reading

IMAGE_NAMES = ("image", "img")  # documented; the first one that exists is chosen
LABEL_NAMES = ("label", "labels", "fine_label")
MOST_TYPE_CHARACTERS = 40
IS_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
IS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
IS_LIST = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class Columns:
    """The names of the columns with the images and the labels."""

    image: str
    label: str
    class_names: tuple[str, ...] = ()  # empty if labels are bare integers
    other_images: tuple[str, ...] = ()  # other columns that could hold the images
    other_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The columns of one file."""

    url: str
    schema: pa.Schema
    features: Mapping[str, Feature]  # column -> type declared by the file, else by the card
    load: str  # Python expression for the commands of `advise`; it loads the source with `datasets` imported as `d`

    def describe_column(self, name: str) -> str:
        """Return a column's name and type, for example `label (ClassLabel)`."""
        declared = {"label": "ClassLabel", "image": "Image"}.get(self.features.get(name, Feature("")).kind)
        found = str(self.schema.field(name).type)
        short = found if len(found) <= MOST_TYPE_CHARACTERS else f"{found[: MOST_TYPE_CHARACTERS - 3]}..."
        return f"{name} ({declared or short})"

    def advise(self, change: str) -> str:
        """Return a command that changes the source and saves it, for the end of an error's line."""
        command = f"import datasets as d; s = {self.load}; s{change}.save_to_disk('DIR')"
        return f'`python -c "{command}"`, then --source DIR'


def declared_features(schema: pa.Schema, card: Mapping[str, Feature]) -> dict[str, Feature]:
    """Return the declared types of a file's columns, from the metadata that `datasets` writes and from the card.

    Raises:
        InputError: both name the classes of a column, and differ; the caller has to add the file's name.
    """
    own = _own_features(schema)
    features = {}
    for name in schema.names:
        one, other = own.get(name), card.get(name)
        if one and other and one.kind == other.kind == "label" and one.class_names != other.class_names:
            raise InputError(
                f"names the classes of {name} {list_some(one.class_names, 3)}, the card names them "
                f"{list_some(other.class_names, 3)}: correct one of them (in a copy, if the dataset is not yours)"
            )
        # The card adds types such as ClassLabel to columns that the file declares as plain values.
        is_plain = one is None or one.kind not in ("label", "image")
        if found := other if other and is_plain else one:
            features[name] = found
    return features


def _own_features(schema: pa.Schema) -> Mapping[str, Feature]:
    known = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return info_from_json(json.loads(known).get("info") or {}).features
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"has metadata of `datasets` that cannot be parsed ({error!r}): write it again") from error


def make_table(url: str, schema: pa.Schema, card: Mapping[str, Feature], load: str) -> Table:
    """Return one file's columns, with the types that it and the card declare."""
    try:
        return Table(url, schema, declared_features(schema, card), load)
    except InputError as error:
        raise InputError(f"{url} {error}") from error


def choose_columns(table: Table, wanted: Reading) -> Columns:
    """Choose the columns of one file.

    Raises:
        InputError: a column is absent or not usable, or there are several candidates.
    """
    names = table.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{table.url} has two columns named {twice[0]}: rename one of them")

    # Candidates: columns of bytes under a documented name, structs with bytes, and declared or documented integers.
    embedded = [name for name in names if _holds_images(table, name)]
    images = [name for name in embedded if not _is_one_of(IS_BINARY, table.schema.field(name).type)] + [
        name for name in IMAGE_NAMES if name in embedded
    ]
    integers = [name for name in names if pa.types.is_integer(table.schema.field(name).type)]
    labels = [name for name in integers if _is_declared(table, name, "label") or name in LABEL_NAMES]

    # Choose, then check the types, since a flag may name any column.
    image = wanted.image_column or _choose(table, "image", IMAGE_NAMES, list(dict.fromkeys(images)), embedded)
    label = wanted.label_column or _choose(table, "label", LABEL_NAMES, labels, integers)
    _check_image(table, image)
    _check_label(table, label)
    feature = table.features.get(label, Feature(""))
    return Columns(
        image,
        label,
        feature.class_names if feature.kind == "label" else (),
        tuple(name for name in dict.fromkeys(images) if name != image),
        tuple(name for name in labels if name != label),
    )


def _choose(table: Table, kind: str, documented: tuple[str, ...], likely: list[str], possible: list[str]) -> str:
    """Return the column with a documented name, or the only likely column with another name.

    Args:
        likely: columns of the right type under a documented name or with the right declaration.
        possible: columns of the right type, for advice.

    Raises:
        InputError: there is none, or several.
    """
    present = [name for name in documented if name in table.schema.names]
    others = [name for name in likely if name not in present[:1]]
    if present and (present[0] in likely or not others):
        return present[0]
    if not present and len(likely) == 1:
        return likely[0]
    flag = f"--{kind}-column"
    if present:
        raise InputError(
            f"{table.url} has {table.describe_column(present[0])}, which is not a column of {kind}s, and "
            f"{', '.join(map(table.describe_column, others))}: choose with {flag} {others[0]}"
        )
    if likely:
        raise InputError(
            f"{table.url} has several columns of {kind}s, {', '.join(map(table.describe_column, likely))}: "
            f"choose with {flag} {likely[0]}"
        )
    found = ", ".join(map(table.describe_column, table.schema.names)) or "none"
    hint = f"choose with {flag} {possible[0]}" if possible else f"name one with {flag}, or add it"
    raise InputError(
        f"{table.url} needs a column of {kind}s named {' or '.join(documented)}; its columns: {found}; {hint}"
    )


def _is_one_of(tests: tuple, found: pa.DataType) -> bool:
    return any(test(found) for test in tests)


def _is_declared(table: Table, name: str, kind: str) -> bool:
    return table.features.get(name, Feature("")).kind == kind


def _encoded_type(found: pa.DataType) -> pa.DataType:
    """Return the type of a struct's field "bytes" (`datasets.Image` has one); other types unchanged."""
    is_image = pa.types.is_struct(found) and found.get_field_index("bytes") >= 0
    return found.field("bytes").type if is_image else found


def _holds_images(table: Table, name: str) -> bool:
    """Check whether a column holds encoded bytes that are not declared as another type, such as audio."""
    kind = table.features.get(name, Feature("")).kind
    is_open = kind in ("", "image", "struct", "binary", "large_binary") or kind.startswith("fixed_size_binary")
    return is_open and _is_one_of(IS_BINARY, _encoded_type(table.schema.field(name).type))


def _check_exists(table: Table, name: str, kind: str) -> None:
    """Check that a table has a column; kind is "image" or "label".

    Raises:
        InputError: it does not.
    """
    if name in table.schema.names:
        return
    parent = name.partition(".")[0]
    nested = (
        f" ({name} is inside the column {parent}: make it a separate column)" if parent in table.schema.names else ""
    )
    found = ", ".join(map(table.describe_column, table.schema.names))
    raise InputError(f"{table.url} has no column {name}{nested}: choose another --{kind}-column of {found}")


def _check_image(table: Table, name: str) -> None:
    """Check that a column holds one encoded image per row.

    Raises:
        InputError: it does not.
    """
    _check_exists(table, name, "image")
    found = table.schema.field(name).type
    cast = f".cast_column({name!r}, d.Image())"
    if _holds_images(table, name):
        return
    wrong = f"{table.url}: column {table.describe_column(name)}"
    if _is_one_of(IS_TEXT, found) or (pa.types.is_struct(found) and found.get_field_index("path") >= 0):
        raise InputError(f"{wrong} holds paths, expected the images' bytes: embed them with {table.advise(cast)}")
    if _is_one_of(IS_LIST, found) and (_holds_bytes(found.value_type) or _is_one_of(IS_TEXT, found.value_type)):
        raise InputError(
            f"{wrong} holds several images per row, expected one: make a row of each, or choose --image-column"
        )
    raise InputError(
        f"{wrong} does not hold encoded images: choose another --image-column, or cast it to datasets.Image()"
    )


def _holds_bytes(found: pa.DataType) -> bool:
    return _is_one_of(IS_BINARY, _encoded_type(found))


def _check_label(table: Table, name: str) -> None:
    """Check that a column holds one integer per row.

    Raises:
        InputError: it does not.
    """
    _check_exists(table, name, "label")
    found = table.schema.field(name).type
    if pa.types.is_integer(found):
        return
    text = found.value_type if pa.types.is_dictionary(found) else found
    wrong = f"{table.url}: column {table.describe_column(name)} holds {{}}, expected ClassLabel or integers: {{}}"
    if _is_one_of(IS_TEXT, text):
        names = f"sorted(set().union(*s.unique({name!r}).values()))"
        change = table.advise(f".cast_column({name!r}, d.ClassLabel(names={names}))")
        raise InputError(wrong.format("text", f"make classes of it with {change}"))
    if pa.types.is_boolean(found) or pa.types.is_floating(found) or pa.types.is_dictionary(found):
        change = table.advise(f".cast_column({name!r}, d.Value('int64'))")
        raise InputError(wrong.format(str(found), f"cast it with {change}"))
    if _is_one_of(IS_LIST, found):
        raise InputError(wrong.format("several labels per row", "Penstock trains on one; choose --label-column"))
    raise InputError(wrong.format(f"{str(found)[:MOST_TYPE_CHARACTERS]}", "choose another --label-column"))
