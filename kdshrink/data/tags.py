"""Schemes of entity tags: detection over a whole data set, and conversion to and from IOB2."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from ..errors import DataError, short

OUTSIDE = "O"
_TAG = re.compile(r"([BILUESM])-(.+)", re.DOTALL)
_UNDERSCORED = re.compile(r"[BILUESM]_.+", re.DOTALL)
_BEGIN, _END = {"B", "S", "U"}, {"E", "L", "S", "U"}
_ENDS = {"BIOES": ("S", "E"), "BILOU": ("U", "L"), "BMES": ("S", "E")}
"""The prefixes of an entity of one word and of the last word of a longer one."""
_INSIDE = {"BIOES": "I", "BILOU": "I", "BMES": "M"}
_SCHEMES = (("IOB2", "BI"), ("BIOES", "BIES"), ("BILOU", "BILU"), ("BMES", "BMES"))


def _split(tag: str) -> tuple[str, str] | None:
    """The prefix and the entity type of a tag."""
    match = _TAG.fullmatch(tag)
    return (match[1], match[2]) if match else None


def find_scheme(
    tags: Collection[str],
    sentences: Callable[[], Iterable[Sequence[str]]],
    place: Callable[[str], str] = str,
) -> str | None:
    """The scheme of entity tags: IO, IOB1, IOB2, BIOES, BILOU or BMES; None for other tags.

    Args:
        tags: All tags of the data.
        sentences: Gives the tags of each sentence; called only to distinguish IOB1 from IOB2.
        place: Gives the position of a tag, for messages.

    Raises:
        DataError: Some tags are entity tags and some are not, or they mix schemes.
    """
    named = {tag for tag in tags if tag != OUTSIDE}
    parts = [_split(tag) for tag in named]
    if not named:
        return "IOB2"
    if not any(parts):
        if odd := sorted(tag for tag in named if _UNDERSCORED.fullmatch(tag)):
            raise DataError(
                f"{place(odd[0])}: {short(odd[0])!r} has an underscore after its prefix instead of a "
                "hyphen.\nCorrect it, or rename the tags with --label-map."
            )
        return "IO" if OUTSIDE in tags else None
    if not all(parts):
        odd = sorted(tag for tag in named if _split(tag) is None)
        raise DataError(
            f"{place(odd[0])}: {short(odd[0])!r} is not an entity tag, but others are, such as "
            f"{short(sorted(named - set(odd))[0])!r}.\nRename them to one form with --label-map."
        )
    prefixes = {part[0] for part in parts if part}
    for scheme, letters in _SCHEMES:
        if prefixes <= set(letters):
            if scheme == "IOB2" and "I" in prefixes and _is_iob1(sentences()):
                return "IOB1"
            return scheme
    raise DataError(
        f"{place(sorted(named)[0])}: the entity tags have the prefixes "
        f"{', '.join(sorted(prefixes))}, which no scheme combines.\nRename them to one scheme, such as IOB2, with --label-map."
    )


def _is_iob1(sentences: Iterable[Sequence[str]]) -> bool:
    """Whether B- begins only an entity right after another of its type, and I- all others."""
    begins_with_i = False
    for tags in sentences:
        before: str | None = None
        for tag in tags:
            prefix, kind = _split(tag) or ("", None)
            if prefix == "B" and before != kind:
                return False
            begins_with_i = begins_with_i or (prefix == "I" and before != kind)
            before = kind
    return begins_with_i


def to_iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """Convert the tags of a sentence from a scheme to IOB2."""
    if scheme == "IOB2":
        return list(tags)
    result = []
    before: tuple[str, str] | None = None
    for tag in tags:
        part = None if tag == OUTSIDE else ("I", tag) if scheme == "IO" else _split(tag)
        if part is None:
            result.append(OUTSIDE)
        else:
            ended = before is None or before[1] != part[1] or before[0] in _END
            begins = ended or part[0] in _BEGIN
            result.append(f"{'B' if begins else 'I'}-{part[1]}")
        before = part
    return result


def from_iob2(tags: Sequence[str], labels: Collection[str]) -> list[str]:
    """Convert the tags of a sentence from IOB2 to the scheme of a model's labels, the inverse of `to_iob2`.

    A model without B- for a type uses IOB1, in which I- begins an entity.
    """
    scheme = scheme_of_labels(labels)
    result = []
    for place, tag in enumerate(tags):
        part = _split(tag)
        if part is None:
            result.append(OUTSIDE)
            continue
        prefix, kind = part
        goes_on = place + 1 < len(tags) and tags[place + 1] == f"I-{kind}"
        if scheme == "IO":
            result.append(kind)
        elif scheme == "IOB2":
            before = _split(tags[place - 1]) if place else None
            touches = before is not None and before[1] == kind
            marked = f"B-{kind}" in labels and (touches or f"I-{kind}" not in labels)
            iob1 = not _has_all_begins(labels)
            result.append(f"{'B' if marked else 'I'}-{kind}" if iob1 and prefix == "B" else tag)
        else:
            single, last = _ENDS[str(scheme)]
            ends = {("B", False): single, ("I", False): last, ("I", True): _INSIDE[str(scheme)]}
            result.append(f"{ends.get((prefix, goes_on), 'B')}-{kind}")
    return result


def _has_all_begins(labels: Collection[str]) -> bool:
    """Whether each entity type has a B- label, so that the labels are IOB2."""
    return all(f"B-{kind}" in labels for kind in entity_types(labels, "IOB2"))


def entity_types(tags: Iterable[str], scheme: str) -> list[str]:
    """The entity types of tags in a scheme, sorted."""
    kinds = set()
    for tag in tags:
        if tag != OUTSIDE:
            part = _split(tag)
            kinds.add(tag if scheme == "IO" or part is None else part[1])
    return sorted(kinds)


def iob2_labels(tags: Iterable[str], scheme: str) -> set[str]:
    """All tags that `to_iob2` can make of these."""
    return {OUTSIDE, *(f"{p}-{kind}" for kind in entity_types(tags, scheme) for p in "BI")}


def are_entities(labels: Iterable[str]) -> bool:
    """Whether these are entity labels in IOB2, rather than other tags."""
    return all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in labels)


def scheme_of_labels(labels: Collection[str]) -> str | None:
    """The scheme of a model's entity labels; None for other labels.

    Labels of IOB1 count as IOB2, since predictions in both are read in the same way.
    """
    try:
        return find_scheme(labels, lambda: ())
    except DataError:
        return None
