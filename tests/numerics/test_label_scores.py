"""Labels scored in one pass over trees of tokens, against a forward pass of each prompt with each answer."""

import functools
import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, gpt2, llama, with_lora

from debias.data.prompt import common_prefix
from debias.inference.trees import TreeScorer, ancestors, answer_tree, forest, plant_rows

torch.set_num_threads(1)


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, initializer_range=0.2, **sizes, **heads))


MODELS = {
    "llama": llama,
    "llama eager": lambda: llama(attn_implementation="eager"),
    "llama with LoRA": lambda: with_lora(llama(), task_type="CAUSAL_LM"),
    "gpt2": gpt2,
    "qwen3": qwen3,
}


@pytest.fixture(scope="module", params=MODELS)
def causal(request):
    """The model, and whether its attention adds the mask."""
    return MODELS[request.param]().eval(), "eager" in request.param


def log_p(model, prompt: list[int], answer: list[int]) -> float:
    """By the definition, with plain arithmetic on the logits of one unpadded sequence."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().tolist()
    total = 0.0
    for k, token in enumerate(answer):
        row = logits[len(prompt) - 1 + k]
        top = max(row)
        total += row[token] - top - math.log(math.fsum(math.exp(value - top) for value in row))
    return total


def prompts(seed: int, head: tuple[int, ...] = (7, 8, 9)) -> list[list[int]]:
    """Distinct prompts of many lengths: premises with one to four hypotheses, one that goes on where another ends."""
    draw = Random(seed)
    found = []
    for _ in range(6):
        premise = [*head, *(draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(1, 9)))]
        for _ in range(draw.randrange(1, 5)):
            found.append([*premise, *(draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(1, 7)))])
    found += [[*found[0], 3], [*head, 5]]
    return [list(ids) for ids in dict.fromkeys(map(tuple, found))]


def tree_scores(model, additive, asked, answers, head=0, worth=2, longest=40) -> torch.Tensor:
    got = torch.full((len(asked), len(answers)), math.nan)
    with torch.inference_mode():
        scorer = TreeScorer(model, answer_tree(answers), asked[0][:head], additive=additive)
        rows = plant_rows([ids[head:] for ids in asked], worth=worth, longest=longest)
        for start in range(0, len(rows), 3):
            where, scores = scorer.scores(rows[start : start + 3])
            got[where] = scores
    return got


@pytest.mark.parametrize("head", [0, 3], ids=["no head", "head"])
@pytest.mark.parametrize(
    "answers",
    [[[5], [9], [60]], [[5, 6], [9, 1, 3], [60, 2]], [[5], [9, 1, 3], [9, 1, 4], [9, 2]]],
    ids=["one token", "several", "mixed, with shared beginnings"],
)
def test_trees_against_a_pass_for_each_label(causal, answers, head):
    model, additive = causal
    asked = prompts(0)
    got = tree_scores(model, additive, asked, answers, head)
    for i, prompt in enumerate(asked):
        for c, answer in enumerate(answers):
            assert got[i, c].item() == pytest.approx(log_p(model, prompt, answer), abs=1e-5), (prompt, answer)


@pytest.mark.parametrize(("worth", "longest"), [(0, 10_000), (3, 25), (10_000, 10_000)])
def test_how_rows_are_cut_changes_nothing(causal, worth, longest):
    model, additive = causal
    asked, answers = prompts(1), [[5], [9, 1, 3]]
    got = tree_scores(model, additive, asked, answers, worth=worth, longest=longest)
    torch.testing.assert_close(got, tree_scores(model, additive, asked, answers), rtol=0, atol=1e-5)


def test_half_precision_gives_float32_scores():
    scores = tree_scores(llama().eval().bfloat16(), False, prompts(0), [[5], [9, 1]])
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


def test_the_work_is_shared():
    """One forward pass of as many nodes as there are distinct beginnings; logits for what predicts an answer only."""
    model = llama().eval()
    asked = [[7, 8, 9, 10, 1], [7, 8, 9, 10, 2], [7, 8, 9, 10, 3, 4]]
    seen = []
    model.model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(tuple(out[0].shape)), with_kwargs=True
    )
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    tree_scores(model, False, asked, [[5], [6, 7], [6, 8]])
    # 4 shared, 4 own, and below each prompt the node of token 6; two kept for each prompt.
    assert seen == [(1, 4 + 4 + 3, 16), (1, 6, VOCABULARY)]


def test_the_head_is_computed_once():
    model = llama().eval()
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    tree_scores(model, False, [[7, 8, 9, *rest] for rest in ([1], [2], [3])], [[5]], head=3)
    assert seen == [(1, 3), (3, 1)]


ids = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(st.lists(ids, min_size=1, max_size=12, unique_by=tuple), st.integers(0, 4), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_rows_hold_every_prompt_once_and_spell_it(asked, worth, longest):
    rows = plant_rows(asked, worth=worth, longest=longest)
    assert sorted(index for row in rows for index in row.prompts) == list(range(len(asked)))
    for row in rows:
        assert len(row.tokens) <= max(longest, *(len(asked[i]) for i in row.prompts))
        for index, node in zip(row.prompts, row.last, strict=True):
            assert spelled(row.tokens, row.parents, node) == asked[index]
            assert row.depths[node] == len(asked[index]) - 1


def spelled(tokens: list[int], parents: list[int], node: int) -> list[int]:
    """The tokens from the root down to a node."""
    found = []
    while node >= 0:
        found.append(tokens[node])
        node = parents[node]
    return found[::-1]


@given(st.lists(ids, min_size=1, max_size=8, unique_by=tuple), st.lists(ids, min_size=1, max_size=4, unique_by=tuple))
@settings(max_examples=100, deadline=None)
def test_what_a_node_attends_to_is_what_stands_before_it(asked, answers):
    tree = answer_tree(answers)
    grown = forest(plant_rows(asked, worth=1, longest=20), tree)
    reach = ancestors(grown.parents_BT)
    for row, first, prompt in zip(grown.row_N, grown.first_N, grown.prompt_N, strict=True):
        width = grown.ids_BT.shape[1]
        for source, target, label in zip(tree.source_S, tree.target_S, tree.label_S, strict=True):
            node = width - grown.kept + int(first) + 1 + source
            seen = reach[row, node].nonzero().squeeze(1)
            seen = sorted(seen.tolist(), key=lambda column: int(grown.depths_BT[row, column]))
            text = [int(grown.ids_BT[row, column]) for column in seen]
            before = asked[prompt] + answers[label]
            assert text == before[: len(text)]
            assert target == before[len(text)]
            assert [int(grown.depths_BT[row, column]) for column in seen] == list(range(len(text)))


def test_every_answer_token_is_counted_once():
    tree = answer_tree([[5], [9, 1, 3], [9, 1, 4], [9, 2]])
    assert tree.tokens == (9, 1)
    assert tree.parents == (-1, 0)
    assert list(zip(tree.label_S, tree.source_S, tree.target_S, strict=True)) == [
        (0, -1, 5), (1, -1, 9), (1, 0, 1), (1, 1, 3), (2, -1, 9), (2, 0, 1), (2, 1, 4), (3, -1, 9), (3, 0, 2),
    ]  # fmt: skip
    assert tree.kept == 3


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_a_model_that_gives_the_logits_of_all_positions(monkeypatch):
    model, asked, answers = llama().eval(), prompts(3), [[4], [5, 6]]
    want = tree_scores(model, False, asked, answers, head=3)
    heedless = functools.wraps(model.forward)(lambda logits_to_keep=0, forward=model.forward, **given: forward(**given))
    monkeypatch.setattr(model, "forward", heedless)
    assert torch.allclose(tree_scores(model, False, asked, answers, head=3), want, atol=1e-5)
