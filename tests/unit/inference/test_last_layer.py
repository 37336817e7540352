"""What a last layer is given, of a head that sees one vector and of one that sees every token."""

import pytest
import tiny_models
import torch

from debias.errors import InputError
from debias.inference.last_layer import _layer, _pooled


def test_a_head_that_sees_every_token_was_given_what_its_answer_was_taken_from() -> None:
    model = tiny_models.with_lora(tiny_models.qwen3(classify=True), task_type="SEQ_CLS").eval()
    layer = _layer(model, "score", 3)
    batch = tiny_models.text_batch()
    given: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, args, output: given.extend((args[0], output)))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = _pooled(given[0], given[1], logits)
    last = batch["attention_mask"].sum(dim=1) - 1
    assert len(set(last.tolist())) > 1
    torch.testing.assert_close(found, given[0][torch.arange(len(last)), last])
    with pytest.raises(InputError, match="what its model says is not what its last layer gives of any token"):
        _pooled(given[0], given[1], logits + 1)
    with pytest.raises(InputError, match="its layer score is none that was trained whole and gives 4 logits"):
        _layer(model, "score", 4)
