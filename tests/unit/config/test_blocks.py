"""The one reader of tables: canonical forms, nearest names, and what each type of setting takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from debias.config import blocks
from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.sweep.grid import settings_of


@dataclass(frozen=True)
class Piece:
    also_called: ClassVar[tuple[str, ...]] = ("old_piece",)
    strength: float = 1.0
    rounds: int = 3
    loud: bool = False
    form: Literal["plain", "twisted"] = "plain"
    fields: tuple[str, ...] = ()
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}, expected 0 or more")


@dataclass(frozen=True)
class Needy:
    column: str


TABLE: dict[str, type[Any]] = {"piece": Piece, "needy": Needy}
FULL = {"name": "piece", "strength": 1.0, "rounds": 3, "loud": False, "form": "plain", "fields": (), "limit": None}


@pytest.mark.parametrize(
    "block", ["piece", {"name": "piece"}, "old_piece", {"name": "old_piece", "strength": "1.0"}, FULL]
)
def test_one_piece_has_one_form_however_it_is_written(block: Any) -> None:
    assert blocks.canonical("kind", TABLE, block) == FULL
    assert blocks.make("kind", TABLE, block) == Piece()


def test_settings_are_read_as_yaml_gives_them() -> None:
    made = blocks.make(
        "kind", TABLE, {"name": "piece", "strength": "1e-3", "fields": ["a", "b"], "limit": 2, "loud": True}
    )
    assert made == Piece(strength=0.001, fields=("a", "b"), limit=2.0, loud=True)
    assert blocks.canonical("kind", TABLE, blocks.canonical("kind", TABLE, "piece")) == FULL


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("peice", "kind.name is 'peice', not one of piece, needy, old_piece; did you mean piece?"),
        ({"strength": 1}, "kind.name: missing; give one of piece, needy, old_piece"),
        ({"name": ["piece"]}, "kind.name is ['piece'], not one of piece, needy, old_piece"),
        ({"name": 3}, "kind.name is 3, not one of piece, needy, old_piece"),
        ({"name": "piece", "strenght": 1}, "kind.strenght: piece has no such setting; did you mean strength?"),
        ({"name": "needy", "zzz": 1}, "kind.zzz: needy has no such setting; it has column"),
        ("needy", "kind.column: missing, and needy has no default for it"),
        ({"name": "piece", "strength": float("nan")}, "kind.strength is nan, expected a finite number"),
        ({"name": "piece", "strength": True}, "kind.strength is True, expected a finite number"),
        ({"name": "piece", "strength": 10**400}, "expected a finite number"),
        ({"name": "piece", "strength": None}, "kind.strength is None, expected a finite number"),
        ({"name": "piece", "limit": True}, "kind.limit is True, expected a finite number"),
        ({"name": "piece", "rounds": 1.5}, "kind.rounds is 1.5, expected a whole number"),
        ({"name": "piece", "loud": "loudly"}, "kind.loud is 'loudly', expected true or false"),
        ({"name": "piece", "form": "bent"}, "kind.form is 'bent', not one of plain, twisted"),
        ({"name": "piece", "fields": "premise"}, "kind.fields is 'premise': input should be a list"),
        ({"name": "piece", "fields": True}, "kind.fields is True, expected a list, each of which is a text"),
        ({"name": "piece", "strength": -1}, "kind.strength is -1.0, expected 0 or more"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(block: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        blocks.make("kind", TABLE, block)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_has_a_table_and_its_default_is_in_it() -> None:
    for name, kind in blocks.KINDS.items():
        table = blocks.table_of(name)
        assert kind.default is None or kind.default in table
        assert name in RunConfig.model_fields
        for row in table:
            assert blocks.names_of(table)[row] == row


def written(folder: Path, *lines: str) -> Path:
    path = folder / "run.yaml"
    path.write_text("\n".join(["model: m", "output_dir: out", "data: {train: generated}", *lines]))
    return path


def same(folder: Path, *lines: str) -> RunConfig:
    return load_config(written(folder, *lines))


def test_one_method_written_three_ways_is_one_config(tmp_path: Path) -> None:
    ways = [
        "",
        "method: edge",
        "method: {name: edge, alpha: 1.0}",
        "method: {alpha: 1}",
        "method: {name: edge, alpha: 1e0}",
    ]
    dumped = {dump_config(same(tmp_path, way)) for way in ways}
    assert len(dumped) == 1
    assert len({dump_config(same(tmp_path, f"method: {name}")) for name in ("erm", "main_only")}) == 1


@pytest.mark.parametrize(
    "ways",
    [
        [
            "",
            "adapter: lora",
            "adapter: {targets: auto}",
            "adapter: {type: lora, experts: auto, target_parameters: []}",
        ],
        [
            "adapter: dora",
            "adapter: {type: dora, targets: auto, target_parameters: [], experts: auto, experts_r: null}",
        ],
        [
            "adapter: full",
            "adapter: {type: full, targets: auto, target_parameters: [], experts: auto, experts_r: null}",
        ],
        ["adapter: {type: beft, targets: [query]}", "adapter: {targets: [query], type: beft}"],
    ],
    ids=lambda ways: ways[-1],
)
def test_one_adapter_has_one_form_however_it_is_written(tmp_path: Path, ways: list[str]) -> None:
    """Runs of before the table wrote LoRA's settings beside every type."""
    assert len({dump_config(same(tmp_path, way)) for way in ways}) == 1
    config = same(tmp_path, ways[0])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "adapter: {type: lora, target: [q]}",
            "run.yaml: adapter.target: lora has no such setting; did you mean targets?",
        ),
        (
            "adapter: loar",
            "run.yaml: adapter.type is 'loar', not one of lora, dora, beft, bitfit, full, rslora, "
            "lora_fa, vera, ia3; did you mean",
        ),
        ("adapter: {type: full, targets: [query]}", "adapter.targets: full has no such setting; it has none"),
        ("adapter: {type: bitfit, experts_r: 4}", "adapter.experts_r: bitfit has no such setting"),
        (
            "adapter: {type: beft, targets: all-linear}",
            "is 'all-linear', expected auto (the value projections) or a list",
        ),
        (
            "adapter: {type: beft, targets: []}",
            "adapter.targets is [], expected auto (the value projections) or a list",
        ),
        ("adapter: {experts: maybe}", "adapter.experts is 'maybe', expected auto, true, false or partial"),
        ("adapter: {experts_r: true}", "adapter.experts_r is True, expected a whole number"),
        ("adapter: {lora_r: 4}", "adapter.lora_r: unknown key; did you mean lora_r?"),
        ("adapter: 3", "adapter: input should be a valid dictionary, got 3"),
        ("method: {name: edge, alhpa: 3}", "run.yaml: method.alhpa: edge has no such setting; did you mean alpha?"),
        ("method: edgy", "run.yaml: method.name is 'edgy', not one of edge"),
        ("method: {name: edge, alpha: much}", "run.yaml: method.alpha is 'much', expected a finite number"),
    ],
)
def test_a_typo_inside_a_block_is_an_error_on_load(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(written(tmp_path, line))
    assert message in str(caught.value)


def test_a_kind_that_a_run_may_lack_has_no_row_by_default() -> None:
    """What tells runs apart leaves defaults out: a default row of a kind that is not there by default would be lost."""
    for kind, home in blocks.KINDS.items():
        held = RunConfig.model_fields[kind].default
        assert home.default == (None if held is None else held[home.key]), kind


@pytest.mark.parametrize(
    "line",
    [
        *("sharpness: sam", "smoothness: smart", "weight_penalty: pego", "weight_projection: spd"),
        *("gradient_mask: gmt", "groups: guessed"),
        "bias_model: lexical",
    ],
)
def test_a_row_at_its_defaults_makes_another_method(tmp_path: Path, line: str) -> None:
    more = "first_stage: {keep: log_p}\n" if line.startswith("groups") else ""
    told = [settings_of(load_config(written(tmp_path, more + one))) for one in ("", line)]
    assert told[0] != told[1]


@pytest.mark.parametrize("name", ["irm", "coral", "mmd", "bias_covariance"])
def test_a_default_that_changed_is_told_from_what_it_was(name):
    """Runs of the default of earlier versions are told by the same words as then; those of the new one by others."""
    before = blocks.read("loss", {"name": name, "memory": 0.9})
    assert blocks.shortened("loss", before) == {"name": name}
    now = blocks.shortened("loss", blocks.read("loss", name))
    assert now == {"name": name, "memory": None} | ({"features": None} if name == "mmd" else {})
    assert blocks.read("loss", now) == blocks.read("loss", name)
