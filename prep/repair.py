"""Mending what `prep/verify.py` found: the least that is enough is written anew, from the source if need be."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prep.checks import Layout
from prep.closing import close_dataset, find_manifest
from prep.dataset import MANIFEST, Manifest, parse_manifest
from prep.errors import InputError, describe_os_error
from prep.faults import Fault, Remedy, is_hub_id
from prep.folder_names import SPLIT_FOLDERS
from prep.pools import Pool
from prep.prepare import check_folder, list_jobs, rewrite_shards
from prep.resolve import open_source
from prep.shard_check import index_samples
from prep.source import Reading, Source
from prep.store import WORK_FOLDER, LocalStore, Store, open_store
from prep.tar import index_name
from prep.tar_reader import TarStream, read_samples


@dataclass
class Repair:
    """One repair: where, what from (None: from where the manifest says), by whom; and why something was not mended."""

    layout: Layout
    source: str | None
    pool: Pool[Any]
    complaints: list[str] = field(default_factory=list)
    _sources: dict[tuple[str, Reading], Source] = field(default_factory=dict)

    def run(self, faults: list[Fault]) -> None:
        """Mend what can be mended."""
        for folder, store in self.layout.splits.items():
            found = [fault for fault in faults if fault.folder == folder]
            self._attempt(lambda: _mend_in_place(store, found))  # noqa: B023 - called at once
            if any(fault.remedy in (Remedy.SHARD, Remedy.SPLIT) for fault in found):
                self._attempt(lambda: self._write_from_source(store, found))  # noqa: B023
        dataset = self.layout.dataset
        if dataset and not any(fault.remedy is Remedy.USER and not fault.shard for fault in faults):
            self._attempt(lambda: close_dataset(dataset))

    def written(self, faults: list[Fault]) -> set[str]:
        """The shards to look at again, as FOLDER/NAME: every one with a fault, and all of a split written anew."""
        anew = {fault.folder for fault in faults if fault.remedy is Remedy.SPLIT}
        stores = {folder: store for folder, store in self.layout.splits.items() if folder in anew}
        names = {f"{folder}/{shard.name}" for folder, store in stores.items() for shard in _manifest(store).shards}
        return names | {f"{fault.folder}/{fault.shard}" for fault in faults}

    def _attempt(self, mend: Callable[[], object]) -> None:
        try:
            mend()
        except InputError as error:
            self.complaints.append(str(error))
        except OSError as error:
            self.complaints.append(describe_os_error(error))

    def _write_from_source(self, store: Store, faults: list[Fault]) -> None:
        manifest = _manifest(store)
        assert manifest.options is not None
        source = self._open_source(store, manifest)
        check_folder(source, manifest.split, store, manifest.options)
        names = {fault.shard for fault in faults if fault.remedy is Remedy.SHARD}
        if any(fault.remedy is Remedy.SPLIT for fault in faults):
            names = {job.name for job in list_jobs(source, manifest.split, store, manifest.options)}
        rewrite_shards(source, manifest, self._out(store, manifest), names, self.pool)

    def _open_source(self, store: Store, manifest: Manifest) -> Source:
        name = self.source or manifest.source.name
        if not self.source and not is_hub_id(name):
            raise InputError(f"{store} was prepared from a folder {name}: say where it is with --source")
        wanted = self._read_wishes(store, manifest)
        if (name, wanted) not in self._sources:
            self._sources[name, wanted] = open_source(name, wanted)
        return self._sources[name, wanted]

    def _read_wishes(self, store: Store, manifest: Manifest) -> Reading:
        """How to read the source again: as the split's manifest says, with the names of all splits beside it.

        A source whose splits were named with --split-map has others than this one, and may be unclear without them.
        """
        wanted = Reading.from_manifest(manifest.reading)
        dataset = self.layout.dataset or self._out(store, manifest)
        beside = [found for name in dataset.names() if (found := _find_sound_manifest(dataset.child(name)))]
        pairs = [
            pair
            for each in (manifest, *beside)
            if each.source.name == manifest.source.name
            for pair in Reading.from_manifest(each.reading).split_map
        ]
        is_folder = wanted.image_column is None  # whose documented names a manifest has though no flag was given
        if is_folder and all(name != split and SPLIT_FOLDERS.get(name) == split for name, split in pairs):
            pairs = []
        return replace(wanted, split_map=tuple(dict.fromkeys(pairs)))

    def _out(self, store: Store, manifest: Manifest) -> Store:
        """The folder that the split's is in, where the split goes by the name it was prepared under."""
        parent, _, folder = str(store if "://" in str(store) else Path(str(store)).absolute()).rpartition("/")
        if folder != manifest.split:
            raise InputError(f"{store} was prepared as {manifest.split}: give the folder that name to repair it")
        if self.layout.dataset:
            return self.layout.dataset
        return open_store(parent) if "://" in parent else LocalStore(Path(parent or "/"))


def _manifest(store: Store) -> Manifest:
    return parse_manifest(store.read(MANIFEST) or b"", f"{store}/{MANIFEST}")


def _find_sound_manifest(store: Store) -> Manifest | None:
    """The manifest of a folder beside a split; None where it is no split, or damaged, which is its own fault."""
    try:
        return find_manifest(store)
    except (InputError, OSError):
        return None


def _mend_in_place(store: Store, faults: list[Fault]) -> None:
    """What needs no source."""
    for fault in faults:
        if fault.remedy is Remedy.CLEAN:
            with store.lock():
                store.remove(WORK_FOLDER)
        elif fault.remedy is Remedy.INDEX:
            _write_index(store, fault.shard)


def _write_index(store: Store, name: str) -> None:
    """DALI's index anew from its tar, which is whole."""
    with store.open(name) as file:
        content = index_samples(read_samples(TarStream(file, f"{store}/{name}")))
    store.write(index_name(name), content)
