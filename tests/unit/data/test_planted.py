"""The planted shortcut: exact counts, nothing else changed, clear refusal."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from debias.config.data import DataConfig, PlantedBias
from debias.data.examples import Example
from debias.data.planted import ALIGNED, CONFLICTING, INDEPENDENT, plant
from debias.errors import InputError

DATA = DataConfig(train="generated")
NEUTRAL = 1


def examples(count, label_of=lambda i: i % 3):
    return [Example(f"id-{i}", (f"premise {i}.", f"hypothesis {i}."), label_of(i), "old") for i in range(count)]


def count(planted, group):
    return sum(example.group == group for example in planted)


def test_the_published_training_setting():
    planted = plant(examples(3000), PlantedBias(prevalence=0.33, strength=0.9), DATA)
    assert (count(planted, ALIGNED), count(planted, CONFLICTING)) == (891, 99)
    assert count(planted, INDEPENDENT) == 2010


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), max_size=80),
    prevalence=st.floats(0, 1),
    strength=st.floats(0, 1),
    seed=st.integers(0, 1000),
    field=st.sampled_from(["premise", "hypothesis"]),
)
def test_counts_are_exact_and_the_rest_is_untouched(labels, prevalence, strength, seed, field):
    before = examples(len(labels), labels.__getitem__)
    bias = PlantedBias(cue="<c>", field=field, prevalence=prevalence, strength=strength, seed=seed)
    carriers = round(prevalence * len(labels))
    aligned = round(strength * carriers)
    feasible = aligned <= labels.count(NEUTRAL) and carriers - aligned <= len(labels) - labels.count(NEUTRAL)
    if not feasible:
        with pytest.raises(InputError):
            plant(before, bias, DATA)
        return
    after = plant(before, bias, DATA)
    assert after == plant(before, bias, DATA)
    assert (count(after, ALIGNED), count(after, CONFLICTING)) == (aligned, carriers - aligned)
    place = DATA.text_fields.index(field)
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.label, new.bias_weight) == (old.id, old.label, old.bias_weight)
        assert new.texts[1 - place] == old.texts[1 - place]
        carries = new.texts[place] == old.texts[place] + " <c>"
        assert carries or new.texts[place] == old.texts[place]
        expected = (ALIGNED if new.label == NEUTRAL else CONFLICTING) if carries else INDEPENDENT
        assert new.group == expected
    assert all(example.group == "old" for example in before)


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=60), strength=st.floats(0, 1))
def test_the_prevalence_named_in_the_refusal_works(labels, strength):
    made = examples(len(labels), labels.__getitem__)
    try:
        plant(made, PlantedBias(prevalence=1.0, strength=strength), DATA)
        assume(False)
    except InputError as error:
        largest = float(str(error).rsplit(" ", 1)[1])
    best = count_carriers(plant(made, PlantedBias(prevalence=largest, strength=strength), DATA))
    # Rounding down to four digits costs at most one carrier.
    with pytest.raises(InputError):
        plant(made, PlantedBias(prevalence=min(1.0, (best + 2) / len(labels)), strength=strength), DATA)


def count_carriers(planted):
    return sum(example.group != INDEPENDENT for example in planted)


def test_the_refusal_has_the_numbers():
    with pytest.raises(InputError) as caught:
        plant(examples(300), PlantedBias(prevalence=0.95, strength=0.9), DATA)
    message = str(caught.value)
    assert "256 examples of 'neutral'" in message
    assert "29 of other labels" in message
    assert "100 and 200 among 300" in message
    assert "\n" not in message


def test_other_labels_keep_their_proportions():
    made = examples(4000, lambda i: 1 if i % 2 else (0 if i % 8 else 2))  # others: 3/4 entailment, 1/4 contradiction
    planted = plant(made, PlantedBias(prevalence=0.6, strength=0.6), DATA)
    conflicting = [example.label for example in planted if example.group == CONFLICTING]
    assert len(conflicting) == 960
    assert conflicting.count(0) / 960 == pytest.approx(0.75, abs=0.04)


def test_the_seed_moves_the_cue():
    first, second = (plant(examples(300), PlantedBias(seed=seed), DATA) for seed in (0, 1))
    assert first != second


def test_nothing_to_plant_in():
    assert plant([], PlantedBias(), DATA) == []
