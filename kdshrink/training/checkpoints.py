"""The checkpoints of a run: which one to resume from, and whether the run is the same."""

from __future__ import annotations

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..distributed import is_first, world_size
from ..errors import OutputError, TrainingError
from ..files import (
    empty_directory,
    former_or_own,
    read_json,
    recover_directory,
    sha256_of,
    to_json,
    write_json,
    write_text,
)
from ..models.source import Source, fingerprint, tokenizer_files
from ..output import CHECKPOINTS, LOG, RUN
from ..record import RECORD, Record, read_record

logger = logging.getLogger(__name__)

BEST = "best"
BEST_SCORE = "score.json"

MODEL_OPTIONS = ("model", "teacher", "student", "base")
"""Options that name a model."""
_SHOWN = 10


@dataclass(frozen=True)
class RunOption:
    """An option that determines the result of a run.

    Attributes:
        flag: Its name on the command line.
        default: Its default, which also applies to runs of versions without the option.
    """

    name: str
    flag: str
    value: Any
    default: Any


@dataclass(frozen=True)
class Identity:
    """What determines the result of a run: saved with its checkpoints, compared on --resume.

    Attributes:
        options: The options that determine the result, by name.
        models: By option, a model's name and content: its commit, or a hash of its files.
        data: Name and content of the data; empty if it is not read yet.
        processes: The number of processes of a distributed run; None if it was not recorded.
        began: The start time, which differs between runs with the same options.
        unlabelled: Name and content of the data of --unlabelled; empty without it.
    """

    command: str
    options: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    processes: int | None
    kdshrink_version: str
    began: str
    unlabelled: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, command: str, options: Sequence[RunOption], models: Mapping[str, Source]
    ) -> Identity:
        """The identity of a run with these options and models; `with_data` adds the data."""
        return cls(
            command,
            json.loads(to_json({option.name: option.value for option in options})),
            {
                role: {"name": source.name, "content": _content(source)}
                for role, source in models.items()
            },
            {},
            world_size(),
            metadata.version("kdshrink"),
            time.strftime("%Y-%m-%dT%H:%M:%S") + f".{time.time_ns() % 10**9:09d}",
        )

    def with_data(
        self, description: Mapping[str, Any], unlabelled: Mapping[str, Any] | None = None
    ) -> Identity:
        """The identity with the data, and that of --unlabelled, by their `TaskData.reference`."""
        return replace(
            self,
            data=_described(description),
            unlabelled={} if unlabelled is None else _described(unlabelled),
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Identity:
        """Undo `asdict`."""
        # Earlier versions knew no --unlabelled.
        return cls(
            **{item.name: content[item.name] for item in fields(cls) if item.name in content}
        )

    @classmethod
    def of_record(cls, record: Record) -> Identity:
        """The identity of a finished run, from its kdshrink.json."""
        if record.run is not None:
            return cls.from_dict(record.run)
        config = record.config
        return cls(
            str(record.command),
            config,
            {role: {"name": config[role]} for role in MODEL_OPTIONS if config.get(role)},
            {},
            None,
            str(record.kdshrink_version),
            "",
        )

    def changes(self, recorded: Identity, options: Sequence[RunOption]) -> list[str]:
        """The differences from the recorded run, one text each, such as `--seed 42 → 43`."""
        if self.command != recorded.command:
            return [f"{recorded.command} → {self.command}"]
        found = []
        for option in options:
            usual = json.loads(to_json({"": option.default}))[""]
            before, now = recorded.options.get(option.name, usual), self.options[option.name]
            if before != now:
                found.append(f"{option.flag} {_shown(before)} → {_shown(now)}")
        for role in sorted({*self.models, *recorded.models}):
            pair = (recorded.models.get(role), self.models.get(role))
            found += _change("MODEL" if role == "model" else f"--{role}", *pair)
        if self.data and recorded.data:
            found += _change("--data", recorded.data, self.data)
            pair = (recorded.unlabelled or None, self.unlabelled or None)
            found += _change("--unlabelled", *pair)
        if recorded.processes not in (None, self.processes):
            found.append(f"processes {recorded.processes} → {self.processes}")
        return found


def _shown(value: Any, *, end: bool = False) -> str:
    """A value for a message, shortened to its beginning or its end."""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    elif isinstance(value, dict):
        value = ",".join(f"{key}={one}" for key, one in value.items()) or None
    text = "not given" if value is None else str(value)
    if len(text) <= 60:
        return text
    return f"…{text[-59:]}" if end else f"{text[:59]}…"


def _change(
    flag: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> Iterator[str]:
    """The change of a model or of the data, by its content if known, else by its name."""
    names = [None if one is None else one["name"] for one in (before, now)]
    contents = [None if one is None else one.get("content") for one in (before, now)]
    known = None not in contents
    if (contents[0] == contents[1]) if known else (names[0] == names[1]):
        return
    if names[0] == names[1]:
        yield f"{flag} {_shown(names[0], end=True)}: its content has changed"
    else:
        yield f"{flag} {_shown(names[0], end=True)} → {_shown(names[1], end=True)}"


def _described(read: Mapping[str, Any]) -> dict[str, Any]:
    """The name of what was read, and what tells its content."""
    content = read.get("fingerprint") or read.get("revision")
    if names := read.get("label_map"):
        content = f"{content}, labels renamed by {to_json(names)}"
    return {"name": read["name"], "content": content}


def _content(source: Source) -> str:
    """The identity of a model's content: its commit, or a hash of its files."""
    if source.commit is not None:
        return source.commit
    small = [source.directory / "config.json", *tokenizer_files(source)]
    return " ".join([fingerprint(source.directory), *(sha256_of(path)[:16] for path in small)])


def _recorded(output_dir: Path) -> Identity | None:
    """The identity of the run in a directory, from its checkpoints or result; None without either.

    Raises:
        OutputError: The file with the identity is damaged.
    """
    path = output_dir / CHECKPOINTS / RUN
    try:
        if not is_finished(output_dir):
            begun = any(one.is_complete for one in _checkpoints(output_dir))
            kept = read_json(path) if begun else None
            return None if kept is None else Identity.from_dict(kept)
        path = output_dir / RECORD
        return Identity.of_record(read_record(output_dir) or Record())
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} is damaged: it does not identify the run.\n"
            "Start again with --overwrite, or give another directory with -o."
        ) from error


def check_resume(output_dir: Path, identity: Identity, options: Sequence[RunOption]) -> None:
    """Check that --resume continues the same run.

    Raises:
        OutputError: The identity differs from the recorded one.
    """
    recorded = _recorded(output_dir)
    if recorded is None:
        return
    changes = identity.changes(recorded, options)
    if changes:
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise OutputError(
            f"--resume: {output_dir} holds a different run: "
            f"{'; '.join(changes[:_SHOWN])}{more}.\n"
            "Give the recorded values (left of →), or start anew with --overwrite instead of "
            "--resume."
        )
    if recorded.kdshrink_version != identity.kdshrink_version and is_first():
        logger.warning(
            "%s was started with kdshrink %s, and this is %s",
            output_dir,
            recorded.kdshrink_version,
            identity.kdshrink_version,
        )


def is_finished(output_dir: Path) -> bool:
    """Whether a directory holds a complete result, and no run that was started after it."""
    if not (output_dir / "config.json").exists():
        return False
    record = read_record(output_dir)
    kept = read_json(output_dir / CHECKPOINTS / RUN)
    if record is None:
        return False
    return kept is None or kept.get("began") == (record.run or {}).get("began")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of transformers' Trainer, which writes trainer_state.json last."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.split("-")[1])

    @property
    def is_complete(self) -> bool:
        return (self.path / "trainer_state.json").is_file()

    @cached_property
    def fault(self) -> str | None:
        """Why the run cannot be resumed from it; None if it can."""
        try:
            state = json.loads((self.path / "trainer_state.json").read_text(encoding="utf-8"))
            if state["global_step"] != self.step:
                return "trainer_state.json is of another step"
        except (OSError, ValueError, KeyError, TypeError):
            return "trainer_state.json is damaged"
        weights = sorted(self.path.glob("*.safetensors"))
        states = [self.path / name for name in ("optimizer.pt", "scheduler.pt")]
        random = sorted(self.path.glob("rng_state*.pth"))
        if not (weights and random):
            return "files are missing"
        return next((f"{p.name} is damaged" for p in (*weights, *states, *random) if _cut(p)), None)


def _cut(path: Path) -> bool:
    """Whether a file of tensors is missing, truncated, or not a file of tensors."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return False
        with zipfile.ZipFile(path) as archive:
            return not archive.namelist()
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return True


def _checkpoints(output_dir: Path) -> list[Checkpoint]:
    """The checkpoints of a run, the newest first."""
    found = [
        Checkpoint(path)
        for path in (output_dir / CHECKPOINTS).glob("checkpoint-*")
        if path.name.split("-")[1].isdigit()
    ]
    return sorted(found, key=lambda one: one.step, reverse=True)


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that a run can be resumed from."""
    return next((one.path for one in _checkpoints(output_dir) if one.fault is None), None)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: The checkpoint to resume from; None for a new run.
        identity: The identity that was recorded when the run began.
    """

    checkpoint: Path | None
    identity: Identity

    def describe(self) -> dict[str, Any]:
        """The fields of the record about the run."""
        step = None if self.checkpoint is None else Checkpoint(self.checkpoint).step
        return {"run": asdict(self.identity), **({} if step is None else {"resumed_from": step})}


def resumable(output_dir: Path) -> Path | None:
    """The checkpoint that --resume goes on from; None if the run starts anew. Nothing is changed.

    Raises:
        OutputError: There are checkpoints, and all are damaged.
        TrainingError: The best model so far is damaged.
    """
    last = last_checkpoint(output_dir)
    if last is not None:
        _check_best(output_dir / CHECKPOINTS / BEST, last)
    elif faults := _faults(output_dir):
        raise OutputError(
            f"{output_dir / CHECKPOINTS}: no checkpoint can be read: {', '.join(faults[:_SHOWN])}.\n"
            "Start anew with --overwrite instead of --resume."
        )
    return last


def start_run(output_dir: Path, identity: Identity, *, resume: bool) -> Start:
    """Create the directory of checkpoints, and find the one to resume from.

    A new run removes the checkpoints of an older one.

    Raises:
        OutputError, TrainingError: As of `resumable`.
    """
    folder = output_dir / CHECKPOINTS
    last = resumable(output_dir) if resume else None
    kept = read_json(folder / RUN) if resume else None
    if kept is not None and last is not None:
        identity = Identity.from_dict(kept)
    if not is_first():
        return Start(last, identity)
    if resume:
        _drop_damaged(output_dir)
    if last is None:
        empty_directory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if last is not None:
        logger.info("resuming from %s", last)
        if kept is None:
            logger.warning(
                "%s does not record the options of its run, so they cannot be compared with these",
                folder,
            )
        recover_directory(folder / BEST)
        _cut_log(folder / LOG, Checkpoint(last).step)
    if last is None or kept is None:
        write_json(folder / RUN, asdict(identity))
    return Start(last, identity)


def _damaged(output_dir: Path) -> list[Checkpoint]:
    return [one for one in _checkpoints(output_dir) if one.fault is not None]


def _faults(output_dir: Path) -> list[str]:
    """The checkpoints that were complete and are damaged, and how."""
    damaged = [one for one in _damaged(output_dir) if one.is_complete]
    return [f"{one.path.name} ({one.fault})" for one in damaged]


def _drop_damaged(output_dir: Path) -> None:
    """Remove the checkpoints that a run cannot be resumed from, so that none is newer than the next one."""
    for one in _damaged(output_dir):
        if one.is_complete:
            logger.warning("%s cannot be resumed from: %s", one.path, one.fault)
        shutil.rmtree(one.path)


def _check_best(place: Path, last: Path) -> None:
    """Check that the best model so far is in its place, or was set aside, if one was saved."""
    best = former_or_own(place)
    history = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    if not any("score" in entry for entry in history):
        return
    try:
        whole = "development" in json.loads((best / BEST_SCORE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        whole = False
    if not whole or any(_cut(path) for path in best.glob("*.safetensors")):
        raise TrainingError(
            f"{place}: the best model of the run so far is damaged, so it cannot be resumed.\n"
            "Start anew with --overwrite instead of --resume."
        )


def _cut_log(log: Path, step: int) -> None:
    """Remove damaged lines, and those after the checkpoint, whose steps are done again."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [_entry(line) for line in lines]
    if damaged := entries.count(None):
        logger.warning("%s: %d damaged lines were removed", log, damaged)
    good = [line for line, at in zip(lines, entries, strict=True) if at is not None and at <= step]
    write_text(log, "".join(line + "\n" for line in good))


def _entry(line: str) -> int | None:
    """The step of a log line; None if it is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
