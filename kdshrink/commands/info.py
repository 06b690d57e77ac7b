"""`kdshrink info`: describe a model without loading it: its origin, sizes and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config.commands import InfoConfig
from ..errors import HubError, ModelError
from ..hub.errors import reason
from ..models.headers import read_header
from ..models.source import Source, find_model
from ..progress import Progress
from ..publishing.card import hub_base
from ..publishing.record import licences
from ..record import Results
from .options import access_of

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Bytes per element of each safetensors type; the types that are not listed take one."""
_NO_PARAMETER = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class ModelInfo:
    """What a model's config, its record and the headers of its weights say.

    Attributes:
        revision: The commit, if it was read from the Hub.
        hub_base: The nearest model on the Hub that it descends from.
        layer_map, layers_of: The layers of its teacher or source that its own layers correspond to, 1-based,
            and the number of layers of that model.
        parameters, bytes: None without safetensors, since a pickle would have to be loaded.
        score, split: The score over all languages, and the split that it was computed on.
        chain: The commands that led to the model, the earliest first.
    """

    model: str
    revision: str | None
    kdshrink_version: str | None
    command: str | None
    teacher: str | None
    source: str | None
    base: str | None
    hub_base: str | None
    architecture: str | None
    task: str | None
    labels: list[str]
    layers: int | None
    layer_map: list[int]
    layers_of: int | None
    hidden_size: int | None
    heads: int | None
    vocabulary: int | None
    parameters: int | None
    bytes: int | None
    training_languages: list[str]
    data: Mapping[str, Any] | None
    metric: str | None
    score: float | None
    split: str | None
    mean_over_languages: float | None
    per_language: Mapping[str, Any]
    licences: list[dict[str, str]]
    chain: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        return asdict(self)


def info(config: InfoConfig, progress: Progress | None = None) -> ModelInfo:
    """Describe a model; from the Hub only its small files and the headers of its weights are fetched.

    Raises:
        ModelError: It is missing or damaged.
        HubError: The Hub cannot be reached, or refuses.
    """
    source = find_model(config.model, access_of(config), weights=False)
    record = source.record
    results = record.results or Results()
    development = results.development
    headers = _headers(source)
    return ModelInfo(
        model=source.name,
        revision=source.commit,
        kdshrink_version=record.kdshrink_version,
        command=record.command,
        teacher=None if record.teacher is None else record.teacher.model,
        source=None if record.source is None else record.source.model,
        base=record.base,
        hub_base=hub_base(record.to_dict()),
        architecture=(source.config.get("architectures") or [None])[0],
        task=source.task,
        labels=list(source.labels) if source.task else [],
        layers=source.find_size("num_hidden_layers"),
        layer_map=list(record.layers) if record.of_layers else [],
        layers_of=record.of_layers,
        hidden_size=source.find_size("hidden_size"),
        heads=source.find_size("num_attention_heads"),
        vocabulary=source.find_size("vocab_size"),
        parameters=None if headers is None else sum(map(_numbers, headers)),
        bytes=None if headers is None else sum(_numbers(h) * _width(h) for h in headers),
        training_languages=source.training_languages,
        data=None if record.data is None else record.data.to_dict(),
        metric=results.metric,
        score=results.score,
        split=None if development is None else "development",
        mean_over_languages=None if development is None else development.mean_over_languages,
        per_language={name: row.to_dict() for name, row in (results.per_language or {}).items()},
        licences=[licence.to_dict() for licence in licences([source])],
        chain=[step.to_dict() for step in record.chain],
    )


def _numbers(tensor: Mapping[str, Any]) -> int:
    count = 1
    for size in tensor["shape"]:
        count *= size
    return count


def _width(tensor: Mapping[str, Any]) -> int:
    return _BYTES.get(tensor["dtype"], 1)


def _headers(source: Source) -> list[Mapping[str, Any]] | None:
    """Type and shape of every tensor of its safetensors; None without safetensors."""
    here = sorted(source.directory.glob("*.safetensors"))
    if here:
        tensors = [item for path in here for item in read_header(path).tensors.items()]
    elif source.commit is not None:
        tensors = _remote_headers(source)
    else:
        return None
    kept = [tensor for name, tensor in tensors if not name.endswith(_NO_PARAMETER)]
    return kept or None


def _remote_headers(source: Source) -> list[tuple[str, Mapping[str, Any]]]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    if constants.is_offline_mode():
        return []
    hub_id = source.name.partition("@")[0]
    try:
        found = HfApi(token=source.access.token).get_safetensors_metadata(
            hub_id, revision=source.commit
        )
    except NotASafetensorsRepoError:
        return []
    except SafetensorsParsingError as error:
        raise ModelError(f"{source.name}: its safetensors are damaged.\n{error}") from error
    except OSError as error:
        raise HubError(f"{source.name}: {reason(error, source.access.token)}.") from error
    return [
        (name, {"dtype": str(tensor.dtype), "shape": tensor.shape})
        for file in found.files_metadata.values()
        for name, tensor in file.tensors.items()
    ]
