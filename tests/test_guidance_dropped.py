"""A guide whose batch shrinks on the way, as where weak candidates are dropped."""

import torch

from tastemaker.guidance.guide import Guide
from tastemaker.guidance.tap import Step


def test_rows_that_are_dropped_change_nothing_for_the_others():
    """Their gradients have faded since the first step, each to another share of what it was."""
    kept = [2, 0]
    x0 = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    usual, faded = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.1, 0.1, 0.1])

    def guided(strengths, rows, drop):
        def scorer(images):
            return scorer.strength * images[:, 0].mean((1, 2))

        guide = Guide([(scorer, 1.0)], lambda z: torch.sigmoid(z[:, :3]))
        for index, strength in enumerate(strengths):
            now = rows if index == 0 or not drop else kept
            if drop and index == 1:
                guide.keep(kept)
            scorer.strength = strength[now]
            guide(Step(x0[now], 0.8, 1.0, index, None))
        return guide.record.rows[-1].push

    found = guided([usual, faded], [0, 1, 2], drop=True)
    wanted = guided([usual, faded], kept, drop=False)
    torch.testing.assert_close(found, wanted)
    assert found[0] < 0.5 * found[1]  # and so they were not taken for one another, nor for new ones
