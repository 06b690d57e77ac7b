"""The end of `kdshrink distill --export`: the student in ONNX, in its own directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config.command_line import command_line
from ..config.commands import DistillConfig, ExportConfig
from ..distributed import is_first, part
from ..errors import Interrupted, KdshrinkError, Terminated
from ..models.source import find_classifier
from ..output import LOG
from ..record import Record
from ..training.result import TrainResult
from .distill_inputs import Command, Inputs
from .export import ExportResult, holds_export, refusal, with_export, write_export
from .options import access_of

logger = logging.getLogger(__name__)


def add_graphs(command: Command, inputs: Inputs, result: TrainResult) -> TrainResult:
    """Add the student in ONNX to a finished directory, unless it is there as it is wanted now.

    The first process does so alone.

    Raises:
        RefusedError: fp16 or int8 did not pass the gate.
    """
    part()  # or its scoring would wait for the others
    config, output_dir = command.config, command.output_dir
    assert config.export is not None
    if not is_first():
        return result
    source = find_classifier(str(output_dir), access_of(config), {})
    if holds_export(source.record, config.export, config.max_drop):
        assert source.record.export is not None
        return replace(result, export=source.record.export.to_dict())
    wanted = ExportConfig(
        model=str(output_dir),
        data=config.data,
        precision=config.export,
        max_drop=config.max_drop,
        max_length=config.max_length,
    )
    log = output_dir / LOG
    with _student_is_kept(output_dir):
        exported = write_export(
            wanted,
            source,
            replace(inputs.data, whole_file=False),
            output_dir,
            partial(_record_with_graphs, config, source.record),
            command.progress,
            [log] if log.is_file() else [],
        )
    result = replace(result, export=exported.described())
    if not exported.passed:
        raise refusal(exported, str(output_dir), result)
    return result


def _record_with_graphs(config: DistillConfig, record: Record, exported: ExportResult) -> Record:
    """The student's record with its graphs, and with the options and the command that asked for them."""
    options = {"export": config.export, "max_drop": config.max_drop}
    *former, last = record.chain
    last = replace(last, command=command_line("distill", config))
    return with_export(
        replace(record, config={**record.config, **options}, chain=(*former, last)), exported
    )


@contextmanager
def _student_is_kept(output_dir: Path) -> Iterator[None]:
    """Say, where the export fails or is stopped, that the student is there and how to go on."""
    kept = f"{output_dir} holds the distilled student. The same command with --resume exports it"
    try:
        yield
    except Terminated:
        raise Interrupted(f"Stopped by SIGTERM during the export. {kept}.", 143) from None
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped by Ctrl-C during the export. {kept}.", 130) from None
    except KdshrinkError:
        logger.warning("%s again.", kept)
        raise
