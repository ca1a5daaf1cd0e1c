"""Match the classes of labelled pictures with the outputs of a model, and decide by measured accuracy where needed.

A source has C classes, the model K outputs. A `Candidate` is one way to match them: by name, by position (class i is
output i, as torchvision's ImageFolder labels it), or by number (the class named 10 is output 10, as in ImageNet-V2).
If the names decide, that candidate is used. Otherwise the model predicts a sample once, and the candidate whose
accuracy is significantly higher is used. Without such a candidate, the command stops with an error.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prep.errors import InputError, list_some
from serve.accuracy_check import Count, describe_accuracy
from serve.artifact import Served
from serve.class_names import (
    NUM_IMAGENET,
    Match,
    are_imagenet,
    list_imagenet_wnids,
    look_up_words,
    simplify,
    simplify_first,
)
from serve.pictures import Encoded, Source
from serve.predict import choose_rows, predict_rows

SAMPLE = 512  # images on which the candidates are compared


@dataclass(frozen=True)
class Sample:
    """The images on which the candidates are compared, and how they are predicted."""

    seed: int = 0
    limit: int | None = None  # at most this many images; None: 512
    workers: int | None = None  # threads that decode; None: one per CPU
    show_progress: bool = False

    @property
    def num_images(self) -> int:
        """The largest number of images."""
        return SAMPLE if self.limit is None else min(SAMPLE, self.limit)


DEFAULT_SAMPLE = Sample()


@dataclass(frozen=True)
class Candidate:
    """One way to match the classes of a source with the outputs of a model."""

    kind: Match
    outputs: Mapping[int, int]  # class of the source -> output; classes without an output are left out
    class_names: tuple[str, ...]  # of all K outputs, in words
    assumption: str  # what it assumes, for a note
    is_certain: bool = False  # the names decide


# Candidates


def find_candidates(
    source: Source, words: Mapping[str, str], num_outputs: int, class_names: Sequence[str] | None
) -> list[Candidate]:
    """Return all ways to match a source's classes with a model's outputs, the most trusted first.

    Args:
        source: its class names are those of the folders or of the manifest, not yet in words.
        words: WordNet number -> name, from lists that belong to the data.
        class_names: the model's, in the order of its outputs; None if unknown.
    """
    found = (
        _match_names(source, words, num_outputs, class_names),
        _match_numbers(source, words, num_outputs, class_names),
        _match_positions(source, words, num_outputs, class_names),
    )
    return [each for each in found if each is not None]


def _match_names(
    source: Source, words: Mapping[str, str], num_outputs: int, class_names: Sequence[str] | None
) -> Candidate | None:
    own, known = source.class_names, class_names
    if known is None:
        if num_outputs != NUM_IMAGENET:
            return None
        known = list_imagenet_wnids()

    # Equal lists need no search, and may contain a name twice (ImageNet has two cranes).
    own_words = [{name, look_up_words(name), words.get(name, name)} for name in own]
    if len(own) == num_outputs and all(name in each for name, each in zip(known, own_words, strict=True)):
        outputs = {label: label for label in range(num_outputs)}
    else:
        outputs = find_equal_names(own_words, _list_aliases(known))
    shown = tuple(words.get(name, look_up_words(name)) for name in known)
    if class_names is None:
        assumption = "the outputs are taken to be in the order of ImageNet's classes (name)"
        return Candidate("name", outputs, shown, assumption) if len(outputs) == len(own) else None
    if not outputs:
        return None
    is_certain = len(outputs) == len(own) or len(outputs) == num_outputs
    return Candidate("name", outputs, shown, "classes have the model's names (name)", is_certain)


def _list_aliases(class_names: Sequence[str]) -> list[set[str]]:
    """Return the names of each output: its own and its words; of ImageNet's classes also the WordNet number."""
    aliases = [{name, look_up_words(name)} for name in class_names]
    if are_imagenet(class_names):
        for each, wnid in zip(aliases, list_imagenet_wnids(), strict=True):
            each.add(wnid)
    return aliases


def find_equal_names(own: Sequence[set[str]], known: Sequence[set[str]]) -> dict[int, int]:
    """Return index in `own` -> index in `known` for each pair that shares a name which no other entry has.

    Names are compared exactly; the rest without regard to case and underscores; the rest by the first synonym. An entry
    whose names lead to several others stays without a pair.
    """
    pairs: dict[int, int] = {}
    for change in (str, simplify, simplify_first):
        taken = set(pairs.values())
        ours = _index_names({i: {change(name) for name in each} for i, each in enumerate(own) if i not in pairs})
        theirs = _index_names({k: {change(name) for name in each} for k, each in enumerate(known) if k not in taken})
        # Keep names with one entry on each side, and pairs whose names agree.
        shared = {name for name in ours.keys() & theirs.keys() if len(ours[name]) == len(theirs[name]) == 1}
        edges = {(min(ours[name]), min(theirs[name])) for name in shared}
        from_own, from_known = Counter(i for i, _ in edges), Counter(k for _, k in edges)
        pairs |= {i: k for i, k in edges if from_own[i] == from_known[k] == 1}
    return pairs


def _index_names(names: Mapping[int, set[str]]) -> dict[str, set[int]]:
    places: dict[str, set[int]] = {}
    for index, each in names.items():
        for name in each:
            places.setdefault(name, set()).add(index)
    return places


def _match_numbers(
    source: Source, words: Mapping[str, str], num_outputs: int, class_names: Sequence[str] | None
) -> Candidate | None:
    """Return the candidate in which a class's name is the number of its output, counted from 0, or from 1 if 1 to C."""
    if not all(name.isascii() and name.isdecimal() for name in source.class_names):
        return None
    numbers = [int(name) for name in source.class_names]
    start = 1 if sorted(numbers) == list(range(1, len(numbers) + 1)) else 0
    outputs = {index: number - start for index, number in enumerate(numbers)}
    if len(set(numbers)) != len(numbers) or max(numbers) - start >= num_outputs:
        return None
    formula = "output n - 1" if start else "output n"
    names = name_outputs(source, words, outputs, num_outputs, class_names)
    return Candidate("number", outputs, names, f"the class named n is {formula} (number)")


def _match_positions(
    source: Source, words: Mapping[str, str], num_outputs: int, class_names: Sequence[str] | None
) -> Candidate | None:
    num_own = len(source.class_names)
    if num_own > num_outputs or (num_own == 1 and num_outputs > 1):
        return None
    outputs = {index: index for index in range(num_own)}
    names = name_outputs(source, words, outputs, num_outputs, class_names)
    return Candidate("position", outputs, names, "class i is output i (position)")


def name_outputs(
    source: Source,
    words: Mapping[str, str],
    outputs: Mapping[int, int],
    num_outputs: int,
    class_names: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return names in words for all outputs: the model's, otherwise those of the matched classes and `output 534`."""
    if class_names is not None:
        return tuple(words.get(name, look_up_words(name)) for name in class_names)
    names = [f"output {number}" for number in range(num_outputs)]
    for index, output in outputs.items():
        name = source.class_names[index]
        names[output] = words.get(name, look_up_words(name))
    return tuple(names)


# The choice


def choose_by_names(source: Source, candidates: Sequence[Candidate], match: Match | None) -> list[Candidate]:
    """Return the candidates that remain: one if the flag or the names decide, otherwise those to be measured.

    Raises:
        InputError: no candidate is left, or the flag asks for another one.
    """
    if match is not None:
        wanted = [each for each in candidates if each.kind == match]
        if not wanted:
            possible = " or ".join(f"--match {each.kind}" for each in candidates) or "other images"
            raise InputError(f"{source.name} cannot be matched with the model by {match}: use {possible}")
        return wanted
    certain = [each for each in candidates if each.is_certain]
    if certain:
        return certain[:1]
    # A candidate that is a part of another one says the same.
    left = list(candidates)
    for each in candidates:
        if any(other is not each and each.outputs.items() <= other.outputs.items() for other in left):
            left.remove(each)
    return left


def refuse_classes(source: Source, num_outputs: int) -> InputError:
    """Return the error for a source whose classes cannot be the model's."""
    return InputError(
        f"{source.name} has {len(source.class_names):,} classes and the model {num_outputs:,}: "
        "give images of the model's classes"
    )


def refuse_undecided(source: Source, candidates: Sequence[Candidate], figures: str = "") -> InputError:
    """Return the error for candidates between which nothing decides; `figures` is what was measured."""
    ways = " or ".join(f"--match {each.kind} ({each.assumption})" for each in candidates)
    measured = f", and their accuracy does not decide: {figures}" if figures else ""
    return InputError(
        f"the {len(source.class_names):,} classes of {source.name} can be matched with the model's "
        f"{len(candidates[0].class_names):,} outputs in several ways{measured}: choose {ways}"
    )


def choose_matching(
    served: Served,
    source: Source,
    candidates: Sequence[Candidate],
    match: Match | None = None,
    sample: Sample = DEFAULT_SAMPLE,
) -> Source:
    """Return the source with the model's labels; measure a sample of at most 512 images if the names do not decide.

    Raises:
        InputError: no candidate fits, or none has an accuracy that is significantly higher than chance and than the
            others' (99% intervals that do not overlap).
    """
    left = choose_by_names(source, candidates, match)
    if not left:
        raise refuse_classes(source, served.num_classes)
    if len(left) == 1:
        return apply_candidate(source, left[0])

    # Predict the sample once, and count the hits under each candidate.
    guesses = _guess_classes(served, source, sample)
    counts = [_count_under(each, guesses) for each in left]
    figures = [f"by {each.kind} top-1 {describe_accuracy(count)}" for each, count in zip(left, counts, strict=True)]
    best = max(range(len(left)), key=lambda index: counts[index].interval()[0])
    low, _ = counts[best].interval()
    rivals = [count.interval()[1] for index, count in enumerate(counts) if index != best]
    if low <= max(*rivals, 1 / source.num_present):
        raise refuse_undecided(source, left, "; ".join(figures))
    others = "; ".join(figure for index, figure in enumerate(figures) if index != best)
    return apply_candidate(source, left[best], f": top-1 {describe_accuracy(counts[best])}; {others}")


def _guess_classes(served: Served, source: Source, sample: Sample) -> list[tuple[int, int]]:
    """Return (class in the source, predicted output) of each image; -1 for one that cannot be decoded."""
    classes: dict[int, int] = {}

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for each in source.read(wanted):
            classes[each.row] = each.label
            yield replace(each, label=0)  # the model may have fewer outputs than the source has classes

    predictions = predict_rows(
        served,
        replace(source, read=read),
        choose_rows(source.num_images, sample.num_images, sample.seed),
        workers=sample.workers,
        show_progress=sample.show_progress,
        label="matching classes",
    )
    return [(classes[each.row], each.guess) for each in predictions]


def _count_under(candidate: Candidate, guesses: Sequence[tuple[int, int]]) -> Count:
    judged = [(candidate.outputs[own], guess) for own, guess in guesses if own in candidate.outputs]
    # Without an image of its classes a candidate cannot win: count one miss.
    return Count(sum(output == guess for output, guess in judged), max(1, len(judged)))


def apply_candidate(source: Source, candidate: Candidate, measured: str = "") -> Source:
    """Return the source with the candidate's labels and names, and notes on what was assumed and left out.

    Args:
        measured: the end of the note, if the accuracy decided.
    """
    outputs, num_outputs = candidate.outputs, len(candidate.class_names)
    notes = []
    if not candidate.is_certain:
        sizes = f"{len(source.class_names):,} classes, {num_outputs:,} outputs"
        notes.append(f"{sizes}: {candidate.assumption}{measured}")
    unknown = [name for index, name in enumerate(source.class_names) if index not in outputs]
    if unknown:
        notes.append(f"{len(unknown):,} classes that the model does not have are left out: {list_some(unknown)}")
    classes = range(len(source.class_names)) if source.present is None else source.present
    present = frozenset(outputs[index] for index in classes if index in outputs)
    if len(present) < num_outputs:
        notes.append(f"the images show {len(present):,} of the model's {num_outputs:,} classes")

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for each in source.read(wanted):
            if each.label in outputs:
                yield replace(each, label=outputs[each.label])

    return replace(source, class_names=candidate.class_names, read=read, notes=(*source.notes, *notes), present=present)
