"""What `kdshrink distill` reads: the models, and the data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..config.commands import DistillConfig
from ..config.fields import LOSS_TERMS
from ..config.recipes import RECIPES, Init
from ..data.encoding import as_words
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..data.registry import Task
from ..data.request import ColumnChoice, DataRequest, Sampling
from ..distillation.student import check_base
from ..errors import DataError, UnlabelledError, UsageError
from ..evaluation.evaluator import check_labels
from ..exporting.libraries import require_onnx
from ..models.architectures import can_be, family_of
from ..models.loading import load_tokenizer, require_task
from ..models.source import Source, find_classifier, find_model
from ..models.whole import check_whole
from ..training.checkpoints import Identity
from .export import check_exportable
from .inputs import data_request
from .options import access_of
from .training import TrainingCommand

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
Command = TrainingCommand[DistillConfig]


@dataclass(frozen=True)
class Models:
    """The models that a distillation reads.

    Attributes:
        tokenizer: The teacher's tokenizer.
        init: How the student is initialized; of no use where one is given.
        base: The model that --init from-base copies weights from; None if none is needed.
    """

    teacher: Source
    tokenizer: PreTrainedTokenizerBase
    student: Source | None
    init: Init
    base: Source | None


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        unlabelled: The texts of --unlabelled.
        test: The test split in all its languages, for --compare.
    """

    models: Models
    data: TaskData
    unlabelled: TaskData | None
    test: TaskData | None
    identity: Identity

    @property
    def teacher(self) -> Source:
        return self.models.teacher


def read_inputs(command: Command) -> Inputs:
    """Find the models and read the data."""
    config = command.config
    if config.export is not None:
        require_onnx()
    request = data_request(config)
    models = _find_models(config, is_over=command.is_over)
    named = {"teacher": models.teacher, "student": models.student}
    if config.base is not None:
        named["base"] = models.base
    identity = command.identify({role: one for role, one in named.items() if one is not None})
    data = _load_data(config, request, models.teacher)
    if config.export is not None:
        check_exportable(models.teacher)
        if data.labels is None:
            raise UnlabelledError(
                f"--export: {data.name} has no labels, so the predictions of its graphs cannot be scored.\n"
                "Leave it out, and export the student with kdshrink export and labelled data."
            )
    unlabelled = _load_unlabelled(config, data.task)
    identity = identity.with_data(
        data.reference, None if unlabelled is None else unlabelled.reference
    )
    compares = _comparing(config) and models.teacher.task is not None and data.labels is not None
    test = _test_data(config) if compares and not command.is_over else None
    return Inputs(models, data, unlabelled, test, identity)


def _find_models(config: DistillConfig, *, is_over: bool) -> Models:
    """Find the models, but not the recorded base of a run that is over: no identity has it."""
    renamed = read_label_map(config.label_map)
    teacher = find_classifier(config.teacher, access_of(config), renamed)
    family_of(teacher.config, "distilled")
    init = config.init or _usual_init(config, teacher)
    if config.student is None:
        family_of(teacher.config, "calibrated" if init == "calibrated" else "shrunk")
    _check_terms(config, teacher)
    check_whole(teacher, teacher.task)
    tokenizer = load_tokenizer(teacher)
    student = base = None
    if config.student is not None:
        student = find_model(config.student, teacher.access).renamed(renamed)
    if config.init == "from-base" and (config.base is not None or not is_over):
        base = find_model(_name_of_base(config, teacher), teacher.access)
        check_base(base, teacher, tokenizer)
    return Models(teacher, tokenizer, student, init, base)


def _usual_init(config: DistillConfig, teacher: Source) -> Init:
    """What the student is made from where --init does not say: as the recipe has it, if that is possible."""
    init = RECIPES[config.recipe].init
    if init != "calibrated" or config.student is not None:
        return init
    reason = None
    if config.shard_teacher:
        reason = "a teacher that is spread over processes"
    elif not can_be(teacher.config, "calibrated"):
        reason = f"a model of type {teacher.config.get('model_type')!r}"
    if reason is None:
        return init
    logger.warning("%s cannot be calibrated: the student starts as a copy", reason)
    return "from-teacher"


def _check_terms(config: DistillConfig, teacher: Source) -> None:
    possible = LOSS_TERMS if teacher.task else ("embedding", "hidden", "attention")
    if not any(config.weight(term) for term in possible):
        raise UsageError(
            "--weight: every term of the loss that this teacher has targets for has weight 0.\n"
            f"Give one of {', '.join(possible)} a weight."
        )


def _name_of_base(config: DistillConfig, teacher: Source) -> str:
    name = config.base or teacher.record.base
    if not name:
        raise UsageError(
            f"--init from-base: nothing says which model {teacher.name} was fine-tuned from.\n"
            "Name it with --base."
        )
    return str(name)


def _load_data(config: DistillConfig, request: DataRequest, teacher: Source) -> TaskData:
    """The training and validation data; labels are required unless the task term has weight 0.

    Raises:
        DataError: The teacher is for another task or other labels.
    """
    labelled = config.weight("task") > 0 and teacher.task is not None
    try:
        data = load_data(
            request,
            SPLITS,
            purpose="train",
            labels="required" if labelled else "optional",
            token=config.token,
        )
    except UnlabelledError as error:
        raise UnlabelledError(
            f"{error}\nTo distil without labels, switch off their term: --weight task=0."
        ) from error
    if teacher.task is not None:
        require_task(teacher, data.task)
        if data.labels is not None:
            check_labels(data, teacher)
    return data


def _load_unlabelled(config: DistillConfig, task: Task) -> TaskData | None:
    """The texts of --unlabelled, as words for a token task."""
    if config.unlabelled is None:
        return None
    same = config.unlabelled == config.data
    request = replace(
        data_request(config, name="unlabelled", languages=config.unlabelled_languages or ("all",)),
        data_dir=config.data_dir if same else None,
        columns=ColumnChoice(text=config.text_column if same else None),
        sampling=Sampling(),
    )
    data = load_data(request, ("train",), purpose="train", labels="unused", token=config.token)
    if data.task == task:
        return data
    if task == "sequence":
        raise DataError(
            f"--unlabelled {config.unlabelled}: its texts are lists of words, and those of --data are not.\n"
            "Give texts as strings."
        )
    return replace(data, task=task, splits={"train": as_words(data.splits["train"])})


def _test_data(config: DistillConfig) -> TaskData:
    """The test split in all its languages.

    Raises:
        DataError: The data is a single file, which has none.
    """
    everything = data_request(config, languages=("all",))
    test = load_data(everything, ("test",), purpose="evaluate", token=config.token)
    if test.whole_file:
        raise DataError(
            f"--compare: {test.name} is a single file, all of which is trained on.\n"
            "Give a directory with a test split, or compare after the run, with kdshrink zero-shot."
        )
    return test


def _comparing(config: DistillConfig) -> bool:
    if config.compare is None:
        return config.data == "sample" and not config.shard_teacher
    return config.compare
