"""Maps from the student's tokens and classes to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.load import TaskData
from ..errors import ModelError
from ..models.source import Source, tokenizer_files


def same_tokenizer(source: Source, other: Source) -> bool:
    """Whether two models have the same tokenizer files.

    Then one is loaded for both: a tokenizer of 250,000 tokens takes 280 MB.
    """
    files, other_files = (
        {path.name: path.read_bytes() for path in tokenizer_files(model)}
        for model in (source, other)
    )
    return files == other_files


def map_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, data: TaskData
) -> Tensor | None:
    """For each of the student's tokens the teacher's id, (V,); None where the tokenizers are the same.

    The student's vocabulary may be a subset of the teacher's, if both tokenise the data's texts alike.

    Raises:
        ModelError: The student has other tokens, or tokenises a text of the data differently.
    """
    if (
        student is teacher
        or student.backend_tokenizer.to_str() == teacher.backend_tokenizer.to_str()
    ):
        return None
    teacher_vocabulary, student_vocabulary = teacher.get_vocab(), student.get_vocab()
    missing = [token for token in student_vocabulary if token not in teacher_vocabulary]
    advice = "Distil with a student made from this teacher, or whose vocabulary was cut from its."
    if missing:
        raise ModelError(
            f"The student has {len(missing)} tokens that the teacher does not have, such as "
            f"{', '.join(map(repr, missing[:5]))}.\n{advice}"
        )
    if student.pad_token_id != teacher.pad_token_id:
        raise ModelError(
            f"The padding token has the id {student.pad_token_id} in the student, and "
            f"{teacher.pad_token_id} in the teacher.\n"
            f"It must keep its id when a vocabulary is cut, since models count positions by it.\n{advice}"
        )
    table = torch.zeros(max(student_vocabulary.values()) + 1, dtype=torch.int64)
    for token, index in student_vocabulary.items():
        table[index] = teacher_vocabulary[token]
    options: Any = {"is_split_into_words": data.task == "token"}
    for split in data.splits.values():
        for batch in split.select_columns(["text"]).iter(1000):
            student_ids = student(batch["text"], **options)["input_ids"]
            teacher_ids = teacher(batch["text"], **options)["input_ids"]
            for text, ids, expected in zip(batch["text"], student_ids, teacher_ids, strict=True):
                if table[torch.tensor(ids)].tolist() != expected:
                    raise ModelError(
                        f"Teacher and student split this text differently: {str(text)[:80]!r}.\n{advice}"
                    )
    return table


def match_classes(student: Sequence[str], teacher: Sequence[str]) -> Tensor:
    """For each class of the student the teacher's id of the same name, (C,).

    Raises:
        ModelError: They have different classes.
    """
    teacher_classes = {name: i for i, name in enumerate(teacher)}
    if set(student) != set(teacher_classes):
        raise ModelError(
            "Teacher and student have different classes.\n"
            f"The student's: {', '.join(student)}.\nThe teacher's: {', '.join(teacher)}."
        )
    return torch.tensor([teacher_classes[name] for name in student])
