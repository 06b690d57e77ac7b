"""Each term against a plain recomputation, example by example and token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdshrink.distillation import losses
from kdshrink.models.activations import centre, centred_log_probabilities
from kdshrink.training.losses import task_cross_entropy

LENGTHS = (5, 3, 1)


def mask_of(width: int) -> Tensor:
    return torch.tensor([[t < n for t in range(width)] for n in LENGTHS])


def padded(tensor: Tensor, dimensions: tuple[int, ...], extra: int = 4) -> Tensor:
    """The tensor with noise behind it in the token dimensions."""
    for dimension in dimensions:
        shape = list(tensor.shape)
        shape[dimension] = extra
        tensor = torch.cat([tensor, torch.randn(shape) * 100], dimension)
    return tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_hidden_mse() -> None:
    student, teacher = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    squares = [
        (float(student[b, t, i]) - float(teacher[b, t, i])) ** 2
        for b, n in enumerate(LENGTHS)
        for t in range(n)
        for i in range(6)
    ]
    expected = sum(squares) / len(squares)
    assert float(
        losses.hidden_mse(student, teacher, losses.counted_tokens(mask_of(5))).mean
    ) == pytest.approx(expected)
    wide = padded(student, (1,)), padded(teacher, (1,))
    assert float(losses.hidden_mse(*wide, losses.counted_tokens(mask_of(9))).mean) == pytest.approx(
        expected
    )


def test_attention_mse() -> None:
    student, teacher = torch.randn(3, 2, 5, 5), torch.randn(3, 2, 5, 5)
    squares = [
        (float(student[b, h, q, k]) - float(teacher[b, h, q, k])) ** 2
        for b, n in enumerate(LENGTHS)
        for h in range(2)
        for q in range(n)
        for k in range(n)
    ]
    expected = sum(squares) / len(squares)
    assert float(
        losses.attention_mse(student, teacher, losses.counted_pairs(mask_of(5))).mean
    ) == pytest.approx(expected)
    wide = padded(student, (2, 3)), padded(teacher, (2, 3))
    assert float(
        losses.attention_mse(*wide, losses.counted_pairs(mask_of(9))).mean
    ) == pytest.approx(expected)


def test_unequal_heads_are_averaged_in_groups() -> None:
    student, teacher = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 5)
    two = student.reshape(3, 2, 2, 5, 5).mean(2), teacher.reshape(3, 2, 3, 5, 5).mean(2)
    got = losses.attention_mse(student, teacher, losses.counted_pairs(mask_of(5))).mean
    assert float(got) == pytest.approx(
        float(losses.attention_mse(*two, losses.counted_pairs(mask_of(5))).mean)
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_cross_entropy(temperature: float) -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)

    def softmax(row: Tensor) -> list[float]:
        exponents = [math.exp(float(x) / temperature) for x in row]
        return [x / sum(exponents) for x in exponents]

    each = [
        -sum(p * math.log(q) for p, q in zip(softmax(t), softmax(s), strict=True))
        for s, t in zip(student, teacher, strict=True)
    ]
    scale = 1.0 if temperature == 1 else temperature**2
    got = losses.soft_cross_entropy(student, teacher, temperature).mean
    assert float(got) == pytest.approx(scale * sum(each) / 4, rel=1e-5)


def test_token_terms_count_labelled_tokens_only() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 3], labels[1, 2] = 2, 0, 3
    at = [(0, 1), (0, 3), (1, 2)]
    rows = [(student[i], teacher[i], int(labels[i])) for i in at]
    soft = [float(-(t.softmax(-1) * s.log_softmax(-1)).sum()) for s, t, _ in rows]
    squares = [float(((s - t) ** 2).mean()) for s, t, _ in rows]
    hard = [-float(s.log_softmax(-1)[y]) for s, _, y in rows]
    scored = labels != -100
    assert float(losses.soft_cross_entropy(student, teacher, 1.0, scored).mean) == pytest.approx(
        sum(soft) / 3, rel=1e-5
    )
    assert float(losses.logits_mse(student, teacher, scored).mean) == pytest.approx(
        sum(squares) / 3
    )
    assert float(task_cross_entropy(student, labels).mean) == pytest.approx(sum(hard) / 3)


def test_nothing_to_count_is_zero() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    term = task_cross_entropy(logits, torch.full((2, 3), -100)).mean
    term.backward()
    assert float(term) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_log_probabilities_and_scores_agree_once_centred() -> None:
    mask = mask_of(5)
    scores = torch.randn(3, 2, 5, 5) * 3
    keys = mask[:, None, None, :]
    probabilities = scores.masked_fill(~keys, -1e9).softmax(-1)
    pairs = (keys & mask[:, None, :, None]).expand(3, 2, 5, 5)
    got = centred_log_probabilities(probabilities, mask)
    torch.testing.assert_close(got[pairs], centre(scores, mask)[pairs], atol=1e-5, rtol=1e-5)
