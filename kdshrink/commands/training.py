"""What finetune and distill share: the output directory, resuming, training arguments, saving and pushing."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..config.commands import DistillConfig, FinetuneConfig, input_paths
from ..config.fields import flag_of
from ..config.groups import HubOptions, TrainingOptions
from ..config.recipes import RECIPES
from ..data.batching import Batches, steps_per_epoch
from ..data.encoding import Collator, EncodedArrays, token_counts
from ..distributed import is_first
from ..errors import UsageError
from ..models.compilation import bucket_widths, compile_in_place, length_buckets
from ..models.devices import computes_bfloat16, execution_on, peak_memory, pick_device
from ..models.source import Source
from ..output import CHECKPOINTS, check_output, open_output, remove_checkpoints
from ..progress import Progress, silent
from ..publishing.push import Destination, pushed
from ..record import Record
from ..training.checkpoints import (
    MODEL_OPTIONS,
    Checkpoint,
    Identity,
    RunOption,
    Start,
    check_resume,
    is_finished,
    resumable,
    start_run,
)
from ..training.result import TrainResult, finished_result, save_result
from ..training.run import Run
from ..training.trackers import require_trackers, tracker_names
from ..training.trial import Trial, checkpoint_bytes, training_memory
from .options import ready_destination
from .plan import Estimate, Plan, PlannedData, PlannedModel, PlannedTraining

logger = logging.getLogger(__name__)

_PLAIN = RECIPES["paper"]
"""What stands where neither an option nor a recipe says otherwise: transformers' defaults, and 30 epochs."""
_FREE = {
    *(item.name for item in fields(HubOptions)),
    *("output_dir", "overwrite", "resume", "device", "report_to", "logging_steps", "save_steps"),
    *("save_total_limit", "cache_teacher", "shard_teacher", "compare"),
    *("export", "max_drop"),
    *(
        "trust_remote_code",
        "revision",
        "data",
        "unlabelled",
        "data_dir",
        "label_map",
        *MODEL_OPTIONS,
    ),
}
"""Options that may change on --resume; models and data are compared by their content instead."""


Config = TypeVar("Config", FinetuneConfig, DistillConfig)


@dataclass(frozen=True)
class TrainingCommand(Generic[Config]):
    """A training command: its options, and the directory, device and Hub repository that they name.

    Attributes:
        destination: The repository that the result is pushed to, if any.
    """

    name: str
    config: Config
    output_dir: Path
    device: torch.device
    destination: Destination | None
    progress: Progress

    @classmethod
    @contextmanager
    def open(
        cls, name: str, config: Config, output_dir: Path, progress: Progress | None
    ) -> Iterator[TrainingCommand[Config]]:
        """Lock the output directory, and make the checks that need neither network nor data."""
        with open_output(
            output_dir,
            name,
            overwrite=config.overwrite,
            resume=config.resume,
            inputs=input_paths(config),
        ):
            yield cls._checked(name, config, output_dir, progress, create=True)

    @classmethod
    def rehearse(
        cls, name: str, config: Config, output_dir: Path, progress: Progress | None
    ) -> TrainingCommand[Config]:
        """The command of a dry run: makes the checks of `open`, and writes nothing."""
        check_output(
            output_dir,
            name,
            overwrite=config.overwrite,
            resume=config.resume,
            inputs=input_paths(config),
        )
        return cls._checked(name, config, output_dir, progress, create=False)

    @classmethod
    def _checked(
        cls, name: str, config: Config, output_dir: Path, progress: Progress | None, *, create: bool
    ) -> TrainingCommand[Config]:
        device = pick_device(config.device)
        require_trackers(config.report_to)
        destination = ready_destination(config, output_dir, create=create)
        return cls(name, config, output_dir, device, destination, progress or silent)

    def identify(self, models: Mapping[str, Source]) -> Identity:
        """The identity of the run, without its data.

        Raises:
            OutputError: --resume of a run with other options, models or data.
        """
        identity = Identity.of(self.name, _run_options(self.config), models)
        self._check_resume(identity)
        return identity

    def _check_resume(self, identity: Identity) -> None:
        if self.config.resume:
            check_resume(self.output_dir, identity, _run_options(self.config))

    @property
    def is_over(self) -> bool:
        """Whether --resume names a finished directory, so that `finished` gives a result or an error."""
        return self.config.resume and is_finished(self.output_dir)

    def finished(self, identity: Identity) -> TrainResult | None:
        """The result of a run that --resume finds finished; None if there is something to do.

        Raises:
            OutputError: The directory holds another run.
        """
        if not self.config.resume:
            return None
        self._check_resume(identity)
        done = finished_result(self.output_dir)
        if done is not None:
            logger.info("%s is trained already: there is nothing to resume", self.output_dir)
        return done

    def push(self, result: TrainResult) -> TrainResult:
        """Push a result that is on disk, with --push-to-hub."""
        if is_first():
            remove_checkpoints(self.output_dir)  # of a run that was killed at its end
        return pushed(result, self.destination)

    def arguments(self, *, trains_all: bool = True) -> TrainingArguments:
        """transformers' TrainingArguments for the run: AdamW and a linear schedule by default.

        Args:
            trains_all: Whether every parameter gets a gradient at every step, so that DDP need not look
                which ones do.

        Raises:
            UsageError: accelerate is set to shard the trained model, or this machine does not support an
                option.
        """
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
            raise UsageError(
                "ACCELERATE_USE_FSDP is set, but the trained model cannot be sharded: checkpoints need it whole.\n"
                "Start with torchrun; --shard-teacher shards the teacher of distill over the processes."
            )
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        try:
            arguments = _transformers_arguments(self.config, self.output_dir, self.device)
        except ValueError as error:  # for example bfloat16 on a GPU without it
            said = str(error).partition("\n")[0]
            raise UsageError(f"transformers refuses these training options: {said}") from error
        _use_device(arguments, self.device)
        arguments.ddp_find_unused_parameters = not trains_all
        return arguments

    def start(self, identity: Identity) -> Start:
        """The checkpoint that the run starts from; makes the checkpoint directory. Call `finished` first."""
        return start_run(self.output_dir, identity, resume=self.config.resume)

    def batches(self, arguments: TrainingArguments, encoded: Dataset) -> Batches:
        """The run's batches; also sets `arguments` to evaluate and save each epoch, unless options differ."""
        config = self.config
        lengths = token_counts(encoded)
        batches = Batches(
            lengths,
            size=config.batch_size,
            tokens=config.tokens_per_batch,
            widths=bucket_widths(lengths) if config.torch_compile else None,
            by_length=config.batches == "by-length",
            seed=config.seed,
            rank=arguments.process_index,
            world=arguments.world_size,
        )
        logger.info(
            "%d batches per epoch; %.1f %% of their positions are padding",
            len(batches),
            100 * batches.padding().share,
        )
        # In steps, not epochs: at an epoch's end transformers saves before it evaluates, so a run killed
        # in between would resume without that evaluation.
        epoch = steps_per_epoch(batches, config.gradient_accumulation_steps)
        arguments.eval_steps = config.eval_steps or epoch
        arguments.save_steps = config.save_steps or epoch
        return batches

    def examples(
        self, model: PreTrainedModel, encoded: Dataset, collate: Collator
    ) -> EncodedArrays:
        """What gives the batches to train on; with --torch-compile the model is compiled."""
        lengths = token_counts(encoded)
        widths = execution_on(self.device).widths(int(lengths.max()))
        if self.config.torch_compile:
            compile_in_place(model, self.device)
            widths = length_buckets(lengths)
        return EncodedArrays(encoded, replace(collate, buckets=widths))

    def save(
        self,
        run: Run,
        tokenizer: PreTrainedTokenizerBase,
        record: Record,
        comparison: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Write the result."""
        return save_result(self.output_dir, run, tokenizer, record, comparison)

    def plan_training(self, arguments: TrainingArguments, per_epoch: int) -> PlannedTraining:
        """The run that these arguments describe.

        Raises:
            OutputError, TrainingError: --resume finds damaged checkpoints.
        """
        config = self.config
        last = resumable(self.output_dir) if config.resume else None
        steps = arguments.max_steps
        if steps < 0:
            steps = math.ceil(arguments.num_train_epochs * per_epoch)
        return PlannedTraining(
            steps,
            steps / per_epoch,
            per_epoch,
            None if config.tokens_per_batch else config.batch_size,
            config.tokens_per_batch,
            config.gradient_accumulation_steps,
            arguments.world_size,
            arguments.learning_rate,
            int(arguments.warmup_steps),
            None if last is None else Checkpoint(last).step,
        )

    def plan(
        self,
        models: Sequence[PlannedModel],
        data: Sequence[PlannedData],
        training: PlannedTraining,
        trial: Trial,
        *,
        memory: Mapping[str, float],
        disk: Mapping[str, float],
        notes: Sequence[str] = (),
    ) -> Plan:
        """What the run would do.

        Args:
            models: The trained one last.
            trial: A step of it.
            memory: The parts of its memory besides those of training itself.
            disk: The parts of the disk that it writes besides its result and its checkpoints.
        """
        config = self.config
        seconds = trial.seconds(config.gradient_accumulation_steps)
        left = training.steps - (training.resumed_from or 0)
        of_training = training_memory(trial.trained, activations=trial.activations())
        whole = models[-1].bytes
        more: list[str] = []
        if config.early_stopping_patience is not None:
            more.append("--early-stopping-patience may end it before.")
        if config.torch_compile:
            more.append("The steps were tried without --torch-compile.")
        return Plan(
            self.name,
            self.output_dir,
            models,
            data,
            training,
            Estimate(
                "the peak of each process: what it has at the end of the largest batch's forward pass",
                {**memory, **of_training},
                least=peak_memory(self.device),
            ),
            Estimate(
                "what there is at once, before the checkpoints are removed at the end",
                {
                    "the result": whole,
                    "the best model so far": whole,
                    # A new one is written before an old one is removed.
                    "checkpoints": (config.save_total_limit + 1) * checkpoint_bytes(trial.trained),
                    **disk,
                },
            ),
            Estimate(
                "training, from two steps on a batch of median size: forward and backward passes, without "
                "the optimizer's share and evaluations",
                {"training": left * seconds},
            ),
            notes=(*notes, *more),
        )


def _run_options(config: TrainingOptions) -> list[RunOption]:
    """The options that determine the result of a run."""
    found = []
    for item in fields(config):
        if item.name not in _FREE:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            found.append(RunOption(item.name, flag_of(item), getattr(config, item.name), default))
    return found


def _use_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Train on this GPU alone.

    Without several processes transformers takes the first GPU, whichever was chosen, and trains on all of
    them by nn.DataParallel, which cannot return named terms.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if device.type == "cuda":
        arguments._setup_devices = device
        torch.cuda.set_device(device)


def _transformers_arguments(
    config: TrainingOptions, output_dir: Path, device: torch.device
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output_dir / CHECKPOINTS),
        use_cpu=device.type == "cpu",
        seed=config.seed,
        bf16=computes_bfloat16(device) if config.bf16 is None else config.bf16,
        num_train_epochs=_PLAIN.epochs
        if config.num_train_epochs is None
        else config.num_train_epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        learning_rate=_PLAIN.learning_rate
        if config.learning_rate is None
        else config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        warmup_steps=config.warmup_steps or 0,
        weight_decay=config.weight_decay,
        eval_strategy="steps",
        save_strategy="steps",
        logging_steps=config.logging_steps,
        # The filter would wait for the device at every step; TermTrainer checks for values that are not finite.
        logging_nan_inf_filter=False,
        save_total_limit=config.save_total_limit,
        report_to=tracker_names(config.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_broadcast_buffers=False,  # each process counts the same into its own
        disable_tqdm=True,
    )
