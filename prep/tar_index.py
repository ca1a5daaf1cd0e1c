"""Index one adopted tar, in a worker: a pure function of its bytes, which are read once and never written.

Samples that cannot be used unchanged are left out of the sample index and listed in the ledger. JPEGs may have restart
markers that make parts of them readable (`prep/segments.py`): those of the usable images are listed, if there are any.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prep.dataset import FORMAT_WITH_SEGMENTS, REJECTED, Options, Shard
from prep.errors import InputError
from prep.files import sha256_of
from prep.images import StoredImage, UnusableImageError, as_jpeg
from prep.ledger import REPAIRED, entry
from prep.prepare import ShardContents
from prep.segments import encode_segments, find_segments, segments_name
from prep.store import WORK_FOLDER, LocalStore
from prep.tar import Component, TarSample, TarStream, dali_index, index_name, read_samples
from prep.tar_sample import ANY, Fields, choose_members, has_label_member, last_part, list_images

UNPACK = "unpack its images to FOLDER/train/CLASS/ and run prep/shard.py --source FOLDER"


@dataclass(frozen=True)
class TarJob:
    """A tar, by its absolute path, to be indexed for the split's folder `store`."""

    path: Path  # may be a link, as in the cache of the Hugging Face hub, where only the link has the real name
    size_bytes: int
    modified_ns: int
    decode_check: bool
    store: LocalStore
    fields: Fields = ANY

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def target(self) -> Path:
        return self.path.resolve()

    @property
    def index_name(self) -> str:
        return index_name(self.name)

    @property
    def segments_name(self) -> str:
        return segments_name(self.name)

    @property
    def found_segments_name(self) -> str:
        """The file for its segments until all tars are read, which shows whether the split needs such files."""
        return f"{WORK_FOLDER}/{self.segments_name}"

    @property
    def record_name(self) -> str:
        return f"{WORK_FOLDER}/{self.name}.json"

    @property
    def state(self) -> list[Any]:
        """The tar's path, size, time and flags that a record was made for; with any other state it is stale.

        The format version makes the records of versions stale that did not look for segments.
        """
        given = sorted(self.fields.to_reading().items())
        facts = [str(self.path), self.size_bytes, self.modified_ns, self.decode_check, *map(list, given)]
        return [*facts, FORMAT_WITH_SEGMENTS]


@dataclass
class Findings:
    """Facts about a tar besides its usable images."""

    # For each kind of member that was not used: the number of samples that have it, and the name of the first.
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)
    # For each key, the first member of its samples by (has an image, has a label): two halves were one sample.
    halves: dict[str, dict[tuple[bool, bool], str]] = field(default_factory=dict)
    num_images: int = 0  # usable or not
    num_labels: int = 0  # samples with a member for a label
    several: str = ""  # the reason why the first sample with several images was left out


def index_tar(job: TarJob) -> int:
    """Write a tar's index for DALI, the segments of its images and its record; return its number of samples.

    The rows in the record are the samples' numbers in the tar.

    Raises:
        InputError: the tar is cut off, damaged, compressed or empty, or does not hold WebDataset samples.
    """
    # Read every sample once.
    contents, findings = ShardContents(), Findings()
    with job.path.open("rb") as stream:
        file = TarStream(stream, str(job.path))
        for sample in read_samples(file, job.fields.is_wanted):
            _note_members(findings, sample, job)
            _add_sample(contents, findings, sample, job)
    _check_structure(contents, findings, job)

    # Write the index; a tar without a usable image gets none.
    segments = encode_segments(contents.segments) if any(contents.segments) else b""
    segments_sha256 = sha256_of(segments) if segments else ""
    shard = Shard(job.name, len(contents.segments), file.size_bytes, file.composite_sha256, segments_sha256)
    if segments:
        job.store.write(job.found_segments_name, segments)
    if shard.num_images:
        job.store.write(job.index_name, dali_index(contents.components))
    else:
        job.store.remove(job.index_name)

    # Write the record last: a tar that has one needs no second reading.
    num_samples = len(contents.components)
    facts = {"state": job.state, "num_samples": num_samples, "passed_over": findings.passed_over}
    job.store.write(job.record_name, json.dumps({**facts, **contents.to_record(shard)}).encode())
    return num_samples


def _note_members(findings: Findings, sample: TarSample, job: TarJob) -> None:
    """Count a sample's images and labels.

    Raises:
        InputError: the sample is a tar inside of the tar.
    """
    images, has_label = list_images(sample, job.fields), has_label_member(sample, job.fields)
    inner = [component.name for component in sample.components if last_part(component.extension) == "tar"]
    if inner and not images:
        raise InputError(
            f"{job.path} is a tar of tars ({inner[0]}, ...), like ILSVRC2012_img_train.tar: "
            f"unpack each to FOLDER/train/NAME/ and run prep/shard.py --source FOLDER"
        )
    kind = bool(images), has_label
    findings.halves.setdefault(sample.key, {}).setdefault(kind, sample.components[0].name)
    findings.num_images += len(images)
    findings.num_labels += has_label


def _check_structure(contents: ShardContents, findings: Findings, job: TarJob) -> None:
    """Check a tar as a whole.

    Raises:
        InputError: the members of a sample are not consecutive, or no image is usable for a common reason.
    """
    # One key with an image without a label, and with a label without an image: one sample in two places.
    for kinds in findings.halves.values():
        if (True, False) in kinds and (False, True) in kinds:
            names = f"{kinds[True, False]}, {kinds[False, True]}"
            raise InputError(
                f"{job.path} has the members of a sample in separate places ({names}), where no reader joins them: "
                "write it again in the order of the names, `tar -xf TAR -C FOLDER` and "
                "`tar --sort=name -cf TAR -C FOLDER .`"
            )

    # If no image is usable, say why for the tar, instead of once per sample.
    if contents.columns["key"]:
        return
    if findings.num_images and not findings.num_labels:
        raise InputError(
            f"{job.path} holds {findings.num_images:,} images and no labels, neither a .cls nor a .json "
            f"(give --label-ext if they are in other members): {UNPACK}"
        )
    if findings.several:
        raise InputError(f"{job.path} has no usable image: {findings.several}")


def read_record(job: TarJob) -> dict[str, Any] | None:
    """Return the record that `index_tar` wrote; None if it has not read the tar in its present state."""
    record = json.loads(job.store.read(job.record_name) or b"{}")
    return record if record.get("state") == job.state else None


def _add_sample(contents: ShardContents, findings: Findings, sample: TarSample, job: TarJob) -> None:
    """Add a sample to the shard's contents, or list it as rejected."""
    row = len(contents.components)
    contents.components.append(sample.index_entries())
    try:
        choice = choose_members(sample, job.fields)
        image = _check_image(choice.image, job.decode_check)
    except UnusableImageError as reason:
        _reject(contents, findings, sample, job, str(reason))
        return

    # Note the members that were not used, what was found in the image, and the row of the sample index.
    name = f"{job.name}/{sample.components[0].name}"
    for text in choice.passed_over:
        count, first = findings.passed_over.get(text, (0, name))
        findings.passed_over[text] = (count + 1, first)
    contents.ledger += [entry(row, name, event, reason) for event, reason in image.findings]
    contents.source_size_bytes += choice.image.size
    values = (sample.key, choice.image.offset, choice.image.size, choice.label, image.width, image.height)
    contents.add_row((*values, choice.image.sha256.hex(), row))
    contents.segments.append(find_segments(choice.image.data or b""))


def _reject(contents: ShardContents, findings: Findings, sample: TarSample, job: TarJob, reason: str) -> None:
    """Leave a sample out, with a line of the ledger for each of its images, so that the totals count all of them."""
    images = list_images(sample, job.fields)
    if len(images) > 1 and not findings.several:
        findings.several = reason
    row = len(contents.components) - 1
    for component in images or sample.components[:1]:
        contents.ledger.append(entry(row, f"{job.name}/{component.name}", REJECTED, reason))


def _check_image(component: Component, decode_check: bool) -> StoredImage:
    """Return an image that can be used unchanged.

    Raises:
        UnusableImageError: it is damaged, or would have to be converted.
    """
    assert component.data is not None
    image = as_jpeg(component.data, Options(decode_check=decode_check))
    repairs = [reason for event, reason in image.findings if event == REPAIRED]
    if repairs:
        kind = repairs[0].removesuffix(" made RGB JPEG")
        raise UnusableImageError(
            f"{kind} is not an RGB or grey JPEG: prep/shard.py converts it, from the original images"
        )
    return image
