"""Repair the faults that `prep/verify.py` found: write as little as possible again, from the source if necessary."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prep.checks import Layout, read_samples_table
from prep.dataset import MANIFEST, SAMPLES, Manifest, parse_manifest
from prep.errors import InputError, describe_os_error
from prep.faults import Fault, Remedy, is_hub_id
from prep.finalize import finalize_dataset, find_manifest
from prep.pools import Pool
from prep.prepare import check_folder, list_jobs, rewrite_shards
from prep.resolve import open_source
from prep.segments import encode_segments, find_segments, segments_name
from prep.shard_check import index_samples
from prep.source import Reading, Source
from prep.split_names import SPLIT_FOLDERS
from prep.store import WORK_FOLDER, LocalStore, Store, open_store
from prep.tar import TarStream, index_name, read_samples


@dataclass
class Repair:
    """One repair of a dataset or split, and why something could not be repaired.

    Attributes:
        source: what to write shards from; None for the source that the manifest names.
        complaints: the errors of repairs that failed.
    """

    layout: Layout
    source: str | None
    pool: Pool[Any]
    complaints: list[str] = field(default_factory=list)
    _sources: dict[tuple[str, Reading], Source] = field(default_factory=dict)

    def repair_faults(self, faults: list[Fault]) -> None:
        """Repair what can be repaired; errors become complaints."""
        # Each split: first what needs no source, then the shards.
        for folder, store in self.layout.splits.items():
            found = [fault for fault in faults if fault.folder == folder]
            self._attempt(lambda: _repair_without_source(store, found))  # noqa: B023 - called at once
            if any(fault.remedy in (Remedy.SHARD, Remedy.SPLIT) for fault in found):
                self._attempt(lambda: self._write_from_source(store, found))  # noqa: B023

        # The files next to the splits, unless a manifest is unusable.
        dataset = self.layout.dataset
        if dataset and not any(fault.remedy is Remedy.USER and not fault.shard for fault in faults):
            self._attempt(lambda: finalize_dataset(dataset))

    def list_rewritten(self, faults: list[Fault]) -> set[str]:
        """Return the shards to check again, as FOLDER/NAME.

        These are all that had a fault, and all of a split that was written again.
        """
        rewritten = {fault.folder for fault in faults if fault.remedy is Remedy.SPLIT}
        stores = {folder: store for folder, store in self.layout.splits.items() if folder in rewritten}
        names = {f"{folder}/{shard.name}" for folder, store in stores.items() for shard in _read_manifest(store).shards}
        return names | {f"{fault.folder}/{fault.shard}" for fault in faults}

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except InputError as error:
            self.complaints.append(str(error))
        except OSError as error:
            self.complaints.append(describe_os_error(error))

    def _write_from_source(self, store: Store, faults: list[Fault]) -> None:
        manifest = _read_manifest(store)
        assert manifest.options is not None
        source = self._open_source(store, manifest)
        check_folder(source, manifest.split, store, manifest.options)
        names = {fault.shard for fault in faults if fault.remedy is Remedy.SHARD}
        if any(fault.remedy is Remedy.SPLIT for fault in faults):
            names = {job.name for job in list_jobs(source, manifest.split, store, manifest.options)}
        rewrite_shards(source, manifest, self._find_out(store, manifest), names, self.pool)

    def _open_source(self, store: Store, manifest: Manifest) -> Source:
        name = self.source or manifest.source.name
        if not self.source and not is_hub_id(name):
            raise InputError(f"{store} was prepared from a folder {name}: give its path with --source")
        reading = self._restore_reading(store, manifest)
        if (name, reading) not in self._sources:
            self._sources[name, reading] = open_source(name, reading)
        return self._sources[name, reading]

    def _restore_reading(self, store: Store, manifest: Manifest) -> Reading:
        """Return how to read the source again: as in the split's manifest, with the --split-map of all splits.

        A source whose splits were named with --split-map also has splits next to this one. Without their names it may
        be unclear which split is which.
        """
        # Collect the pairs of --split-map from this split and those next to it with the same source.
        reading = Reading.from_manifest(manifest.reading)
        dataset = self.layout.dataset or self._find_out(store, manifest)
        neighbours = [found for name in dataset.names() if (found := _find_sound_manifest(dataset.child(name)))]
        pairs = [
            pair
            for each in (manifest, *neighbours)
            if each.source.name == manifest.source.name
            for pair in Reading.from_manifest(each.reading).split_map
        ]
        # An image folder's manifest lists the documented names even if no flag was given: then give none.
        is_folder = reading.image_column is None
        if is_folder and all(name != split and SPLIT_FOLDERS.get(name) == split for name, split in pairs):
            pairs = []
        return replace(reading, split_map=tuple(dict.fromkeys(pairs)))

    def _find_out(self, store: Store, manifest: Manifest) -> Store:
        """Return the folder above the split's, which must still have the name of the split.

        Raises:
            InputError: the split's folder was renamed.
        """
        parent, _, folder = str(store if "://" in str(store) else Path(str(store)).absolute()).rpartition("/")
        if folder != manifest.split:
            raise InputError(f"{store} was prepared as {manifest.split}: give the folder that name to repair it")
        if self.layout.dataset:
            return self.layout.dataset
        return open_store(parent) if "://" in parent else LocalStore(Path(parent or "/"))


def _read_manifest(store: Store) -> Manifest:
    return parse_manifest(store.read(MANIFEST) or b"", f"{store}/{MANIFEST}")


def _find_sound_manifest(store: Store) -> Manifest | None:
    """Return the manifest of a folder next to a split; None if it has none, or if it is damaged."""
    try:
        return find_manifest(store)
    except (InputError, OSError):
        return None


def _repair_without_source(store: Store, faults: list[Fault]) -> None:
    """Make the repairs that do not need the source."""
    for fault in faults:
        if fault.remedy is Remedy.CLEAN:
            with store.lock():
                store.remove(WORK_FOLDER)
        elif fault.remedy is Remedy.INDEX:
            _write_index(store, fault.shard)
    if names := [fault.shard for fault in faults if fault.remedy is Remedy.SEGMENTS]:
        _write_segments(store, names)


def _write_index(store: Store, name: str) -> None:
    """Write DALI's index again from its tar, which is undamaged."""
    with store.open(name) as file:
        content = index_samples(read_samples(TarStream(file, f"{store}/{name}")))
    store.write(index_name(name), content)


def _write_segments(store: Store, names: list[str]) -> None:
    """Write the segments of some shards again from their tars, which are undamaged, as is the sample index."""
    # The sample index of the split: 110 MB for ImageNet.
    shards, table = _read_manifest(store).shards, read_samples_table(store.read(SAMPLES) or b"")
    assert table is not None
    start = 0
    for shard in shards:
        images = table.slice(start, shard.num_images).select(["offset", "size"])
        start += shard.num_images
        if shard.name not in names:
            continue

        # The segments of each image.
        found = []
        with store.open(shard.name) as file:
            for image in images.to_pylist():
                file.seek(image["offset"])
                found.append(find_segments(file.read(image["size"])))
        store.write(segments_name(shard.name), encode_segments(found))
