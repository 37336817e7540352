import pytest

from debias.config.reading import read_yaml
from debias.errors import InputError
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.subset import subset
from debias_eval.reading.suite import BUILT_IN, Suite, available_suites, load_suite

ROWS = [
    ("1", "p", "x yes", "Yes", "a/one"),
    ("2", "p", "x no", "No", "a/two"),
    ("3", "p", "x yes", "Yes", "b/one"),
    ("4", "p", "x no", "No", None),
]
YES_NO = {"labels": ["yes", "no"], "label_map": {"Yes": "yes", "No": "no"}}


def test_every_built_in_suite_loads_and_is_documented():
    names = available_suites()
    assert {"biased_snli", "hans", "snli", "cad_nli", "mnli", "generated", "generated_ood"} <= set(names)
    for name in names:
        assert load_suite(name).name == name
        card = (BUILT_IN / name / "CARD.md").read_text(encoding="utf-8")
        for heading in (
            "**Source**",
            "**Licence**",
            "**Shortcut tested**",
            "**Groups**",
            "**Known defects**",
            "## Counts",
        ):
            assert heading in card, (name, heading)


def test_unknown_suite_names_the_nearest_and_lists_all():
    with pytest.raises(InputError, match=r"unknown suite 'hanz'; did you mean hans\? built in: anli_r1, .*, wanli"):
        load_suite("hanz")


def test_a_path_that_is_not_there():
    with pytest.raises(InputError, match=r"nowhere/suite.yaml: no such file"):
        load_suite("nowhere/suite.yaml")


def test_a_folder_named_like_a_built_in_suite_does_not_shadow_it(tmp_path, monkeypatch):
    (tmp_path / "hans").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_suite("hans").name == "hans"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_feild": "group"}, "group_feild: unknown key; did you mean group_field?"),
        ({"group_rule": {"by_lable": True}}, "group_rule.by_lable: unknown key; did you mean group_rule.by_label?"),
        ({"merge": {"neutral": "nope"}}, "merge sends 'neutral' to 'nope', not one of labels"),
        ({"label_map": {"x": "nope"}}, "label_map sends 'x' to 'nope'"),
        ({"planted_bias": {"label": "maybe"}}, "planted_bias.label is 'maybe'"),
        ({"planted_bias": {"field": "text"}}, "planted_bias.field is 'text'"),
        ({"planted_bias": {}, "group_field": "group"}, "planted_bias makes the groups itself"),
        ({"gap": {"aligned": ["a"], "conflicting": ["b"]}}, "gap names groups, but the suite has none"),
        (
            {"gap": {"aligned": ["a", "b"], "conflicting": ["b"]}, "group_field": "group"},
            "gap names 'b' as aligned and as conflicting; a group is on one side of it",
        ),
        ({"gap": {"aligned": [], "conflicting": ["b"]}, "group_field": "group"}, "gap.aligned: "),
        ({"name": "../escape"}, "name: string should match pattern"),
        ({"name": ".."}, "name: string should match pattern"),
        ({"version": 0}, "version: "),
        ({"labels": ["a"]}, "labels: "),
        ({"labels": [True, False]}, "labels: YAML reads a bare yes, no, true or false as a flag"),
        ({"task": "translation"}, "task: input should be 'nli', 'fact_verification', "),
        ({"source": None}, "no data: give source (a file beside the suite or in DEBIAS_DATA), hub, or both"),
        ({"source": "stanfordnlp/snli"}, "a hub id goes under hub: {source: ...}"),
        ({"hub": {"source": "snli"}}, "hub.source: string should match pattern"),
        ({"hub": {"source": "../snli"}}, "hub.source: string should match pattern"),
        ({"hub": {"source": "/etc/passwd"}}, "hub.source: string should match pattern"),
        ({"hub": {"source": "a/b", "splitt": "test"}}, "hub.splitt: unknown key; did you mean hub.split?"),
        ({"hub": {"source": "a/b", "text_fields": ["one"]}}, "hub.text_fields must be as many as text_fields"),
        ({"hub": {"source": "a/b", "label_map": {0: "nope"}}}, "hub: label_map sends '0' to 'nope'"),
        ({"cluster": {"regex": "x"}}, "cluster.regex: 'x' has no group in parentheses"),
        ({"cluster": {"regex": "("}}, "cluster.regex: '(' is not a regular expression"),
        ({"cluster": {"field": ["id", "group"], "regex": "(x)"}}, "cluster: regex reads one field as it is"),
        ({"cluster": {"field": "id", "words": ["the"]}}, "cluster.words blanks text, but cluster.field names none of"),
        ({"consistency": True}, "consistency is about clusters, but the suite has none: give cluster"),
        ({"invariant": True}, "invariant is about clusters, but the suite has none: give cluster"),
        ({"stress": "typos"}, "stress: input should be 'negation', 'word_overlap' or 'length_mismatch', got 'typos'"),
        ({"stress": "negation", "text_fields": ["premise"]}, "text_fields are ['premise'], not two"),
        ({"input_ablation": ["text"]}, "input_ablation names 'text', not one of text_fields"),
        ({"keep": {"field": "group", "values": []}}, "keep.values: "),
        (
            {"group_rule": {"partial_input": {"fields": ["premise", "hypothesis"], "train": "t.jsonl"}}},
            "group_rule.partial_input.fields is ['premise', 'hypothesis'], expected some but not all of text_fields",
        ),
        (
            {"group_rule": {"partial_input": {"fields": ["premise"], "train": "../t.jsonl"}}},
            "group_rule.partial_input.train: '../t.jsonl' leads outside",
        ),
    ],
)
def test_a_wrong_suite_is_one_clear_line(write_suite, settings, message):
    path = write_suite(ROWS, **settings)
    with pytest.raises(InputError) as caught:
        load_suite(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd.jsonl",
        "../rows.jsonl",
        "a/../../rows.jsonl",
        "~/rows.jsonl",
        "..\\rows.jsonl",
        "C:\\rows.jsonl",
        "https://example.org/rows.jsonl",
        "file:///etc/rows.jsonl",
    ],
)
def test_a_path_out_of_the_suites_folder_is_refused(write_suite, source):
    with pytest.raises(InputError) as caught:
        load_suite(write_suite(ROWS, source=source))
    assert f"source: {source!r} leads outside; expected a path below the suite's own folder" in str(caught.value)


def test_a_link_out_of_the_suites_folder_is_refused(write_suite, tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}\n")
    path = write_suite(ROWS, source="link.jsonl")
    (path.parent / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match=r"suite mine: .*link\.jsonl is a link that leads out of .*mine; put the file"):
        suite_examples(load_suite(path))


def test_a_link_of_a_folder_out_of_the_data_is_refused(write_suite, tmp_path, monkeypatch):
    outside, data = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    data.mkdir()
    (outside / "rows.jsonl").write_text("{}\n")
    (data / "inside").symlink_to(outside)
    monkeypatch.setenv("DEBIAS_DATA", str(data))
    with pytest.raises(InputError, match="is a link that leads out of"):
        suite_examples(load_suite(write_suite(ROWS, source="inside/rows.jsonl")))


def test_links_within_the_data_and_to_the_data_are_followed(write_suite, tmp_path, monkeypatch):
    path = write_suite(ROWS, source="again.jsonl", **YES_NO)
    real = tmp_path / "real"
    real.mkdir()
    (path.parent / "rows.jsonl").rename(real / "rows.jsonl")
    (real / "again.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "data").symlink_to(real)
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    assert len(suite_examples(load_suite(path))) == 4


def test_the_working_directory_is_not_searched(write_suite, tmp_path, monkeypatch):
    path = write_suite(ROWS, source="elsewhere.jsonl", **YES_NO)
    (path.parent / "rows.jsonl").rename(tmp_path / "elsewhere.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    with pytest.raises(InputError, match=r"suite mine: no elsewhere\.jsonl; DEBIAS_DATA .* and is not set"):
        suite_examples(load_suite(path))


def test_the_fields_of_the_floor(write_suite):
    assert load_suite(write_suite(ROWS)).input_ablation == ("hypothesis",)
    assert load_suite(write_suite(ROWS, input_ablation=["premise"])).input_ablation == ("premise",)
    assert load_suite(write_suite(ROWS, input_ablation=[])).input_ablation == ()
    assert load_suite(write_suite(ROWS, text_fields=["hypothesis"])).input_ablation == ()


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "s.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="version: missing"):
        load_suite(tmp_path / "s.yaml")


def test_rows_beside_the_suite_are_found_from_anywhere(write_suite, tmp_path, monkeypatch):
    path = write_suite(ROWS, group_field="group", **YES_NO)
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), path.parent, "mine/suite.yaml"):
        examples = suite_examples(load_suite(given))
        assert [(one.id, one.label, one.group) for one in examples] == [
            ("1", 0, "a/one"),
            ("2", 1, "a/two"),
            ("3", 0, "b/one"),
            ("4", 1, None),
        ]


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"group_field": "group", "group_rule": {"keep_before": "/"}}, ["a", "a", "b", None]),
        (
            {"group_field": "group", "group_rule": {"keep_before": "/", "by_label": True}},
            ["a/yes", "a/no", "b/yes", None],
        ),
        ({"group_rule": {"by_label": True}}, ["yes", "no", "yes", "no"]),
        ({}, [None] * 4),
    ],
)
def test_group_rules(write_suite, settings, groups):
    examples = suite_examples(load_suite(write_suite(ROWS, **YES_NO, **settings)))
    assert [one.group for one in examples] == groups


def test_a_gap_of_groups_the_data_does_not_have(write_suite):
    path = write_suite(ROWS, group_field="group", gap={"aligned": ["a/one"], "conflicting": ["c"]}, **YES_NO)
    with pytest.raises(
        InputError, match=r"suite mine: gap names the group 'c'; the data has \['a/one', 'a/two', 'b/one'\]"
    ):
        suite_examples(load_suite(path))


@pytest.mark.parametrize(("folder", "said"), [(None, "and is not set"), ("empty", "lacks it")])
def test_data_that_is_not_found_names_the_variable(tmp_path, monkeypatch, folder, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    if folder:
        monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / folder))
    with pytest.raises(InputError, match=f"suite hans: no hans_regen/test.jsonl.gz; DEBIAS_DATA .* {said}"):
        suite_examples(load_suite("hans"))


def test_a_limit_is_a_seeded_subset_in_the_original_order(write_suite):
    rows = [(str(i), "p", f"x{i}", "Yes" if i % 2 else "No", None) for i in range(200)]
    suite = load_suite(write_suite(rows, **YES_NO))
    first, again, other = (suite_examples(suite, 50, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [int(one.id) for one in first] == sorted(int(one.id) for one in first)
    assert len(first) == 50
    assert suite_examples(suite, 1000) == suite_examples(suite)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_without_examples_is_refused(limit):
    with pytest.raises(InputError, match="limit: expected a number over 0"):
        subset([], limit, 0)


def test_a_planted_cue_makes_the_groups_and_a_limit_does_not_move_it(write_suite):
    rows = [(str(i), "p", f"x{i}", "Yes" if i % 2 else "No", None) for i in range(400)]
    planted = {"cue": "@@", "label": "yes", "prevalence": 0.8, "strength": 0.5}
    gap = {"aligned": ["bias-aligned"], "conflicting": ["bias-conflicting"]}
    suite = load_suite(write_suite(rows, planted_bias=planted, gap=gap, **YES_NO))
    full = {one.id: one for one in suite_examples(suite)}
    for one in full.values():
        cued = one.texts[0].endswith(" @@")
        expected = ("bias-aligned" if one.label == 0 else "bias-conflicting") if cued else "bias-independent"
        assert one.group == expected
    assert all(full[one.id] == one for one in suite_examples(suite, 100))


def test_built_in_suites_keep_the_shape_of_the_schema():
    for name in available_suites():
        keys = set(read_yaml(BUILT_IN / name / "suite.yaml"))
        assert keys <= set(Suite.model_fields)
        assert {"name", "version", "description", "licence", "task", "labels"} <= keys
