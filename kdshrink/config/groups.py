"""Groups of options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from .fields import (
    LOSS_TERMS,
    Bounds,
    check_number,
    comma_list,
    kebab,
    option,
    require,
    shown,
    weight_mapping,
)


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    token: str | None = option(
        "Hub token; by default HF_TOKEN or the saved login.", None, secret=True
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(TokenOptions):
    revision: str | None = option("Revision (branch, tag or commit) of the model on the Hub.", None)
    trust_remote_code: bool = option("Run code that comes with the model. Off by default.", False)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    data: str | None = option(
        "massive, tsm, universal-ner, sample, a Hub id, or a local file or directory.", None
    )
    data_dir: Path | None = option(
        "Read a named data set from DIR/<language>/<split>.{jsonl,csv,parquet,iob2} instead of the Hub.",
        None,
    )
    languages: tuple[str, ...] | None = option(
        "Languages to use, such as de,fr; or seen, unseen, english or all.", None, parse=comma_list
    )
    seen_languages: tuple[str, ...] | None = option(
        "Languages that count as seen, in place of the data set's list.", None, parse=comma_list
    )
    unseen_languages: tuple[str, ...] | None = option(
        "Languages that count as unseen, in place of the data set's list.",
        None,
        parse=comma_list,
    )
    train_fraction: float = option(
        "Share of the training data to use, stratified by label within each language.",
        1.0,
        bounds=Bounds(above=0, most=1),
    )
    max_samples: int | None = option(
        "Use at most this many examples of each language and split; every command draws the same ones.",
        None,
        bounds=Bounds(least=1),
    )
    max_eval_samples: int | None = option(
        "Like --max-samples, but only for validation and test.", None, bounds=Bounds(least=1)
    )
    text_column: str | None = option("Column with the text, or with the list of words.", None)
    label_column: str | None = option("Column with the label, or with the list of tags.", None)
    language_column: str | None = option("Column with the language of each example.", None)
    label_map: Path | None = option(
        'JSON file of new label names, {"old": "new", …}, for the data and for the model.', None
    )
    separator: str | None = option(
        "Separator of CSV and TSV fields: a character, or tab, comma or semicolon; by default a comma, and a tab "
        "without quoting in .tsv.",
        None,
        blank=True,
    )
    encoding: str | None = option("Encoding of text files; UTF-8 by default.", None)
    task: Literal["sequence", "token"] | None = option(
        "Task of custom data: sequence (one label per text) or token (one tag per word); by default inferred from "
        "the data.",
        None,
    )
    max_length: int = option(
        "Truncate texts to this many tokens, special tokens included.", 512, bounds=Bounds(least=3)
    )

    def __post_init__(self) -> None:
        require(
            self.separator is None
            or self.separator in ("tab", "\\t", "comma", "semicolon")
            or (len(self.separator) == 1 and self.separator not in '\r\n"'),
            "--separator",
            repr(self.separator),
            "it must be one character, or tab, comma or semicolon",
        )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    output_dir: Path | None = option(
        "Directory of the result; by default named after the model and the options.",
        None,
        flags=("-o", "--output-dir"),
    )
    overwrite: bool = option("Replace what kdshrink wrote to OUTPUT_DIR.", False)


_HUB_ID = re.compile(r"(?!.*(--|\.\.))(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b(?<!\.git)", re.ASCII)
"""As huggingface_hub's validate_repo_id, which is too slow to import here."""


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    hub_model_id: str | None = option(
        "Repository on the Hub, ORG/NAME; by default the directory's name in your own account.",
        None,
    )
    private: bool = option("Make the repository private when it is created.", False)
    hub_revision: str | None = option("Branch to push to; created if it does not exist.", None)
    create_pr: bool = option("Open a pull request instead of pushing to the branch.", False)

    def __post_init__(self) -> None:
        name = self.hub_model_id
        if name is not None and not _HUB_ID.fullmatch(name):
            raise UsageError(
                f"--hub-model-id {shown(name)}: this cannot be a repository's name on the Hub.\n"
                "Give ORG/NAME, of letters, digits, '-', '_' and '.'."
            )
        if self.create_pr and self.hub_revision is not None:
            raise UsageError(
                f"--create-pr and --hub-revision {self.hub_revision} exclude each other: a pull "
                "request is made against main."
            )


@dataclass(frozen=True, kw_only=True)
class HubOptions(HubTarget, TokenOptions):
    push_to_hub: bool = option("Push the result to the Hub when it is complete on disk.", False)

    def __post_init__(self) -> None:
        for item in fields(HubTarget):
            if getattr(self, item.name) and not self.push_to_hub:
                raise UsageError(f"--{kebab(item.name)} needs --push-to-hub.")


LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""


def check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device, re.ASCII):
        raise UsageError(
            f"--device {shown(device)}: kdshrink runs only on CPU and CUDA.\n"
            "Give auto, cpu, cuda or cuda:N."
        )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    seed: int = option("Random seed.", 42, bounds=Bounds(least=0, most=LARGEST_SEED))
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")

    def __post_init__(self) -> None:
        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DeviceOptions):
    bf16: bool | None = option("Train in bfloat16; by default on CUDA but not on CPU.", None)
    num_train_epochs: float | None = option(
        "Number of passes over the training data; by default 30, and with distill's best recipe as many as "
        "20,000 steps allow.",
        None,
        bounds=Bounds(above=0),
    )
    max_steps: int | None = option(
        "Number of optimizer steps, in place of epochs.", None, bounds=Bounds(least=1)
    )
    learning_rate: float | None = option(
        "Peak learning rate of the linear schedule; 5e-5 by default, and with distill's best recipe higher for "
        "students narrower than 768, in inverse proportion to their width.",
        None,
        bounds=Bounds(above=0),
    )
    batch_size: int = option(
        "Per-device batch size.",
        32,
        flags=("--batch-size", "--per-device-train-batch-size"),
        bounds=Bounds(least=1),
    )
    tokens_per_batch: int | None = option(
        "Fill each batch up to this many tokens, padding included, instead of with --batch-size examples.",
        None,
        bounds=Bounds(least=1),
    )
    batches: Literal["by-length", "random"] = option(
        "by-length: batches of examples of similar length, which saves padding; random: batches of any lengths.",
        "by-length",
    )
    torch_compile: bool = option(
        "Compile the trained model, and pad batches to a few lengths; a speed-up was not measured.",
        False,
    )
    gradient_accumulation_steps: int = option(
        "Number of batches per optimizer step.", 1, bounds=Bounds(least=1)
    )
    warmup_steps: int | None = option(
        "Number of warm-up steps, over which the learning rate rises linearly; by default none, and with "
        "distill's best recipe a tenth of all.",
        None,
        bounds=Bounds(least=0),
    )
    weight_decay: float = option("AdamW's weight decay.", 0.0, bounds=Bounds(least=0))
    dropout: float | None = option(
        "Dropout rate in training; by default the model's own, or 0 for a calibrated model and with distill's "
        "best recipe.",
        None,
        bounds=Bounds(least=0, below=1),
    )
    eval_steps: int | None = option(
        "Evaluate every this many steps; after each epoch by default.", None, bounds=Bounds(least=1)
    )
    save_steps: int | None = option(
        "Save a checkpoint every this many steps; after each epoch by default.",
        None,
        bounds=Bounds(least=1),
    )
    logging_steps: int = option("Log the loss every this many steps.", 50, bounds=Bounds(least=1))
    save_total_limit: int = option(
        "Number of checkpoints to keep for --resume.", 1, bounds=Bounds(least=1)
    )
    early_stopping_patience: int | None = option(
        "Stop after this many evaluations without a better score.", None, bounds=Bounds(least=1)
    )
    report_to: str = option(
        "Trackers to report to, such as tensorboard or wandb, by their names in transformers; or all.",
        "none",
    )
    resume: bool = option(
        "Continue from OUTPUT_DIR's last checkpoint; start anew if there is none.", False
    )

    def __post_init__(self) -> None:
        if self.tokens_per_batch is not None and self.batches == "random":
            raise UsageError(
                "--tokens-per-batch and --batches random exclude each other: the number of batches per "
                "epoch would be random.\nGive --batch-size with --batches random."
            )


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    layers: int | None = option("Number of layers of the student.", None, bounds=Bounds(least=1))
    layer_map: str | None = option(
        "Which of the teacher's layers to take: uniform (i·N/M, the default), first, last, distilbert, "
        "or a list such as 2,5,8,12 (1-based).",
        None,
    )
    hidden_size: int | None = option(
        "Hidden size of the student: evenly spaced dimensions of the teacher's, unless calibrated.",
        None,
        bounds=Bounds(least=1),
    )
    intermediate_size: int | None = option(
        "FFN size of the student; by default in proportion to the hidden size.",
        None,
        bounds=Bounds(least=1),
    )
    attention_heads: int | None = option(
        "Number of attention heads in each layer of a narrower, calibrated student: the most important of the "
        "teacher's. Fewer are faster. By default as many as the teacher has, each narrower.",
        None,
        bounds=Bounds(least=1),
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    calibration_samples: int = option(
        "Number of training texts per language that --init calibrated reads.",
        400,
        bounds=Bounds(least=1),
    )
    calibration_multilingual: float = option(
        "Sentences in 40 languages that ship with kdshrink and are read too, for languages that those texts "
        "lack, as a share of them, at most 50 a language; 0 for a monolingual model.",
        1.0,
        bounds=Bounds(least=0, most=10),
    )
    calibration_copies: float = option(
        "Noised copies, with tokens replaced at random, to add to all of these, as a share of them; 0.5 helps "
        "languages without texts where --calibration-multilingual is 0.",
        0.0,
        bounds=Bounds(least=0, most=10),
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    weights: Mapping[str, float] = option(
        "TERM=NUMBER, repeatable: the weight of a term of the loss (embedding, hidden, attention, "
        "prediction, task); 1 by default, 0 switches it off.",
        dict,
        flags=("--weight",),
        parse=weight_mapping,
        repeatable=True,
        metavar="TERM=NUMBER",
    )
    attention_target: Literal["scores", "probabilities"] = option(
        "What the attention term matches: the probabilities, or the scores before the softmax (for DeBERTa, "
        "minus their mean over the keys). Where head counts differ, adjacent heads are averaged in groups, so "
        "that both models have the greatest common divisor of the counts.",
        "probabilities",
    )
    prediction_loss: Literal["soft-ce", "mse"] = option(
        "Loss of the prediction term: soft cross-entropy, or mean squared error of the logits.",
        "soft-ce",
    )
    temperature: float = option(
        "Temperature of the soft cross-entropy; the term is scaled by its square.",
        1.0,
        bounds=Bounds(above=0),
    )

    def __post_init__(self) -> None:
        for term, weight in self.weights.items():
            require(
                term in LOSS_TERMS,
                "--weight",
                f"{term}={weight}",
                f"the terms are {', '.join(LOSS_TERMS)}",
            )
            check_number(f"--weight {term}", weight, float, Bounds(least=0))

    def weight(self, term: str) -> float:
        """The weight of a term of the loss."""
        return self.weights.get(term, 1.0)


PRECISIONS = ("fp32", "fp16", "int8")
"""What a graph can be written in, in the order in which that is done."""


def check_precisions(flag: str, names: tuple[str, ...] | None) -> None:
    for name in names or ():
        require(name in PRECISIONS, flag, name, f"it is one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    max_drop: float = option(
        "Points (of 100) of the task's F1 that fp16 and int8 may each lose on the development split, pooled and "
        "in each language.",
        0.5,
        bounds=Bounds(least=0, most=100),
    )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(DeviceOptions):
    split: str | None = option("Split to evaluate; by default test, or all of a single file.", None)
    batch_size: int | None = option(
        "Largest batch size; by default what suits the device. Scores do not depend on it.",
        None,
        bounds=Bounds(least=1),
    )

    def __post_init__(self) -> None:
        require(
            self.split is None or re.fullmatch(r"\w[\w.-]*", self.split) is not None,
            "--split",
            self.split,
            "the name of a split has only letters, digits, '_', '-' and '.'",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ScoringOptions):
    backend: Literal["torch", "onnx", "onnx:fp16", "onnx:int8"] = option(
        "What runs the model: torch, or onnxruntime on what export wrote, in fp32, fp16 or int8.",
        "torch",
    )
    output_dir: Path | None = option(
        "Also write the result to this directory, as kdshrink.json.",
        None,
        flags=("-o", "--output-dir"),
    )
    overwrite: bool = option(
        "Replace a result in OUTPUT_DIR, and the file of --predictions.", False
    )

    def __post_init__(self) -> None:
        require(
            self.backend == "torch" or self.device in ("auto", "cpu"),
            "--device",
            self.device,
            f"--backend {self.backend} runs on the CPU",
        )
