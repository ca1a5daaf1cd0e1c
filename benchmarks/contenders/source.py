"""`python source.py SOURCE NUM_IMAGES OUT`: write the source of a race from the first split of another source.

Its images are repeated under new names until there are NUM_IMAGES, as parquet in row groups of 100, which Hugging Face
uses for images. Prints facts about it as JSON.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from prep.resolve import open_source
from prep.source import Source

ROWS_PER_GROUP, ROWS_PER_FILE = 100, 1000


def main() -> None:
    """Write the parquet files to disk and print their facts."""
    source, num_images, out = open_source(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) / "data"
    out.mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(source.class_names))}
    )
    rows, image_bytes, paths = islice(repeat_rows(source), num_images), 0, []
    while chunk := list(islice(rows, ROWS_PER_FILE)):
        image_bytes += sum(len(row["image"]["bytes"]) for row in chunk)
        paths.append(out / f"train-{len(paths):05d}.parquet")
        pq.write_table(
            pa.Table.from_pylist(chunk, schema=features.arrow_schema), paths[-1], row_group_size=ROWS_PER_GROUP
        )
    os.sync()
    source_bytes = sum(path.stat().st_size for path in paths)
    facts = {"num_images": num_images, "image_bytes": image_bytes, "source_bytes": source_bytes}
    print(json.dumps(facts | {"name": source.origin.name}))


def repeat_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of the first split endlessly, with new names on each pass."""
    split = next(split for split, num_rows in source.num_rows.items() if num_rows)
    number = 0
    while True:
        for item in source.rows(split, 0, source.num_rows[split]):
            yield {"image": {"bytes": bytes(item.data), "path": f"{number:08d}_{item.name}"}, "label": item.label}
            number += 1


if __name__ == "__main__":
    main()
