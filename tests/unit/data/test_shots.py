"""Examples in context: which are drawn, the text they make, and what is refused."""

from collections import Counter

import pytest

from debias.config.prompt_file import Shots
from debias.config.run import RunConfig
from debias.data.examples import Example
from debias.data.shots import Shown, draw, refuse_cut
from debias.errors import InputError

LABELS = ("entailment", "neutral", "contradiction")


def rows(*sizes):
    return [Example(f"{label}{i}", (f"p{label}{i}", f"h{i}"), label) for label, n in enumerate(sizes) for i in range(n)]


def config(template="{premise} {{so}} {hypothesis}?"):
    answers = {"entailment": " yes", "neutral": " maybe {x}", "contradiction": " no"}
    values = {"model": "m", "head": "causal_lm", "prompt": {"template": template, "verbalizers": answers}}
    return RunConfig.model_validate({**values, "data": {"train": "generated"}, "output_dir": "none", "max_length": 60})


@pytest.mark.parametrize("number", [1, 2, 3, 7, 9])
def test_labels_are_balanced_and_no_row_is_shown_twice(number):
    for seed in range(8):
        shown = draw(rows(40, 5, 3), LABELS, Shots(number, seed), "rows.csv").examples
        counts = Counter(one.label for one in shown)
        assert len(shown) == len({one.id for one in shown}) == number
        assert max(counts.values()) - min(counts.get(label, 0) for label in range(3)) <= 1


def test_a_seed_draws_the_same_and_others_draw_otherwise():
    drawn = [draw(rows(40, 40, 40), LABELS, Shots(6, seed), "r").examples for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(one.id for one in shown) for shown in drawn}) == 4
    firsts = {draw(rows(40, 40, 40), LABELS, Shots(6, seed), "r").examples[0].label for seed in range(20)}
    assert firsts == {0, 1, 2}  # the order is shuffled, too


def test_the_text_is_each_prompt_with_its_answer_and_braces_stay_braces():
    shown = Shown(Shots(1), "r", (Example("a", ("{odd} p", "h}"), 1),))
    asked = config()
    assert shown.text(asked) == "{odd} p {so} h}? maybe {x}\n\n"
    longer = shown.before(asked, 9)
    assert longer.max_length == 69
    assert longer.prompt.template.format(premise="P", hypothesis="H") == "{odd} p {so} h}? maybe {x}\n\nP {so} H?"
    assert asked.prompt.template == "{premise} {{so}} {hypothesis}?"


def test_results_say_what_was_drawn():
    told = draw(rows(4, 4, 4), LABELS, Shots(3, 5), "some/rows.csv").told
    again = draw(rows(4, 4, 4), LABELS, Shots(3, 6), "some/rows.csv").told
    assert (told["number"], told["seed"], told["source"]) == (3, 5, "some/rows.csv")
    assert len(told["sha256"]) == 64
    assert told["sha256"] != again["sha256"]


def test_too_few_rows_are_one_line():
    with pytest.raises(InputError, match=r"shots: 9 asked for, and rows\.csv has 8 labelled rows"):
        draw(rows(4, 3, 1), LABELS, Shots(9), "rows.csv")
    with pytest.raises(InputError, match="shots: 6 with labels balanced take 2 rows of contradiction, and r has 1"):
        draw(rows(4, 3, 1), LABELS, Shots(6), "r")


def test_prompts_that_do_not_fit_are_counted():
    refuse_cut([50, 57, 58], 58, 60)
    with pytest.raises(InputError, match=r"2 of 3 prompts do not fit into max_length, 60 .* longest takes 72\)"):
        refuse_cut([58, 59, 70], 58, 60)
