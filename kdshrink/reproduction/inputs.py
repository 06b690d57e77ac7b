"""The available models and data sets, as far as a plan needs to know them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.registry import NAMED
from ..errors import HubError, ModelError
from ..files import sha256_of
from ..models.architectures import find_family
from ..models.source import SAMPLES, find_model

logger = logging.getLogger(__name__)

_NOT_RESOLVED = "not resolved"
_MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "tokenizer*", "*.model", "vocab.*")


@dataclass(frozen=True)
class Model:
    """A pretrained encoder.

    Attributes:
        name: As the user gave it.
        label: Its name in tables: XLM-R or mDeBERTa, if it has one of the paper's architectures.
        paper: The paper's model that it is compared with, if any.
        argument: The argument of commands: with its commit, if it is on the Hub.
        identity: Its commit, or the SHA-256 of its files.
    """

    name: str
    label: str
    paper: str | None
    layers: int
    hidden_size: int
    argument: str | Path
    identity: str


@dataclass(frozen=True)
class Data:
    """A named data set, as far as it is available.

    Attributes:
        directory: Its directory; None for the Hub or the embedded sample.
        seen, unseen: The seen and unseen languages to use.
        trains: The languages with training data.
        digests: The commit, or the SHA-256 of the file, of each language and split.
    """

    name: str
    directory: Path | None
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    trains: frozenset[str]
    digests: Mapping[tuple[str, str], str]

    @property
    def english(self) -> tuple[str, ...]:
        return tuple(
            unit.name
            for unit in NAMED[self.name].units
            if unit.code == "en" and unit.name in self.seen and unit.name in self.trains
        )

    def ordered(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names in the data set's order."""
        return tuple(unit.name for unit in NAMED[self.name].units if unit.name in names)

    def spec(self, names: Sequence[str]) -> str:
        """The value of --languages for these: a group's name if they are all of it, else a list."""
        named = NAMED[self.name]
        every = {unit.name for unit in named.units}
        groups = {"all": every, "seen": set(named.seen), "unseen": set(named.unseen)}
        for group, members in groups.items():
            if set(names) == members:
                return group
        return ",".join(names)

    def facts(self, names: Sequence[str], splits: Sequence[str]) -> tuple[str, ...]:
        """Facts that identify the examples of these languages and splits, for the names of runs."""
        kept = sorted(
            f"{language}/{split} {digest}"
            for (language, split), digest in self.digests.items()
            if language in names and split in splits
        )
        digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()
        return (f"data {self.name} {digest}",)


def open_model(name: str, *, planning: bool = False) -> Model:
    """Describe a pretrained encoder for a plan.

    Args:
        planning: Whether one of the paper's models is described without the Hub if it cannot be reached.

    Raises:
        ModelError: It does not exist, or is not a model.
    """
    try:
        source = find_model(name, weights=False)
    except HubError:
        if not planning or name not in PAPER_MODELS.values():
            raise
        paper = next(label for label, hub_id in PAPER_MODELS.items() if hub_id == name)
        logger.warning("%s: the Hub cannot be reached, so its revision is unknown", name)
        return Model(name, paper, paper, 12, 768, name, _NOT_RESOLVED)
    layers, hidden = map(source.find_size, ("num_hidden_layers", "hidden_size"))
    if not layers or not hidden or layers % 2:
        raise ModelError(f"{name}: it has {layers} layers, which cannot be halved.")
    family = find_family(source.config)
    measured = family.paper_name if family is not None else None
    local = source.commit is None
    hub_id = name.partition("@")[0]
    return Model(
        name=name if name in SAMPLES or not local else source.directory.name,
        label=measured or source.directory.name,
        paper=measured,
        layers=layers,
        hidden_size=hidden,
        argument=name if name in SAMPLES else Path(name) if local else f"{hub_id}@{source.commit}",
        identity=source.commit or _fingerprint(source.directory),
    )


PAPER_MODELS = {"XLM-R": "xlm-roberta-base", "mDeBERTa": "microsoft/mdeberta-v3-base"}


def _fingerprint(folder: Path) -> str:
    """The SHA-256 over the content of a model directory's files."""
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    listing = "".join(f"{path.name} {sha256_of(path)}\n" for path in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def open_data(
    name: str,
    directory: Path | None,
    languages: tuple[Sequence[str], Sequence[str]] | None,
    *,
    planning: bool = False,
) -> Data:
    """Describe a data set for a plan.

    Args:
        directory: Its directory; None for the Hub.
        languages: The seen and the unseen languages to use; None for the data set's lists. Those that are
            not available are left out.
        planning: Whether the data set is described without the Hub if it cannot be reached.

    Raises:
        DataError: There is no such data.
        HubError: The Hub cannot be reached.
    """
    from ..data.load import find_shards
    from ..data.request import DataRequest

    named = NAMED[name]
    try:
        shards = find_shards(DataRequest(data=name, data_dir=directory))
        digests = {
            (str(shard.language), shard.split): " ".join(map(sha256_of, shard.paths))
            or shard.commit
            or _NOT_RESOLVED
            for shard in shards
        }
    except HubError:
        if not planning:
            raise
        logger.warning("%s: the Hub cannot be reached, so its revision is unknown", name)
        digests = {
            (unit.name, split): _NOT_RESOLVED
            for unit in named.units
            for split in (("train", "validation", "test") if unit.trains else ("test",))
        }
    seen, unseen = languages or (named.seen, named.unseen)
    tested = {language for language, split in digests if split == "test"}
    trains = frozenset(language for language, split in digests if split == "train")
    return Data(
        name=name,
        directory=directory,
        seen=tuple(unit.name for unit in named.units if unit.name in tested and unit.name in seen),
        unseen=tuple(
            unit.name for unit in named.units if unit.name in tested and unit.name in unseen
        ),
        trains=trains,
        digests=digests,
    )
