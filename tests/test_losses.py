"""Each term against a plain loop in double precision."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor

from kdshrink.losses import (
    Term,
    attention_mse,
    centre,
    centred_log_probabilities,
    group_heads,
    hidden_mse,
    logits_mse,
    soft_cross_entropy,
    task_cross_entropy,
)

LENGTHS = (5, 2, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def padded(values: Tensor, *dimensions: int, extra: int = 3) -> Tensor:
    """`values` with garbage appended along dimensions of length T."""
    for dimension in dimensions:
        shape = list(values.shape)
        shape[dimension] = extra
        values = torch.cat([values, 1e3 * torch.randn(shape)], dimension)
    return values


def more_mask(mask: Tensor, extra: int = 3) -> Tensor:
    return torch.cat([mask, mask.new_zeros(len(mask), extra)], 1)


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def loop_hidden(student: np.ndarray, teacher: np.ndarray) -> float:
    errors = [
        (student[b, t, i] - teacher[b, t, i]) ** 2
        for b, length in enumerate(LENGTHS)
        for t in range(length)
        for i in range(student.shape[2])
    ]
    return sum(errors) / len(errors)


def loop_attention(student: np.ndarray, teacher: np.ndarray, heads: int) -> float:
    own, other = student.shape[1] // heads, teacher.shape[1] // heads
    errors = []
    for b, length in enumerate(LENGTHS):
        for h in range(heads):
            for q in range(length):
                for k in range(length):
                    mine = student[b, h * own : (h + 1) * own, q, k].mean()
                    theirs = teacher[b, h * other : (h + 1) * other, q, k].mean()
                    errors.append((mine - theirs) ** 2)
    return sum(errors) / len(errors)


def loop_soft(pairs: list[tuple[np.ndarray, np.ndarray]], temperature: float) -> float:
    each = [
        -sum(softmax(theirs / temperature) * np.log(softmax(mine / temperature)))
        for mine, theirs in pairs
    ]
    factor = 1.0 if temperature == 1 else temperature**2
    return factor * sum(each) / len(each)


def test_hidden_is_a_mean_over_real_tokens_and_width() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    term = hidden_mse(student, teacher, MASK)
    assert term.mean.item() == pytest.approx(loop_hidden(student.numpy(), teacher.numpy()))
    assert term.count.item() == sum(LENGTHS) * 4
    longer = hidden_mse(padded(student, 1), padded(teacher, 1), more_mask(MASK))
    assert longer.mean.item() == pytest.approx(term.mean.item())


@pytest.mark.parametrize(
    ("student_heads", "teacher_heads", "heads"),
    [(4, 4, 4), (2, 4, 2), (4, 2, 2), (4, 6, 2), (3, 4, 1)],
)
def test_attention_is_a_mean_over_real_pairs_and_heads(
    student_heads: int, teacher_heads: int, heads: int
) -> None:
    student, teacher = torch.randn(3, student_heads, 5, 5), torch.randn(3, teacher_heads, 5, 5)
    term = attention_mse(student, teacher, MASK)
    expected = loop_attention(student.numpy(), teacher.numpy(), heads)
    assert term.mean.item() == pytest.approx(expected)
    assert term.count.item() == sum(length**2 for length in LENGTHS) * heads
    longer = attention_mse(padded(student, 2, 3), padded(teacher, 2, 3), more_mask(MASK))
    assert longer.mean.item() == pytest.approx(term.mean.item())


def test_grouped_heads_are_means_of_neighbours() -> None:
    attention = torch.randn(2, 6, 3, 3)
    grouped = group_heads(attention, 2)
    torch.testing.assert_close(grouped[:, 0], attention[:, :3].mean(1))
    torch.testing.assert_close(grouped[:, 1], attention[:, 3:].mean(1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_cross_entropy_over_examples(temperature: float) -> None:
    student, teacher = torch.randn(3, 7), torch.randn(3, 7)
    term = soft_cross_entropy(student, teacher, temperature)
    pairs = list(zip(student.numpy(), teacher.numpy(), strict=True))
    assert term.mean.item() == pytest.approx(loop_soft(pairs, temperature))
    assert term.count.item() == 3


def test_prediction_over_labelled_tokens() -> None:
    student, teacher = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    labelled = MASK & (torch.rand(3, 5) < 0.6)
    pairs = [
        (student[b, t].numpy(), teacher[b, t].numpy())
        for b in range(3)
        for t in range(5)
        if labelled[b, t]
    ]
    longer = padded(student, 1), padded(teacher, 1)
    soft = soft_cross_entropy(student, teacher, 1.0, labelled)
    assert soft.mean.item() == pytest.approx(loop_soft(pairs, 1.0))
    assert soft.count.item() == len(pairs)
    soft_longer = soft_cross_entropy(*longer, 1.0, more_mask(labelled))
    assert soft_longer.mean.item() == pytest.approx(soft.mean.item())

    mse = logits_mse(student, teacher, labelled)
    expected = sum(((mine - theirs) ** 2).mean() for mine, theirs in pairs) / len(pairs)
    assert mse.mean.item() == pytest.approx(expected)
    mse_longer = logits_mse(*longer, more_mask(labelled))
    assert mse_longer.mean.item() == pytest.approx(mse.mean.item())


def test_logits_mse_over_examples() -> None:
    student, teacher = torch.randn(3, 7), torch.randn(3, 7)
    expected = sum(
        (student[b, c].item() - teacher[b, c].item()) ** 2 for b in range(3) for c in range(7)
    )
    assert logits_mse(student, teacher).mean.item() == pytest.approx(expected / 21)


def test_task_cross_entropy_counts_labels_only() -> None:
    logits = torch.randn(3, 5, 7)
    labels = torch.randint(7, (3, 5)).masked_fill(~MASK, -100)
    each = [
        log(sum(exp(z) for z in logits[b, t].tolist())) - logits[b, t, labels[b, t]].item()
        for b, length in enumerate(LENGTHS)
        for t in range(length)
    ]
    term = task_cross_entropy(logits, labels)
    assert term.mean.item() == pytest.approx(sum(each) / len(each))
    assert term.count.item() == sum(LENGTHS)
    longer = torch.cat([labels, torch.full((3, 3), -100)], 1)
    assert task_cross_entropy(padded(logits, 1), longer).mean.item() == pytest.approx(
        term.mean.item()
    )
    examples = task_cross_entropy(logits[:, 0], labels[:, 0])
    assert examples.mean.item() == pytest.approx((each[0] + each[5] + each[7]) / 3)


def test_identical_inputs_cost_nothing() -> None:
    hidden, attention, logits = torch.randn(3, 5, 4), torch.randn(3, 4, 5, 5), torch.randn(3, 7)
    assert hidden_mse(hidden, hidden, MASK).mean == 0
    assert attention_mse(attention, attention, MASK).mean == 0
    assert logits_mse(logits, logits).mean == 0
    # The soft cross-entropy's least value is the teacher's entropy, where its gradient is 0.
    student = logits.clone().requires_grad_()
    soft_cross_entropy(student, logits, 2.0).mean.backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(logits))


def test_temperature_keeps_the_size_of_gradients() -> None:
    """At a high temperature, t² times the gradient tends to that of half the squared error."""
    teacher = torch.randn(1, 7)
    teacher -= teacher.mean()
    student = torch.randn(1, 7)
    student = (student - student.mean()).requires_grad_()
    soft_cross_entropy(student, teacher, 1000.0).mean.backward()
    expected = (student.detach() - teacher) / 7
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-3)


def test_totals_and_counts_of_parts_add_up_to_the_whole() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    whole = hidden_mse(student, teacher, MASK)
    parts = [
        hidden_mse(student[rows], teacher[rows], MASK[rows])
        for rows in (slice(0, 1), slice(1, None))
    ]
    together = Term(parts[0].total + parts[1].total, parts[0].count + parts[1].count)
    assert together.mean.item() == pytest.approx(whole.mean.item())
    assert (parts[0].mean + parts[1].mean).item() / 2 != pytest.approx(whole.mean.item())


def test_nothing_to_count_is_zero_with_a_gradient_of_zero() -> None:
    none = torch.zeros(3, 5, dtype=torch.bool)
    hidden = torch.randn(3, 5, 4, requires_grad=True)
    attention = torch.rand(3, 2, 5, 5, requires_grad=True)
    loss = (
        hidden_mse(hidden, torch.randn(3, 5, 4), none).mean
        + attention_mse(centre(attention, none), torch.randn(3, 2, 5, 5), none).mean
        + soft_cross_entropy(hidden, torch.randn(3, 5, 4), mask=none).mean
        + logits_mse(hidden, torch.randn(3, 5, 4), none).mean
        + task_cross_entropy(hidden, torch.full((3, 5), -100)).mean
    )
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
    assert not attention.grad.any()


def test_sums_are_float32_whatever_comes_in() -> None:
    student, teacher = (torch.randn(3, 5, 4).bfloat16() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = (
            hidden_mse(student, teacher, MASK),
            logits_mse(student, teacher, MASK),
            soft_cross_entropy(student, teacher, 1.0, MASK),
            task_cross_entropy(student, torch.zeros(3, 5, dtype=torch.long)),
            attention_mse(
                *(x[:, None].expand(3, 2, 5, 4)[..., :1] for x in (student, teacher)), MASK
            ),
        )
    assert {term.total.dtype for term in terms} == {torch.float32}
    expected = loop_hidden(student.float().numpy(), teacher.float().numpy())
    assert terms[0].mean.item() == pytest.approx(expected)


def test_targets_made_in_inference_mode_can_be_learned_from() -> None:
    with torch.inference_mode():
        hidden, attention, logits = torch.randn(3, 5, 4), torch.rand(3, 4, 5, 5), torch.randn(3, 7)
    own = [torch.randn(3, 5, 4), torch.randn(3, 2, 5, 5), torch.randn(3, 7)]
    student = [values.requires_grad_() for values in own]
    loss = (
        hidden_mse(student[0], hidden, MASK).mean
        + attention_mse(student[1], centre(attention, MASK), MASK).mean
        + soft_cross_entropy(student[2], logits).mean
        + logits_mse(student[2], logits).mean
    )
    loss.backward()
    assert all(values.grad is not None and values.grad.any() for values in student)


def test_log_probabilities_centred_are_scores_centred() -> None:
    scores = 4 * torch.randn(3, 2, 5, 5)
    probabilities = scores.masked_fill(~MASK[:, None, None], float("-inf")).softmax(-1)
    found = centred_log_probabilities(probabilities, MASK)
    for b, length in enumerate(LENGTHS):
        row = scores[b, :, :, :length]
        expected = row - row.mean(-1, keepdim=True)
        torch.testing.assert_close(found[b, :, :, :length], expected)
        torch.testing.assert_close(centre(scores, MASK)[b, :, :, :length], expected)


def test_centring_forgets_a_constant_a_query_and_nothing_else() -> None:
    scores = torch.randn(3, 2, 5, 5)
    shifted = scores + torch.randn(3, 2, 5, 1)
    pairs = MASK[:, None, :, None] & MASK[:, None, None, :]
    difference = (centre(shifted, MASK) - centre(scores, MASK)).masked_fill(~pairs, 0.0)
    assert difference.abs().max() < 1e-5
    masked = centre(scores, MASK).masked_fill(~MASK[:, None, None], float("-inf"))
    original = scores.masked_fill(~MASK[:, None, None], float("-inf"))
    torch.testing.assert_close(masked.softmax(-1), original.softmax(-1))


def test_probabilities_of_zero_give_finite_gradients() -> None:
    scores = torch.tensor([[[[0.0, 200.0, -3.0, 50.0, 0.0]]]]).repeat(1, 1, 5, 1).requires_grad_()
    mask = torch.tensor([[True, True, True, True, False]])
    probabilities = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    assert (probabilities == 0).any()
    log_probabilities = centred_log_probabilities(probabilities, mask)
    attention_mse(log_probabilities, torch.zeros(1, 1, 5, 5), mask).mean.backward()
    assert scores.grad.isfinite().all()
