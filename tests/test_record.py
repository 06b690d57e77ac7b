"""kdshrink.json: read into fields and written as it was; a broken one is refused by the field's name."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kdshrink.errors import ModelError
from kdshrink.models.source import find_model
from kdshrink.output import open_output
from kdshrink.record import RECORD, SCHEMA, Record, Step, read_record

MODEL = {"model": "org/teacher", "revision": "c" * 40}
SCORES = {"metric": "macro_f1", "score": 0.5, "per_language": {"de": {"score": 1, "examples": 3}}}
STEP = {
    "command": "kdshrink distill --teacher org/teacher",
    "kdshrink_version": "0.2.0",
    "models": [MODEL],
    "data": {"name": "massive", "fingerprint": "abc", "mirror": "https://x.org"},
    "host": "a-machine",
}
FULL: dict[str, Any] = {
    "note": "of a version to come",
    "schema": SCHEMA,
    "kdshrink_version": "0.2.0",
    "command": "distill",
    "config": {"weights": {"task": 0}, "layers": None},
    "seed": 42,
    "versions": {"torch": "2"},
    "device": None,
    "chain": [STEP],
    "licences": [{"license": "other", "license_name": "tea"}],
    "teacher": MODEL,
    "sizes": {
        "this model": {
            **{"layers": 2, "hidden_size": 8, "vocabulary": 9, "parameters": 7, "bytes": 28},
        }
    },
    "student": None,
    "start": "calibrated",
    "calibration": {"texts": {"de": 2}, "tokens": 9, "relative_error": [0.5, 1], "basis": "b"},
    "base": None,
    "data": {"name": "massive", "languages": ["de"], "examples": {"train": 3}, "files": {}},
    "task": "sequence",
    "layers": [2, 4],
    "of_layers": 4,
    "heads": [[[1, 1], [2, 1]], [[3, 1], [4, 2]]],
    "training_languages": ["de"],
    "run": {"began": "now"},
    "results": {
        **SCORES,
        "steps": 9,
        "development": {**SCORES, "accuracy": 0.5},
        "comparison": {
            "metric": "macro_f1",
            "models": {"teacher": {"parameters": 1, "seen": None, "unseen": SCORES}},
        },
        "parts": {
            "layers": {
                **{"parameters_before": 2, "parameters_after": 1},
                **{"bytes_before": 8, "bytes_after": 4},
            }
        },
    },
    "files": ["config.json"],
}


def sample_records() -> list[dict[str, Any]]:
    """As version 0.1.0 wrote them: without a schema, a chain or a list of files."""
    folder = resources.files("kdshrink") / "sample"
    return [json.loads((folder / name / RECORD).read_text()) for name in ("base", "teacher")]


@pytest.mark.parametrize("content", [*sample_records(), FULL, {}, {"training_languages": []}])
def test_a_record_is_written_as_it_was_read(content: dict[str, Any]) -> None:
    """Nulls, the order of the keys and unknown keys included."""
    assert json.dumps(Record.from_dict(content).to_dict()) == json.dumps(content)


def test_fields_are_read() -> None:
    record = Record.from_dict(FULL)
    assert record.other == {"note": "of a version to come"}
    assert record.layers == (2, 4)
    assert record.heads is not None
    assert record.heads[1] == ((3, 1), (4, 2))
    (step,) = record.chain
    assert step.models[0].revision == "c" * 40
    assert step.other == {"host": "a-machine"}
    assert step == Step.from_dict(STEP)
    assert record.results is not None
    assert record.results.development is not None
    assert record.results.development.per_language["de"].examples == 3


def test_an_old_record_is_read() -> None:
    base, teacher = (find_model(name) for name in ("sample-base", "sample"))
    assert base.record.schema is None
    assert (base.record.layers, base.record.of_layers) == (tuple(range(1, 13)), 12)
    assert teacher.record.base == "sample-base"
    assert teacher.training_languages == ["de-DE", "en-US", "es-ES", "ru-RU"]


def test_a_model_without_a_record_has_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert read_record(tmp_path) is None
    assert find_model(str(tmp_path)).record == Record()


def changed(content: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value in a place; without the place where the value is ...."""
    first, *rest = path
    copy = content.copy()
    if rest:
        copy[first] = changed(copy[first], tuple(rest), value)
    elif value is ...:
        del copy[first]
    else:
        copy[first] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("command",), 3, "command is 3, and should be a text"),
        (("config",), [], r"config is \[\], and should be an object"),
        (("chain",), {}, "chain is {}, and should be a list"),
        (("chain", 0), "distill", r'chain\[0\] is "distill", and should be an object'),
        (("chain", 0, "command"), ..., r"chain\[0\].command is missing"),
        (("chain", 0, "models", 0, "revision"), 1, r"chain\[0\].models\[0\].revision is 1"),
        (("chain", 0, "data", "name"), None, r"chain\[0\].data.name is null"),
        (("licences", 0, "license"), ["mit"], r'licences\[0\].license is \["mit"\]'),
        (("teacher",), "org/teacher", 'teacher is "org/teacher", and should be an object'),
        (("sizes", "this model", "bytes"), 1.5, "sizes.this model.bytes is 1.5"),
        (("calibration", "texts", "de"), True, "texts.de is true, and should be a whole number"),
        (("task",), "tagging", 'task is "tagging", and should be sequence or token'),
        (("layers",), "1,2", 'layers is "1,2", and should be a list'),
        (("layers", 1), "2", r'layers\[1\] is "2", and should be a whole number'),
        (("heads", 0, 1), [1], r"heads\[0\]\[1\] is \[1\], and should be a list of 2"),
        (("training_languages",), None, "training_languages is null, and should be a list"),
        (("training_languages",), "de", 'training_languages is "de", and should be a list'),
        (("run",), "a", 'run is "a", and should be an object'),
        (("results", "metric"), "bleu", 'results.metric is "bleu"'),
        (("results", "score"), "1", 'results.score is "1", and should be a number'),
        (("results", "development", "per_language", "de"), 1, "per_language.de is 1"),
        (("results", "comparison", "models", "teacher", "seen"), 1, "models.teacher.seen is 1"),
        (("files",), {"a": 1}, 'files is {"a": 1}, and should be a list'),
        (("schema",), "1", 'schema is "1", and should be a whole number'),
    ],
)
def test_a_broken_field_is_refused_by_name(
    path: tuple[str | int, ...], value: Any, said: str, tmp_path: Path
) -> None:
    (tmp_path / RECORD).write_text(json.dumps(changed(FULL, path, value)))
    with pytest.raises(ModelError, match=said) as caught:
        read_record(tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path / RECORD} is damaged: ")
    assert rest


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"schema": SCHEMA + 1, "chain": "of another form"}))
    with pytest.raises(ModelError, match=r"written by a newer kdshrink.*\n.*pip install -U"):
        read_record(tmp_path)


def test_a_broken_record_is_told_where_a_model_is_read_and_where_one_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / RECORD).write_text('{"command": "shrink", "layers": 4}')
    with pytest.raises(ModelError, match="layers is 4"):
        find_model(str(tmp_path))
    with (
        pytest.raises(ModelError, match="layers is 4"),
        open_output(tmp_path, "shrink", overwrite=True),
    ):
        pytest.fail("it was opened")
