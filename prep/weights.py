"""Find a network's tensors in the content of any checkpoint, and compare their names and shapes with the network's.

A checkpoint is nested dictionaries. Somewhere in it one dictionary holds the tensors, often under a common prefix such
as `module.` or `model.`. `find_weights` does not know the layouts of trainers: it takes the dictionary and the prefix
for which names and shapes are exactly the network's. Averaged weights come before others; two different sets of equal
rank are refused. torch is imported only when tensors are compared.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prep.errors import InputError, list_some
from prep.weight_files import read_content

if TYPE_CHECKING:
    import torch

COUNTER = "num_batches_tracked"  # of BatchNorm: files from before torch 0.4.1 have none, as some of torchvision's
Weights = dict[str, "torch.Tensor"]

# Ranks of candidates, best first: averaged weights; weights; those that a trainer saves besides averaged ones; sets
# whose key may say that they are something else (`loss_fn`, but also `best_loss_model`); an optimizer's, which are
# taken only if the user asks for them.
AVERAGED, ORDINARY, SUPERSEDED, OTHER, OPTIMIZER = range(5)
# Words in keys of checkpoints. The last key with one of them decides.
AVERAGED_WORDS = {"ema", "swa", "average", "averaged", "averaging", "avg", "polyak", "shadow"}
SUPERSEDED_WORDS = {"training", "current", "raw", "online", "non", "no", "without", "before", "backup"}
# Words in keys of dictionaries that have the names of parameters but hold something else; or possibly do.
OPTIMIZER_WORDS = {"optimizer", "optimizers", "optim", "grad", "grads", "gradients", "momentum", "moment"}
OTHER_WORDS = {"criterion", "loss", "fisher", "importance", "mask", "masks", "scheduler", "opt", "exp"}
MOMENT = {"exp", "avg"}  # both in one key: Adam's `exp_avg`, `exp_avg_sq`
# First parts of names of tensors that are not the network's: losses, metrics, and counters of averaging.
AUXILIARY = re.compile(r"(\w*_)?(loss|criterion|metric|metrics|acc|accuracy)(_\w*|\d*)|n_averaged|steps", re.IGNORECASE)
MAX_DEPTH = 8  # of nested dictionaries
SIMILAR = 0.5  # part of the network's tensors that a set must have to be mentioned although it does not fit


# Networks


@dataclass(frozen=True)
class Network:
    """The names and shapes of a network's tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    floating: frozenset[str]  # names of floating-point tensors
    classifier: frozenset[str] = frozenset()  # tensors whose first dimension may differ: the number of classes
    optional: frozenset[str] = frozenset()  # tensors that may be missing
    wrappers: frozenset[str] = field(default=frozenset(), compare=False)  # own parts of names that look like wrappers

    def fits(self, name: str, tensor: "torch.Tensor") -> bool:
        """Return True if a tensor can be the one of this name; a classifier's may have another number of classes."""
        shape, own = tuple(tensor.shape), self.shapes[name]
        is_same = shape[1:] == own[1:] and len(shape) == len(own) if name in self.classifier else shape == own
        return is_same and (tensor.is_floating_point() or name not in self.floating)


def describe_network(
    own: Mapping[str, "torch.Tensor"], classifier: Sequence[str] = (), optional: Sequence[str] = ()
) -> Network:
    """Return the names and shapes of a network.

    Args:
        own: its state_dict, on any device.
        classifier: names of layers whose number of classes may differ.
        optional: names of further tensors that may be missing; BatchNorm's counters always may.
    """
    starts = tuple(f"{name}." for name in classifier)
    return Network(
        shapes={name: tuple(tensor.shape) for name, tensor in own.items()},
        floating=frozenset(name for name, tensor in own.items() if tensor.is_floating_point()),
        classifier=frozenset(name for name in own if starts and name.startswith(starts)),
        optional=frozenset(optional) | {name for name in own if name.endswith(COUNTER)},
        wrappers=frozenset(part for name in own for part in name.split(".") if _is_wrapper(part)),
    )


def _is_wrapper(part: str) -> bool:
    """Return True for a part of a name that torch's wrappers insert, as `_orig_mod` or `_fsdp_wrapped_module`."""
    return part == "module" or (part.startswith("_") and len(part) > 1)


# Candidates


@dataclass(frozen=True)
class Candidate:
    """One set of tensors in a checkpoint: those of one dictionary whose names have one prefix."""

    keys: tuple[str, ...]  # of the dictionary in the checkpoint; empty for the checkpoint itself
    prefix: str
    names: Mapping[str, str]  # from the network's names to those in the dictionary
    weights: Weights  # by the network's names
    rank: int
    others: tuple[str, ...] = ()  # tensors outside the prefix that are not explained

    @property
    def label(self) -> str:
        """Name that a user gives to choose this set, e.g. `state_dict.model`."""
        return ".".join((*self.keys, self.prefix.rstrip("."))).strip(".") or "."

    def __str__(self) -> str:
        where = ".".join(self.keys) or "the tensors at the top"
        return f"{where}{f', prefix {self.prefix}' if self.prefix else ''}"


@dataclass(frozen=True)
class Found:
    """The weights that were chosen, and notes for the user about the choice, one sentence each."""

    weights: Weights
    label: str
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # tensors next to the chosen ones that could be a part of the network


def walk_dictionaries(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any], Mapping[Any, Any]]]:
    """Yield the keys of each nested dictionary, the dictionary, and the one around it. Lists count as dictionaries."""
    waiting: list[tuple[tuple[str, ...], Any, Mapping[Any, Any], frozenset[int]]] = [((), content, {}, frozenset())]
    while waiting:
        keys, value, parent, above = waiting.pop(0)
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping) or id(value) in above or len(keys) > MAX_DEPTH:
            continue
        yield keys, value, parent
        inner = above | {id(value)}
        waiting += [
            ((*keys, str(key)), each, value, inner)
            for key, each in value.items()
            if isinstance(each, Mapping | list | tuple)
        ]


def list_tensors(dictionary: Mapping[Any, Any]) -> Weights:
    """Return the entries of a dictionary that are tensors under a name."""
    import torch  # noqa: PLC0415

    return {key: value for key, value in dictionary.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def split_words(text: str) -> set[str]:
    """Return the words of a key in lower case: `modelEMA_v2` gives model, ema, v."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def rank_keys(keys: Sequence[str], prefix: str = "") -> int:
    """Return the rank that the words in the keys of a dictionary and in a prefix indicate."""
    parts = [*keys, *prefix.split(".")]
    words = [split_words(part) for part in reversed(parts)]
    if any(each & OPTIMIZER_WORDS or each >= MOMENT for each in words):
        return OPTIMIZER
    if any(each & OTHER_WORDS for each in words):
        return OTHER
    for each in words:
        if each & SUPERSEDED_WORDS:
            return SUPERSEDED
        if each & AVERAGED_WORDS:
            return AVERAGED
    return ORDINARY


def rank_candidate(
    content: Any, keys: tuple[str, ...], prefix: str, tensors: Weights, parent: Mapping[Any, Any]
) -> int:
    """Return the rank of a set of tensors, from its keys and from counters of updates next to it."""
    rank = rank_keys(keys, prefix)
    around = content if isinstance(content, Mapping) else {}
    # torch's AveragedModel has a counter next to its module. An average of nothing is the first, random network.
    counter: Any = tensors.get(f"{prefix.removesuffix('module.')}n_averaged") if prefix.endswith("module.") else None
    if counter is None and rank == AVERAGED:
        counter = parent.get("n_averaged")
    if rank < OTHER and counter is not None and (isinstance(counter, int) or hasattr(counter, "item")):
        return AVERAGED if int(counter) > 0 else SUPERSEDED
    # Lightning's WeightAveraging and MMEngine's EMAHook exchange the two sets before they save.
    if keys == ("state_dict",) and rank == ORDINARY and "averaging_state" in around:
        return AVERAGED
    if "message_hub" in around and "ema_state_dict" in around and keys[:1] in (("state_dict",), ("ema_state_dict",)):
        return AVERAGED if keys[0] == "state_dict" else SUPERSEDED
    return rank


def group_by_prefix(tensors: Weights, network: Network) -> dict[str, dict[str, str]]:
    """Return, for each prefix, the network's names that were found under it, with their full names.

    Names that wrappers inserted between the parts of a network's names are skipped. A prefix with two different
    tensors for one name is left out.
    """
    groups: dict[str, dict[str, str]] = {}
    refused: set[str] = set()
    for full in tensors:
        parts = full.split(".")
        kept = [
            place
            for place, part in enumerate(parts)
            if place == len(parts) - 1 or part in network.wrappers or not _is_wrapper(part)
        ]
        for number, start in enumerate(kept):
            name = ".".join(parts[place] for place in kept[number:])
            if name in network.shapes:
                prefix = "".join(f"{part}." for part in parts[:start])
                other = groups.setdefault(prefix, {}).setdefault(name, full)
                if other != full and not _is_equal(tensors[other], tensors[full]):
                    refused.add(prefix)
    return {prefix: names for prefix, names in groups.items() if prefix not in refused}


def _is_equal(first: "torch.Tensor", second: "torch.Tensor") -> bool:
    import torch  # noqa: PLC0415

    return first.shape == second.shape and first.dtype == second.dtype and bool(torch.equal(first, second))


def list_candidates(content: Any, network: Network) -> list[Candidate]:
    """Return all sets of tensors in a checkpoint that have exactly the network's names and shapes, best rank first."""
    found: list[Candidate] = []
    for keys, dictionary, parent in walk_dictionaries(content):
        tensors = list_tensors(dictionary)
        groups = group_by_prefix(tensors, network) if tensors else {}
        complete = {prefix: names for prefix, names in groups.items() if _is_complete(names, tensors, network)}
        explained = {full for names in complete.values() for full in names.values()}
        for prefix, names in complete.items():
            left = [
                full
                for full, tensor in tensors.items()
                if full not in explained and tensor.ndim and not _is_auxiliary(full, prefix)
            ]
            rank = rank_candidate(content, keys, prefix, tensors, parent)
            # Further tensors among the network's own mean another network; those outside the prefix are told apart.
            if not any(full.startswith(prefix) for full in left):
                weights = {name: tensors[full] for name, full in names.items()}
                found.append(Candidate(keys, prefix, names, weights, rank, tuple(left)))
    return sorted(found, key=lambda each: each.rank)


def _is_complete(names: Mapping[str, str], tensors: Weights, network: Network) -> bool:
    needed = network.shapes.keys() - network.optional
    counts = {tensors[names[name]].shape[:1] for name in network.classifier & names.keys()}
    return (
        needed <= names.keys()
        and all(network.fits(name, tensors[full]) for name, full in names.items())
        and len(counts) <= 1
    )


def _is_auxiliary(full: str, prefix: str) -> bool:
    return any(AUXILIARY.fullmatch(name.partition(".")[0]) for name in (full, full.removeprefix(prefix)))


# The choice


def find_weights(
    content: Any, network: Network, path: Path | str, wanted: str | None = None, flag: str = ""
) -> Found | None:
    """Return the weights of a network in the content of a checkpoint; None if no set of tensors fits.

    Args:
        wanted: label of the set to take, as errors and notes name it; None: the best one.
        flag: the caller's flag for `wanted`, which errors name; empty if it has none.

    Raises:
        InputError: several different sets of equal rank fit, or the wanted one does not exist.
    """
    candidates = list_candidates(content, network)
    # Moments of an optimizer can have all names and shapes of a network without buffers.
    if wanted is None and (not candidates or candidates[0].rank == OPTIMIZER):
        return None
    chosen = choose_candidate(candidates, path, wanted, flag)
    notes = describe_choice(content, network, chosen, candidates, path)
    return Found(chosen.weights, chosen.label, notes, chosen.others)


def choose_candidate(candidates: Sequence[Candidate], path: Path | str, wanted: str | None, flag: str) -> Candidate:
    """Return the wanted set of weights, or the one of the best rank.

    Raises:
        InputError: it does not exist, or several that differ are equally good.
    """
    best = [each for each in candidates if each.rank == candidates[0].rank]
    if wanted is not None:
        best = [each for each in candidates if each.label == wanted] or [
            each for each in candidates if ".".join(each.keys) == wanted
        ]
    if not best:
        labels = list_some([each.label for each in candidates], 6) or "none"
        raise InputError(f"{flag} {wanted}: expected one of the sets of weights of {path} that fit, found: {labels}")
    different = [best[0], *(each for each in best[1:] if not has_same_weights(each, best[0]))]
    if len(different) > 1:
        names = " and ".join(each.label for each in different[:4])
        hint = f"choose with {flag}, e.g. {flag} {different[0].label}" if flag else "save one of them alone"
        raise InputError(f"{path} holds different weights that fit equally, {names}: {hint}")
    return best[0]


def guess_weights(content: Any, path: Path) -> Weights:
    """Return the most likely weights in a checkpoint, of a network whose names of tensors are not known.

    These are the averaged ones among the large dictionaries of tensors, without wrappers and common parts of names.

    Raises:
        InputError: it holds no tensors under names, or several such dictionaries.
    """
    ranked = [(rank_keys(keys), keys, list_tensors(found)) for keys, found, _ in walk_dictionaries(content)]
    usable = [each for each in ranked if each[0] < OTHER and each[2]] or [
        each for each in ranked if each[0] == OTHER and each[2]
    ]
    if not usable:
        raise InputError(f"{path} holds no named tensors: save a network's state_dict()")
    largest = max(len(tensors) for _, _, tensors in usable)
    likely = [each for each in usable if len(each[2]) >= SIMILAR * largest]
    first = min(rank for rank, _, _ in likely)
    best = [(keys, tensors) for rank, keys, tensors in likely if rank == first]
    if len(best) > 1:
        names = " and ".join(".".join(keys) for keys, _ in best)
        raise InputError(f"{path} holds several sets of weights, {names}: save one of them alone")

    # Remove what wraps the names: torch's wrappers, and a first part that all names have.
    names = {name: [part for part in name.split(".") if not _is_wrapper(part)] for name in best[0][1]}
    while len(names) > 1 and len({parts[0] for parts in names.values()}) == 1:
        names = {name: parts[1:] for name, parts in names.items()}
        if not all(names.values()):
            return best[0][1]
    return {".".join(parts): best[0][1][name] for name, parts in names.items()}


def has_same_weights(first: Candidate, second: Candidate) -> bool:
    """Return True if two sets hold the same tensors. BatchNorm's counters may differ: evaluation does not use them."""
    names = {name for name in first.weights.keys() | second.weights.keys() if not name.endswith(COUNTER)}
    return names <= first.weights.keys() & second.weights.keys() and all(
        _is_equal(first.weights[name], second.weights[name]) for name in names
    )


def describe_choice(
    content: Any, network: Network, chosen: Candidate, candidates: Sequence[Candidate], path: Path | str
) -> tuple[str, ...]:
    """Return what is to be said about the chosen weights: which they are, and which others the file holds."""
    others = [each for each in candidates if each is not chosen and not has_same_weights(each, chosen)]
    plain = not (chosen.keys or chosen.prefix or others)
    also = f"; the file also holds {list_some([each.label for each in others])}, not used" if others else ""
    notes = [] if plain else [f"weights: {chosen} of {Path(path).name}{also}"]

    # Averaged weights that cannot be used: some of the network's tensors are missing, or all names are.
    if chosen.rank != AVERAGED:
        unused = list_unusable_averages(content, network)
        if unused:
            notes.append(f"averaged weights in {list_some(unused)} do not fit the network and were not used")
    return tuple(notes)


def list_unusable_averages(content: Any, network: Network) -> list[str]:
    """Return the keys of averaged weights that do not fit: without BatchNorm's statistics, or lists without names."""
    import torch  # noqa: PLC0415

    found = []
    num_needed = SIMILAR * sum(name in network.floating for name in network.shapes)
    for keys, dictionary, _ in walk_dictionaries(content):
        if rank_keys(keys) != AVERAGED:
            continue
        shapes = {tuple(value.shape) for value in dictionary.values() if isinstance(value, torch.Tensor)}
        similar = shapes & set(network.shapes.values())
        if len(similar) > 1 and sum(isinstance(value, torch.Tensor) for value in dictionary.values()) >= num_needed / 2:
            found.append(".".join(keys))
    return found


@dataclass(frozen=True)
class Closest:
    """The set of tensors in a checkpoint that is most like a network's."""

    where: str  # empty for all tensors at the top
    shapes: Mapping[str, tuple[int, ...]]  # of the network, with the set's number of classes
    part: Weights  # by the network's names; further ones by their own

    def describe(self) -> str:
        """Return how it differs from the network."""
        words = describe_shapes_misfit(self.shapes, self.part)
        return f"closest: {self.where}: {words}" if self.where else words

    def list_surplus(self) -> list[str]:
        """Return the tensors that the network does not have, if these are the only difference."""
        surplus = sorted(self.part.keys() - self.shapes.keys())
        rest = {name: tensor for name, tensor in self.part.items() if name in self.shapes}
        return [] if describe_shapes_misfit(self.shapes, rest) else surplus


def find_closest(content: Any, network: Network) -> Closest | None:
    """Return the set of tensors in a checkpoint that is most like the network's; None if none of its tensors fit."""
    most, best = 0, None
    for keys, dictionary, _ in walk_dictionaries(content):
        tensors = list_tensors(dictionary)
        groups = group_by_prefix(tensors, network) if tensors and rank_keys(keys) != OPTIMIZER else {}
        for prefix, names in groups.items():
            score = sum(network.fits(name, tensors[full]) for name, full in names.items())
            if score > most:
                part = {
                    full.removeprefix(prefix): tensor for full, tensor in tensors.items() if full.startswith(prefix)
                }
                part = {name: part.pop(full.removeprefix(prefix)) for name, full in names.items()} | part
                where = str(Candidate(keys, prefix, {}, {}, ORDINARY)) if keys or prefix else ""
                most, best = score, Closest(where, _with_classes_of(network, part), part)
    return best


def _with_classes_of(network: Network, part: Weights) -> dict[str, tuple[int, ...]]:
    """Return a network's shapes with the number of classes of a set of tensors, if its classifier's ones agree."""
    fitting = {name for name in network.classifier & part.keys() if network.fits(name, part[name])}
    if len({part[name].shape[0] for name in fitting}) != 1:
        return dict(network.shapes)
    return {name: tuple(part[name].shape) if name in fitting else shape for name, shape in network.shapes.items()}


def find_split_prefixes(content: Any, network: Network) -> tuple[str, ...]:
    """Return the two or three prefixes under which a checkpoint holds the parts of a network; empty if it does not.

    For example `backbone.` and `head.`, if `backbone.conv1.weight` and `head.fc.weight` are `conv1.weight` and
    `fc.weight` of the network.
    """
    needed = network.shapes.keys() - network.optional
    for keys, dictionary, _ in walk_dictionaries(content):
        tensors = list_tensors(dictionary)
        groups = group_by_prefix(tensors, network) if tensors and rank_keys(keys) != OPTIMIZER else {}
        left, prefixes = set(needed), []
        for prefix in sorted(groups, key=lambda each: -len(groups[each])):
            fitting = {name for name, full in groups[prefix].items() if network.fits(name, tensors[full])}
            if fitting & left:
                left -= fitting
                prefixes.append(prefix)
        if not left and 1 < len(prefixes) <= 3:
            return tuple(prefixes)
    return ()


# Comparison with a network


def read_weights(path: Path) -> Weights:
    """Return the tensors in a file that holds nothing else, by name: an export, a checkpoint of this project.

    Raises:
        InputError: it is not such a file, or reading it would execute code; no code is executed.
    """
    content = read_content(path)
    tensors = list_tensors(content) if isinstance(content, Mapping) else {}
    if not tensors or len(tensors) != len(content):
        raise InputError(f"{path} must hold nothing except named tensors: save a network's state_dict()")
    return tensors


def describe_misfit(own: Mapping[str, "torch.Tensor"], weights: Mapping[str, "torch.Tensor"]) -> str:
    """Return which tensors of `weights` do not fit a network's own ones; empty if all of them do.

    BatchNorm's counters may be missing: torch then keeps the network's.

    Returns:
        For example `missing: fc.weight; of another shape: conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)`.
    """
    return describe_shapes_misfit({name: tuple(tensor.shape) for name, tensor in own.items()}, weights)


def describe_shapes_misfit(own: Mapping[str, tuple[int, ...]], weights: Mapping[str, "torch.Tensor"]) -> str:
    """Return the same as `describe_misfit`, of a network's shapes."""
    faults = {
        "missing": sorted(name for name in own.keys() - weights.keys() if not name.endswith(COUNTER)),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(
            f"{name} {tuple(weights[name].shape)} for {shape}"
            for name, shape in own.items()
            if name in weights and tuple(weights[name].shape) != shape
        ),
    }
    return "; ".join(f"{what}: {list_some(names)}" for what, names in faults.items() if names)


def check_finite(weights: Mapping[str, "torch.Tensor"], path: Path | str) -> None:
    """Check that no tensor contains NaN or infinity, which would give predictions without an error.

    Raises:
        InputError: one does; it names `path`.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} contains NaN or infinity: use other weights")
