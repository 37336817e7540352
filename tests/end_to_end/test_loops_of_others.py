"""The programs of pipeline/README.md for loops of others, run as they stand there, against a loop of plain parts."""

import pytest
from loops_of_others import answer, assert_trained, in_steps, program_of, programs, runner

pytestmark = pytest.mark.slow
MOST_LINES = 40


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    return runner(monkeypatch, tmp_path, capsys)


def test_the_page_has_four_programs_that_fit_a_screen():
    assert [len(code.splitlines()) <= MOST_LINES for code in programs()] == [True] * 4


def test_accelerate(run):
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        names, start = run(program_of("import Accelerator"))
        assert_trained(names["accelerator"].unwrap_model(names["model"]), start, in_steps(names["rows"], 8))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_fabric(run):
    pytest.importorskip("lightning_fabric")
    names, start = run(program_of("import Fabric"))
    assert_trained(names["model"].module, start, in_steps(names["rows"], 8))


def samples_in(row):
    """The samples of a row of the data set, by the lengths that TRL's packing leaves."""
    first = 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        yield {key: row[key][first : first + length] for key in ("input_ids", "labels")}
        first += length


@pytest.mark.parametrize(
    "more", ["", "padding_free=True, max_length=None, ", "packing=True, max_length=64, "], ids=["", "free", "packed"]
)
def test_sft_trainer(run, more):
    pytest.importorskip("trl")
    program = program_of("import SFTConfig")
    assert program.count('SFTConfig("sft", ') == 1
    names, start = run(program.replace('SFTConfig("sft", ', f'SFTConfig("sft", {more}'))
    rows = [sample for row in names["trainer"].train_dataset for sample in samples_in(row)]
    assert len(rows) == 8
    assert (len(names["trainer"].train_dataset) < 8) == ("packing" in more)
    assert len({sum(label != -100 for label in row["labels"]) for row in rows}) > 1  # answers of several lengths
    assert_trained(names["model"], start, [[answer(row) for row in rows]] * 2, decay=0.0)


def test_sft_trainer_refuses_rows_that_do_not_tell_where_a_sample_starts(run):
    pytest.importorskip("trl")
    wrapped = 'SFTConfig("sft", packing=True, packing_strategy="wrapped", max_length=64, '
    with pytest.raises(AssertionError, match="wrapped rows"):
        run(program_of("import SFTConfig").replace('SFTConfig("sft", ', wrapped))


def test_fsdp2(run):
    """Of one rank; tests/world2/test_fsdp.py has it on two."""
    names, start = run(program_of("fully_shard"))
    rows = [{"input_ids": ids, "labels": label} for ids, label in names["rows"]]
    assert_trained(names["model"], start, in_steps(rows, 8))
