"""Classifier re-training: against scikit-learn's solver, and what evening out labels does."""

import dataclasses

import numpy as np
import pytest
import torch

from debias.errors import InputError
from debias.merging.crt_last_layer import CRTLastLayer
from debias.merging.editing import make_edit
from debias.merging.edits import LastLayer


def layer(sizes: tuple[int, ...] = (60, 9, 20), *, bias: bool = True) -> LastLayer:
    """Labels of several sizes; columns of many means and lengths, one of them all alike."""
    generator = torch.Generator().manual_seed(2)
    label_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    inputs_ND = torch.randn(len(label_N), 4, generator=generator, dtype=torch.float64)
    inputs_ND[:, 0] += 1.5 * label_N
    inputs_ND = inputs_ND * torch.tensor([1.0, 20.0, 0.1, 0.0], dtype=torch.float64) + 3.1
    weight_CD = torch.randn(len(sizes), 4, generator=generator, dtype=torch.float64)
    return LastLayer(inputs_ND, label_N, weight_CD, weight_CD[:, 0].clone() if bias else None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("decay", [5e-4, 0.05])
def test_the_layer_is_scikit_learns_with_balanced_classes(decay: float, bias: bool) -> None:
    """Whose objective, divided by C N, is this one; the bias is a column of ones, so that it is held small too."""
    from sklearn.linear_model import LogisticRegression

    last = layer(bias=bias)
    made = CRTLastLayer(weight_decay=decay).retrained(last)
    inputs, label_N = last.inputs_ND.numpy(), last.label_N.numpy()
    if bias:
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    settings = {"C": 1 / (decay * len(inputs)), "fit_intercept": False, "class_weight": "balanced"}
    theirs = LogisticRegression(**settings, solver="newton-cg", tol=1e-9, max_iter=2000).fit(inputs, label_N).coef_
    np.testing.assert_allclose(made.weight_CD.numpy(), theirs[:, :4], atol=2e-4)
    assert (made.bias_C is None) == (not bias)
    if made.bias_C is not None:
        np.testing.assert_allclose(made.bias_C.numpy(), theirs[:, 4], atol=2e-4)
    start = CRTLastLayer(weight_decay=decay).retrained(dataclasses.replace(last, weight_CD=last.weight_CD * -7))
    torch.testing.assert_close(start.weight_CD, made.weight_CD)  # of the old layer nothing stays


def test_copies_of_one_label_change_nothing() -> None:
    """A label counts once, however many rows it has."""
    last = layer((12, 12, 12))
    twice = torch.cat([torch.arange(36), torch.arange(12)])
    more = dataclasses.replace(last, inputs_ND=last.inputs_ND[twice], label_N=last.label_N[twice])
    one, two = (CRTLastLayer().retrained(each) for each in (last, more))
    torch.testing.assert_close(two.weight_CD, one.weight_CD, atol=1e-4, rtol=1e-4)


def test_a_rare_label_is_answered_more_often() -> None:
    last = layer((300, 20, 20))
    made = CRTLastLayer().retrained(last)
    said_N = made.logits_NC.argmax(dim=1)
    plain = torch.nn.functional.one_hot(last.label_N).double().mean(dim=0)
    assert made.balanced > 0.5
    assert (said_N > 0).double().mean() > plain[1:].sum()


def test_mistakes_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    for settings, message in (
        ({"weight_decay": 0}, "edit.weight_decay is 0.0, expected more than 0"),
        ({"steps": 0}, "edit.steps is 0, expected 1 or more"),
        ({"rows": "test"}, "edit.rows is 'test', not one of training, validation"),
    ):
        with pytest.raises(InputError) as caught:
            make_edit("crt_last_layer", settings)
        assert message in str(caught.value)
    last = layer()
    few = dataclasses.replace(last, label_N=last.label_N.clamp(max=1))
    with pytest.raises(InputError, match="crt_last_layer: no row has label number 2"):
        CRTLastLayer().retrained(few)
    CRTLastLayer(steps=1).retrained(last)
    assert "the fit has not settled after 1 steps; take more" in caplog.text
