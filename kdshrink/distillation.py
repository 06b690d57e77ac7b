"""Distillation: a student learns from its teacher's layers, its logits and the labels."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from . import losses
from .checkpoints import Identity, check_resume, start_run
from .compaction import TABLE, WholeTable, compact_ids, reachable_ids
from .comparison import Comparison
from .config.commands import DistillConfig, input_paths
from .config.fields import LOSS_TERMS
from .config.groups import ObjectiveOptions
from .data.batching import steps_per_epoch
from .data.encoding import IGNORED, Collator, token_counts
from .data.labels import read_label_map
from .data.load import TaskData, load_data
from .data.sampling import language_codes
from .errors import UnlabelledError, UsageError
from .models.devices import describe_device, pick_device, to_device
from .models.loading import (
    fitting_length,
    load_tokenizer,
    load_weights,
    model_sizes,
    prefix_words,
    require_task,
)
from .models.source import Source, find_model, require_classes, require_plain, require_single_texts
from .models.whole import check_whole
from .output import CHECKPOINTS, open_output
from .progress import Progress, silent
from .publishing.push import check_push, pushed
from .publishing.record import make_record
from .recording import Head, Recorder, check_recorded
from .scoring import EvalResult, Evaluator, LanguageScore, check_labels, not_finite
from .sharding import require_processes, shard
from .shrinking.families import family_of
from .students import Student, map_pieces, match_classes, prepare_student
from .teaching import Targets, TargetSource, Teacher, open_cache
from .trackers import require_trackers
from .training import (
    TermTrainer,
    TrainResult,
    development_evaluator,
    effective,
    encode_splits,
    finished_result,
    load_best,
    plan_batches,
    run_training,
    save_result,
    set_dropout,
    trained_collator,
    training_arguments,
)

logger = logging.getLogger(__name__)


class DistillationModel(nn.Module):
    """A student with what its loss needs: recorded layers, and projections where widths differ.

    The objective is TinyBERT's (Jiao et al. 2020, eq. 7–11) with the task loss added:

        L = L_emb + L_hid + L_attn + L_pred + L_task

    each term weighted by `objective`. Hidden states of all layers share one projection W_h, the
    embedding output has its own W_e; both are trained and are no part of the student.

    Args:
        student: The model to train.
        recorder: Records the student's own layers.
        objective: Weights, temperature and kinds of the terms.
        teacher_width: Hidden size of the teacher.
        task: What the student's head is for; None for a bare encoder, which has neither prediction
            nor task term.
        basis: Where the projections start, (teacher's width, student's width), if the student's hidden
            states began as the teacher's in a basis; without one they are drawn.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        recorder: Recorder,
        objective: ObjectiveOptions,
        teacher_width: int,
        task: str | None,
        basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.recorder = recorder
        self.objective = objective
        self.task = task
        width = student.config.hidden_size
        same = width == teacher_width
        self.embedding_projection: nn.Module = (
            nn.Identity() if same else nn.Linear(width, teacher_width, bias=False)
        )
        self.hidden_projection: nn.Module = (
            nn.Identity() if same else nn.Linear(width, teacher_width, bias=False)
        )
        if basis is not None:
            for projection in (self.embedding_projection, self.hidden_projection):
                if isinstance(projection, nn.Linear):
                    projection.weight.data.copy_(basis)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Targets,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of a batch's loss, unweighted scalars; a term of weight 0 is 0 and costs nothing.

        Args:
            input_ids, attention_mask: (B, T).
            labels: (B), or (B, T) with -100 where there is none.
        """
        output, mine = self.recorder(input_ids=input_ids, attention_mask=attention_mask)
        theirs = targets.record
        mask = attention_mask.bool()
        zero = mask.new_zeros((), dtype=torch.float32)
        terms = dict.fromkeys(LOSS_TERMS, zero)
        if mine.embedding is not None and theirs.embedding is not None:
            projected = self.embedding_projection(mine.embedding)
            terms["embedding"] = losses.hidden_mse(projected, theirs.embedding, mask).mean
        for own, other in zip(mine.hidden, theirs.hidden, strict=True):
            projected = self.hidden_projection(own)
            terms["hidden"] = terms["hidden"] + losses.hidden_mse(projected, other, mask).mean
        for own, other in zip(mine.attention, theirs.attention, strict=True):
            if targets.centred and not self.recorder.centred:
                own = losses.centre(own, mask)
            elif self.recorder.centred and not targets.centred:
                other = losses.centre(other, mask)
            terms["attention"] = terms["attention"] + losses.attention_mse(own, other, mask).mean
        if targets.logits is not None and self.objective.weight("prediction"):
            examples = None if self.task == "sequence" else self._scored(mask, labels)
            if self.objective.prediction_loss == "mse":
                term = losses.logits_mse(output.logits, targets.logits, examples)
            else:
                term = losses.soft_cross_entropy(
                    output.logits, targets.logits, self.objective.temperature, examples
                )
            terms["prediction"] = term.mean
        if labels is not None and self.objective.weight("task"):
            terms["task"] = losses.task_cross_entropy(output.logits, labels).mean
        return terms

    @staticmethod
    def _scored(mask: Tensor, labels: Tensor | None) -> Tensor:
        """The positions whose logits count: the labelled tokens, or all real ones without labels."""
        return mask if labels is None else labels != IGNORED


class DistillationTrainer(TermTrainer):
    """Trains a DistillationModel on its teacher's targets.

    Args:
        texts: What the teacher's targets are made of, to name one that it has no finite answer to.
    """

    def __init__(self, *, targets: TargetSource, texts: Dataset, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.targets = targets
        self.texts = texts
        self._next: tuple[int, int] | None = None

    @property
    def trained_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).student

    def loss_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return model(**inputs)

    def _check_finite(self) -> None:
        if (row := self.targets.first_bad) is not None:
            raise not_finite("The teacher", self.texts, row)
        super()._check_finite()

    def term_units(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = inputs["attention_mask"]
        tokens, pairs = mask.sum(), mask.sum(1).pow(2).sum()
        examples = torch.full_like(tokens, len(mask))
        labels = (inputs["labels"] != IGNORED).sum() if "labels" in inputs else examples
        sequence = self.accelerator.unwrap_model(self.model).task == "sequence"
        answers = examples if sequence else labels if "labels" in inputs else tokens
        return {
            "embedding": tokens,
            "hidden": tokens,
            "attention": pairs,
            "prediction": answers,
            "task": labels,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        accumulation = self.args.gradient_accumulation_steps
        if self._next is None:
            steps = steps_per_epoch(self.batches, accumulation)
            epoch, step = divmod(self.state.global_step, steps)
            self._next = epoch, step * accumulation
        epoch, index = self._next
        for batch in samples:
            width = batch["input_ids"].shape[1]
            batch["targets"] = self.targets.of_batch(epoch, index, width)
            index += 1
        self._next = (epoch, index) if index < len(self.batches) else (epoch + 1, 0)
        return samples, items


def _default_name(config: DistillConfig) -> str:
    if config.student is not None:
        return f"{Path(config.student).name}-distilled"
    name = f"{Path(config.teacher.partition('@')[0]).name}-{config.init or 'from-teacher'}"
    if config.layers is not None:
        name += f"-{config.layers}l"
    if config.hidden_size is not None:
        name += f"-{config.hidden_size}h"
    return name


def _check_terms(config: DistillConfig, teacher: Source) -> None:
    possible = LOSS_TERMS if teacher.task else ("embedding", "hidden", "attention")
    if not any(config.weight(term) for term in possible):
        raise UsageError(
            "--weight: every term that this teacher can teach has weight 0, so there is nothing to learn.\n"
            f"Give one of {', '.join(possible)} a weight."
        )


def _load_data(config: DistillConfig, source: Source) -> TaskData:
    labelled = config.weight("task") > 0 and source.task is not None
    try:
        return load_data(
            config,
            ("train", "validation"),
            purpose="train",
            labels="required" if labelled else "optional",
            token=config.token,
        )
    except UnlabelledError as error:
        raise UnlabelledError(
            f"{error}\nTo distil without labels, switch off their term: --weight task=0."
        ) from error


def _recorder(
    model: PreTrainedModel,
    layers: Sequence[int],
    config: DistillConfig,
    heads: Sequence[Sequence[Head]] | None = None,
) -> Recorder:
    return Recorder(
        model,
        layers,
        hidden=config.weight("hidden") > 0,
        attention=config.attention_target if config.weight("attention") else None,
        embedding=config.weight("embedding") > 0,
        heads=heads,
    )


@dataclass(frozen=True)
class LossEvaluator:
    """Scores a student where there are no labels: by the objective itself, its sign turned.

    Attributes:
        table, encoded: The development set, and the same tokenised.
        learner: Holds the student that is scored.
    """

    table: Dataset
    encoded: Dataset
    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def score(self, model: PreTrainedModel) -> EvalResult:
        assert model is self.learner.student
        training = self.learner.training
        self.learner.eval()
        began = time.perf_counter()
        codes, languages = language_codes(self.table)
        lengths = token_counts(self.encoded)
        scores = {}
        for code, language in enumerate(languages):
            rows = np.flatnonzero(codes == code)
            order = rows[np.argsort(lengths[rows], kind="stable")]
            total = 0.0
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = self.collate(self.encoded.__getitems__(chosen.tolist()))
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                targets = self.teacher.targets(batch["input_ids"], batch["attention_mask"])
                terms = self.learner(**batch, targets=targets)
                objective = self.learner.objective
                loss = sum(float(value) * objective.weight(name) for name, value in terms.items())
                if not math.isfinite(loss):
                    raise not_finite("The student, or its teacher,", self.table, int(chosen[0]))
                total += loss * len(chosen)
            scores[language] = LanguageScore(-total / len(rows), len(rows))
        self.learner.train(training)
        examples = len(self.table)
        return EvalResult(
            metric="negative_loss",
            score=sum(row.score * row.examples for row in scores.values()) / examples,
            details={},
            mean_over_languages=float(np.mean([row.score for row in scores.values()])),
            per_language=scores,
            examples=examples,
            examples_per_second=examples / (time.perf_counter() - began),
        )


@dataclass(frozen=True)
class _Pair:
    """Student and teacher with the embedding rows alone that the data can reach, in one order."""

    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    table: WholeTable


def _load_pair(
    config: DistillConfig,
    source: Source,
    student: Student,
    encoded: Mapping[str, Dataset],
    pieces: Tensor | None,
    output_dir: Path,
    device: torch.device,
) -> _Pair:
    """The learner on its device, the teacher still on the CPU."""
    vocabulary = student.source.vocabulary
    kept = reachable_ids(student.tokenizer, list(encoded.values()), vocabulary)
    model = student.load(config, source.task, kept)
    set_dropout(model, config.dropout, calibrated=student.is_calibrated)
    table = WholeTable.keep(output_dir / CHECKPOINTS / TABLE, student.source.directory, model, kept)
    rows = kept if pieces is None else pieces[kept]
    teacher_model = load_weights(source, config, source.task, rows).eval()
    classes = None
    if source.task is not None:
        classes = match_classes(student.labels, source.labels).to(device)
    learner = DistillationModel(
        model,
        _recorder(model, range(1, len(student.layers) + 1), config),
        config,
        teacher_model.config.hidden_size,
        source.task,
        student.basis,
    ).to(device)
    return _Pair(
        learner,
        Teacher(_recorder(teacher_model, student.layers, config, student.heads), classes),
        Collator(int(student.tokenizer.pad_token_id), compact_ids(kept, vocabulary)),
        table,
    )


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student of its own weights, of its base's, or of none.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(_default_name(config))
    with open_output(
        output_dir,
        "distill",
        overwrite=config.overwrite,
        resume=config.resume,
        inputs=input_paths(config),
    ):
        return _distill(config, output_dir, progress or silent)


def _distill(config: DistillConfig, output_dir: Path, progress: Progress) -> TrainResult:
    repo_id = check_push(config, output_dir)
    device = pick_device(config.device)
    require_trackers(config.report_to)
    source = find_model(config.teacher, config).renamed(read_label_map(config.label_map))
    require_plain(source)
    require_classes(source)
    require_single_texts(source)
    check_recorded(source.config)
    if config.student is None:
        family_of(source.config)
    _check_terms(config, source)
    check_whole(source, config, source.task)
    tokenizer = load_tokenizer(source, config)
    models = {"teacher": source}
    for role, name in (("student", config.student), ("base", config.base)):
        if name is not None:
            models[role] = find_model(name, config)
    identity = Identity.of("distill", config, models)
    check_resume(output_dir, config, identity)
    data = _load_data(config, source)
    if data.task == "token":
        prefix_words(tokenizer)
    if source.task is not None:
        require_task(source, data.task)
        if data.labels is not None:
            check_labels(data, source)

    identity = identity.with_data(data.source)
    if done := finished_result(output_dir, config, identity):
        return pushed(done, repo_id, config)
    labelled = data if source.task is not None else replace(data, labels=None)
    arguments = training_arguments(config, output_dir, device)
    if config.shard_teacher:
        require_processes()
    with tempfile.TemporaryDirectory() as folder:
        student = prepare_student(config, source, tokenizer, data, Path(folder), progress)
        pieces = map_pieces(student.tokenizer, tokenizer, data)
        length = fitting_length(config.max_length, student.tokenizer, student.source.config)
        encoded = encode_splits(
            labelled, ("train", "validation"), student.tokenizer, length, student.labels
        )
        comparing = config.compare
        if comparing is None:
            comparing = config.data == "sample" and not config.shard_teacher
        comparison = None
        if comparing and labelled.labels is not None:
            comparison = Comparison(config, data, source, tokenizer, student, device, progress)
        with arguments.main_process_first(local=False):
            start = start_run(config, output_dir, identity)
            set_seed(config.seed)
            pair = _load_pair(config, source, student, encoded, pieces, output_dir, device)
    teacher_model = pair.teacher.recorder.model
    if arguments.bf16 and device.type == "cuda":
        teacher_model.bfloat16()
    (shard if config.shard_teacher else to_device)(teacher_model, device)
    batches = plan_batches(config, arguments, encoded["train"])
    steps = steps_per_epoch(batches, config.gradient_accumulation_steps)
    epochs = config.num_train_epochs if config.max_steps is None else config.max_steps / steps
    with arguments.main_process_first(local=False):
        cache = open_cache(
            config.cache_teacher,
            pair.teacher,
            source.directory,
            encoded["train"],
            output_dir / CHECKPOINTS,
            token_logits=source.task == "token",
            epochs=epochs,
        )
    evaluator: Evaluator | LossEvaluator
    if labelled.labels is None:
        evaluator = LossEvaluator(
            data.splits["validation"],
            encoded["validation"],
            pair.learner,
            pair.teacher,
            pair.collate,
            2 * config.batch_size,
            device,
        )
    else:
        evaluator = development_evaluator(data, encoded, student.labels, pair.collate, device)
    trainer = DistillationTrainer(
        targets=TargetSource(pair.teacher, encoded["train"], batches, pair.collate, cache),
        texts=data.splits["train"],
        weights={term: config.weight(term) for term in LOSS_TERMS},
        batches=batches,
        table=pair.table,
        evaluator=evaluator,
        output_dir=output_dir,
        progress=progress,
        what="distill",
        patience=config.early_stopping_patience,
        model=pair.learner,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=trained_collator(pair.learner.student, pair.collate, batches, config, device),
    )
    run = run_training(trainer, start.checkpoint)
    if comparison is not None:
        comparison.add_distilled(load_best(run, pair.learner.student))
        trainer.accelerator.wait_for_everyone()  # the first one removes the checkpoints next
    record = make_record(
        "distill",
        config,
        describe_device(device),
        [source, *student.sources],
        data.source,
        teacher=source.describe(),
        sizes={
            "the teacher": model_sizes(pair.teacher.recorder.model),
            "this model": model_sizes(pair.learner.student),
        },
        student=config.student,
        start=student.start,
        **({} if student.calibration is None else {"calibration": student.calibration}),
        base=(source.record or {}).get("base"),
        data=data.source,
        task=source.task,
        layers=list(student.layers),
        of_layers=source.depth,
        heads=student.heads,
        # What an encoder without a task saw is pretraining, and leaves a language unseen for any task.
        training_languages=(
            sorted({*student.training_languages, *data.languages}) if source.task else []
        ),
        **effective(start, arguments, length),
    )
    compared = None if comparison is None else comparison.to_dict()
    result = save_result(output_dir, run, student.tokenizer, record, compared)
    return pushed(result, repo_id, config)
