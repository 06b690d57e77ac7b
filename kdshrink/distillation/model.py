"""The module that is trained: a student with its projections, which computes the loss terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config.fields import LOSS_TERMS
from ..data.encoding import IGNORED
from ..models.activations import Recorder, centre
from ..training.losses import task_cross_entropy
from . import losses
from .objective import Objective
from .teacher import Targets


class DistillationModel(nn.Module):
    """A student with projections to the teacher's width; its forward pass gives the loss terms.

    Args:
        student: The model to train.
        recorder: Records the student's own layers.
        objective: Weights, temperature and kinds of the terms.
        teacher_width: Hidden size of the teacher.
        task: The task of the student's head; None for a bare encoder, which has neither prediction nor
            task term.
        basis: As in `LossTerms`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        recorder: Recorder,
        objective: Objective,
        teacher_width: int,
        task: str | None,
        basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.recorder = recorder
        self.objective = objective
        self.task = task
        widths = student.config.hidden_size, teacher_width
        self.terms = LossTerms(
            objective, *widths, task, basis, stacked_bytes=recorder.execution.stacked_bytes
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Targets,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms of a batch's loss, as scalars; a term of weight 0 is 0 and not computed.

        Args:
            input_ids, attention_mask: (B, T).
            targets: The teacher's, of the same batch.
            labels: (B,), or (B, T) with -100 where there is none.
        """
        output, activations = self.recorder(input_ids=input_ids, attention_mask=attention_mask)
        logits = None if self.task is None else output.logits
        student = Targets(activations, logits, self.recorder.centred)
        return self.terms(student, targets, attention_mask.bool(), labels)


class LossTerms(nn.Module):
    """The objective: TinyBERT's (Jiao et al. 2020, eq. 7 to 11) plus the task loss.

        L = L_emb + L_hid + L_attn + L_pred + L_task

    where `objective` weights each term. Hidden states of all layers share one projection W_h, and the
    embedding output has another, W_e. Both are trained, and discarded after training.

    Args:
        objective: Weights, temperature and kinds of the terms.
        width, teacher_width: Hidden sizes of student and teacher.
        task: The task of the student's head, or None.
        basis: Initial weight of both projections, (teacher's width, student's width), for a calibrated
            student; None draws them at random.
        stacked_bytes: As in `Execution`.
    """

    def __init__(
        self,
        objective: Objective,
        width: int,
        teacher_width: int,
        task: str | None,
        basis: Tensor | None,
        *,
        stacked_bytes: int,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.task = task
        self.stacked_bytes = stacked_bytes
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
        self, student: Targets, teacher: Targets, mask: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms, as `DistillationModel` gives them.

        Args:
            student, teacher: What was recorded of both.
            mask: (B, T), true at non-padding tokens.
            labels: (B,), or (B, T) with -100 where there is none.
        """
        states, targets = student.activations, teacher.activations
        terms = dict.fromkeys(LOSS_TERMS, mask.new_zeros((), dtype=torch.float32))
        if states.embedding is not None or states.hidden:
            tokens = losses.counted_tokens(mask)
        if states.embedding is not None and targets.embedding is not None:
            projected = self.embedding_projection(states.embedding)
            terms["embedding"] = losses.hidden_mse(projected, targets.embedding, tokens).mean
        for state, target in self._layers(states.hidden, targets.hidden):
            projected = self.hidden_projection(state)
            terms["hidden"] = terms["hidden"] + losses.hidden_mse(projected, target, tokens).mean
        if states.attention:
            pairs = losses.counted_pairs(mask)
        for scores, target in self._layers(states.attention, targets.attention):
            if teacher.centred and not student.centred:
                scores = centre(scores, mask)
            elif student.centred and not teacher.centred:
                target = centre(target, mask)
            term = losses.attention_mse(scores, target, pairs)
            terms["attention"] = terms["attention"] + term.mean
        if student.logits is None:
            return terms
        if teacher.logits is not None and self.objective.weight("prediction"):
            terms["prediction"] = self._prediction(student.logits, teacher.logits, mask, labels)
        if labels is not None and self.objective.weight("task"):
            terms["task"] = task_cross_entropy(student.logits, labels).mean
        return terms

    def _prediction(
        self, student: Tensor, teacher: Tensor, mask: Tensor, labels: Tensor | None
    ) -> Tensor:
        examples = None if self.task == "sequence" else scored_tokens(mask, labels)
        if self.objective.prediction_loss == "mse":
            return losses.logits_mse(student, teacher, examples).mean
        temperature = self.objective.temperature
        return losses.soft_cross_entropy(student, teacher, temperature, examples).mean

    def _layers(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What the layers are compared as, student's and teacher's: each alone, or all in a stack.

        A GPU copies small layers in less time than the host takes to ask for each one's operations.
        """
        assert len(student) == len(teacher)
        size = sum(layer.numel() * layer.element_size() for layer in student)
        if 0 < size <= self.stacked_bytes:
            yield torch.stack(tuple(student)), torch.stack(tuple(teacher))
        else:
            yield from zip(student, teacher, strict=True)


def scored_tokens(mask: Tensor, labels: Tensor | None) -> Tensor:
    """(B, T), true where the logits of a token task count: at an example's labelled tokens.

    Of an example without any label it is all non-padding tokens.

    Args:
        mask: (B, T), true at non-padding tokens.
        labels: (B, T), -100 where there is none; or None for no labels at all.
    """
    if labels is None:
        return mask
    labelled = labels != IGNORED
    return labelled | (mask & ~labelled.any(1, keepdim=True))
