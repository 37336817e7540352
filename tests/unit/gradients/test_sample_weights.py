"""Which sample a row belongs to: what is known is used, what is not is refused."""

import pytest
import torch
from torch import nn

from debias.gradients import SamplesNotFirst
from debias.gradients.samples import Flattened, SampleWeights, enclosing

W = torch.tensor([0.5, 0.25, 0.0])
INDEX = torch.tensor([[0, 0, 1, 1, 1, 2, -1]])
TWO_ROWS = torch.tensor([[0, 0, 1, -1], [2, 2, 2, 1]])
OF_INDEX = [0.5, 0.5, 0.25, 0.25, 0.25, 0.0, 0.0]
OF_TWO_ROWS = [0.5, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.25]


@pytest.mark.parametrize(
    ("index", "leading", "flattened", "want"),
    [
        (None, [3], None, W.tolist()),
        (None, [3, 4], None, W.tolist()),
        (None, [3, 4, 5], None, W.tolist()),
        (None, [12], (3, 4), [0.5] * 4 + [0.25] * 4 + [0.0] * 4),
        (None, [3, 4], (3, 4), W.tolist()),
        (None, [3], (3, 1), W.tolist()),
        (INDEX, [1, 7], None, [OF_INDEX]),
        (INDEX, [1, 7, 5], None, [OF_INDEX]),
        (INDEX, [7], None, OF_INDEX),
        (INDEX, [7], (1, 7), OF_INDEX),
        (TWO_ROWS, [2, 4], None, [OF_TWO_ROWS[:4], OF_TWO_ROWS[4:]]),
        (TWO_ROWS, [8], (2, 4), OF_TWO_ROWS),
    ],
)
def test_the_weight_of_each_row(index, leading, flattened, want):
    found = SampleWeights(W, index).of(leading, flattened, "x")
    assert found.tolist() == want


@pytest.mark.parametrize(
    ("index", "leading", "flattened"),
    [
        (None, [4], None),
        (None, [12], None),  # three samples of four tokens, or four of three: nobody said
        (None, [4, 3], None),
        (None, [12], (4, 3)),
        (None, [12], (2, 6)),
        (None, [3], (3, 4)),
        (INDEX, [3], None),
        (INDEX, [7, 1], None),
        (INDEX, [1, 6], None),
        (TWO_ROWS, [8], None),  # row after row, or token after token: nobody said
        (TWO_ROWS, [8], (4, 2)),
        (TWO_ROWS, [4, 2], None),
    ],
)
def test_what_is_not_known_is_refused(index, leading, flattened):
    with pytest.raises(
        SamplesNotFirst, match=r"single_pass: x saw .* rows while the loss has 3 samples.*shared_forward"
    ):
        SampleWeights(W, index).of(leading, flattened, "x")


@pytest.mark.parametrize("index", [None, INDEX, TWO_ROWS])
def test_a_tensor_without_rows_is_refused(index):
    with pytest.raises(SamplesNotFirst, match=r"single_pass: x read a tensor of one dimension, which no sample has"):
        SampleWeights(W, index).of([], None, "x")


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (torch.tensor([[0, 1, 3]]), r"sample_index holds 0 to 3; expected -1 \(padding\) to 2"),
        (torch.tensor([[0, -2, 1]]), r"sample_index holds -2 to 1"),
        (
            torch.tensor([0, 1, 2]),
            r"sample_index is torch.int64 of shape \(3,\); expected int64 of the shape of input_ids",
        ),
        (torch.tensor([[0.0, 1.0]]), r"sample_index is torch.float32"),
    ],
)
def test_an_index_that_does_not_fit(index, reason):
    with pytest.raises(ValueError, match=reason):
        SampleWeights(W, index)


class Qwen3MoeSparseMoeBlock(nn.Module):
    """Named as the block that is known."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).view(x.shape)


def test_a_block_tells_what_it_flattens():
    model = nn.Sequential(nn.Linear(2, 2), Qwen3MoeSparseMoeBlock())
    found = enclosing(model)
    assert model[0] not in found
    seen = found[model[1].inner[0]]
    assert isinstance(seen, Flattened)
    assert seen.rows_and_tokens is None
    handle = seen.watch(model[1])
    model(torch.zeros(3, 4, 2))
    assert seen.rows_and_tokens == (3, 4)
    handle.remove()
    model(torch.zeros(5, 4, 2))
    assert seen.rows_and_tokens == (3, 4)
