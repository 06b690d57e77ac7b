"""Which languages a model was trained on: seen and unseen ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..config.groups import DataOptions
from ..data.languages import UNDETERMINED, comparable
from ..data.load import TaskData
from ..data.registry import NAMED
from ..errors import DataError
from ..evaluation.groups import LanguageGroups
from ..models.source import Source

logger = logging.getLogger(__name__)


def language_groups(
    options: DataOptions, source: Source, data: TaskData, present: Sequence[str]
) -> tuple[LanguageGroups, str]:
    """Which of the present languages are seen and unseen, and where that is known from.

    That is --seen-languages, else the model's kdshrink.json, else the data set's list. Names given by the
    options are taken literally. The languages of a kdshrink.json are compared by
    language code, so that a model trained on `en_ewt` has seen `en_pud`. With --unseen-languages only the
    languages that it names are unseen, and none of them is seen.
    """
    trained = {comparable(name) for name in source.training_languages}
    named_unseen = options.unseen_languages is not None
    if options.seen_languages is not None:
        seen, seen_from = [name for name in present if name in data.seen], "--seen-languages"
    elif trained:
        if not named_unseen:
            present = _known(source, data, trained, present)
        seen = [name for name in present if comparable(name) in trained]
        seen_from = "kdshrink.json"
        if named_unseen and (both := [name for name in seen if name in data.unseen]):
            logger.warning(
                "%s was trained on %s, which --unseen-languages names",
                source.name,
                ", ".join(both),
            )
            seen = [name for name in seen if name not in both]
    else:
        seen = [name for name in present if name in data.seen]
        seen_from = "--unseen-languages" if named_unseen else "the data set's list"
        if not named_unseen:
            if data.name not in NAMED:
                raise DataError(
                    f"{source.name} does not say its training languages, and {data.name} has no lists.\n"
                    f"{_SAY_SEEN}"
                )
            note = NAMED[data.name].lists_note
            logger.info(
                "%s does not say its training languages; seen and unseen: %s", source.name, note
            )
    unseen = [
        name for name in present if name not in seen and (not named_unseen or name in data.unseen)
    ]
    return LanguageGroups(seen, unseen), seen_from


_SAY_SEEN = "Say which languages it was trained on with --seen-languages."


def _known(source: Source, data: TaskData, trained: set[str], present: Sequence[str]) -> list[str]:
    """The present languages for which it is known whether the model was trained on them.

    Raises:
        DataError: There are none.
    """
    if trained == {UNDETERMINED}:
        raise DataError(
            f"{source.name} was trained on data without a language, so no language is known to be "
            f"unseen.\n{_SAY_SEEN}"
        )
    if UNDETERMINED in trained:
        logger.warning("%s was also trained on data without a language", source.name)
    known = [name for name in present if name != UNDETERMINED]
    if not known:
        raise DataError(
            f"{data.name} does not say the language of its texts.\n"
            "Give it in a column (--language-column), or by one directory per language."
        )
    if len(known) < len(present):
        logger.warning("%s: texts without a language are left out", data.name)
    return known
