"""What the recipes decide, and that options decide before them."""

from __future__ import annotations

import pytest

from kdshrink.config.recipes import RECIPES


@pytest.mark.parametrize(
    ("recipe", "per_epoch", "steps"),
    [
        ("paper", 10, 300),
        ("paper", 18_711, 561_330),
        ("best", 10, 300),
        ("best", 666, 19_980),
        ("best", 18_711, 20_000),
    ],
)
def test_steps_fit_the_data(recipe: str, per_epoch: int, steps: int) -> None:
    assert RECIPES[recipe].steps(per_epoch) == steps


def test_narrow_students_learn_faster_by_the_best_recipe_alone() -> None:
    rates = [RECIPES["best"].learning_rate_of(width) for width in (1024, 768, 384, 192)]
    assert rates == pytest.approx([5e-5, 5e-5, 1e-4, 2e-4])
    assert {RECIPES["paper"].learning_rate_of(width) for width in (768, 192)} == {5e-5}
