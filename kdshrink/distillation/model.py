"""The module that is trained: a student with its projections, which computes the loss terms."""

from __future__ import annotations

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

    The objective is TinyBERT's (Jiao et al. 2020, eq. 7 to 11) plus the task loss:

        L = L_emb + L_hid + L_attn + L_pred + L_task

    where `objective` weights each term. Hidden states of all layers share one projection W_h, and the
    embedding output has another, W_e. Both are trained, and discarded after training.

    Args:
        student: The model to train.
        recorder: Records the student's own layers.
        objective: Weights, temperature and kinds of the terms.
        teacher_width: Hidden size of the teacher.
        task: The task of the student's head; None for a bare encoder, which has neither prediction nor
            task term.
        basis: Initial weight of both projections, (teacher's width, student's width), for a calibrated
            student; None draws them at random.
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
        """The unweighted terms of a batch's loss, as scalars; a term of weight 0 is 0 and not computed.

        Args:
            input_ids, attention_mask: (B, T).
            targets: The teacher's, of the same batch.
            labels: (B,), or (B, T) with -100 where there is none.
        """
        output, student = self.recorder(input_ids=input_ids, attention_mask=attention_mask)
        teacher = targets.activations
        mask = attention_mask.bool()
        zero = mask.new_zeros((), dtype=torch.float32)
        terms = dict.fromkeys(LOSS_TERMS, zero)
        if student.embedding is not None and teacher.embedding is not None:
            projected = self.embedding_projection(student.embedding)
            terms["embedding"] = losses.hidden_mse(projected, teacher.embedding, mask).mean
        for state, target in zip(student.hidden, teacher.hidden, strict=True):
            projected = self.hidden_projection(state)
            terms["hidden"] = terms["hidden"] + losses.hidden_mse(projected, target, mask).mean
        for scores, target in zip(student.attention, teacher.attention, strict=True):
            if targets.centred and not self.recorder.centred:
                scores = centre(scores, mask)
            elif self.recorder.centred and not targets.centred:
                target = centre(target, mask)
            terms["attention"] = (
                terms["attention"] + losses.attention_mse(scores, target, mask).mean
            )
        if targets.logits is not None and self.objective.weight("prediction"):
            examples = None if self.task == "sequence" else scored_tokens(mask, labels)
            if self.objective.prediction_loss == "mse":
                term = losses.logits_mse(output.logits, targets.logits, examples)
            else:
                term = losses.soft_cross_entropy(
                    output.logits, targets.logits, self.objective.temperature, examples
                )
            terms["prediction"] = term.mean
        if labels is not None and self.objective.weight("task"):
            terms["task"] = task_cross_entropy(output.logits, labels).mean
        return terms


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
