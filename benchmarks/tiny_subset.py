"""Write a part of a Hugging Face dataset in parquet as a folder of images: the first images of the first classes."""

from collections import Counter
from pathlib import Path

from prep.errors import InputError

SPLITS = {"train": "train", "validation": "validation"}  # the beginning of the parquet files' names


def write_subset(source: Path, out: Path, num_classes: int, images_per_class: dict[str, int]) -> None:
    """Write OUT/SPLIT/LABEL/NUMBER.JPEG for the labels below `num_classes`, in the order of the files.

    Args:
        images_per_class: how many, by split.

    Raises:
        InputError: the source has fewer images of a class.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    for split, wanted in images_per_class.items():
        found: Counter[int] = Counter()
        for path in sorted(source.rglob(f"{SPLITS[split]}-*.parquet")):
            table = pq.read_table(path, columns=["image", "label"])
            for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
                if label < num_classes and found[label] < wanted:
                    folder = out / split / f"{label:03}"
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{found[label]:05}.JPEG").write_bytes(image["bytes"])
                    found[label] += 1
        missing = [label for label in range(num_classes) if found[label] < wanted]
        if missing:
            raise InputError(
                f"{source} must have {wanted} images of each of the first {num_classes} classes in {split}, "
                f"found {found[missing[0]]} of class {missing[0]}: give the folder of Tiny ImageNet in parquet"
            )
