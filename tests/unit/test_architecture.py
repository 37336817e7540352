"""Who may import whom, and the measures of the code: read with `ast`, so that nothing has to be run."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"debias": ROOT / "pipeline" / "debias", "debias_eval": ROOT / "eval" / "debias_eval"}
FILES = sorted(path for folder in SOURCES.values() for path in folder.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # complexity is ruff's: at most 10

# Which rooms of ours a room may import, from the ground floor up; a room is a package, or a file at a root. Every
# module of both packages lies in one. `debias` is its own face; of `debias_eval`, rooms begin with `eval.`.
ALLOWED = {
    "debias_eval": "",
    "errors": "",
    "readouts": "",
    "eval.scores": "errors",
    "gradients": "readouts",
    "hub": "errors",
    "ranks": "errors",
    "config": "errors gradients",
    "models": "errors hub",
    "data": "errors hub config",
    "methods": "config",
    "sharpness": "config",
    "smoothness": "config",
    "penalties": "config",
    "projections": "config",
    "masks": "config",
    "runs": "errors hub ranks config",
    "adapters": "errors hub config models runs",
    "bias": "readouts config data",
    "grouping": "config",
    "audit": "errors config data bias",
    "init": "errors hub config data runs audit",
    "eval.results": "errors eval.scores config data runs",
    "fetch": "errors hub config data",
    "push": "errors hub runs",
    "sweep": "errors ranks config runs",
    "eval.reading": "errors config data bias",
    "losses": "readouts config bias",
    "merging": "errors config models runs adapters",
    "engines": "readouts gradients ranks methods sharpness smoothness penalties projections masks runs bias losses",
    "eval.comparing": "errors eval.scores eval.results eval.reading",
    "building": (
        "errors readouts gradients ranks config models data methods sharpness smoothness penalties projections masks "
        "runs adapters bias grouping losses merging engines"
    ),
    "debias": "errors methods engines",
    "eval.reporting": "errors eval.scores runs eval.results eval.reading eval.comparing",
    "inference": "errors readouts ranks config models data runs adapters engines building",
    "served": "errors config models data inference",
    "plan": "errors readouts gradients hub config models data methods smoothness adapters losses engines building",
    "doctor": "errors readouts hub ranks config models data methods engines building plan",
    "eval.judging": "errors eval.scores ranks config data runs eval.results eval.reading inference served",
    "launching": "errors config data runs plan",
    "train": "errors gradients ranks config data runs bias engines building inference plan losses",
    "bench": (
        "errors readouts gradients ranks config models data methods sharpness smoothness runs adapters bias losses "
        "engines building inference plan train"
    ),
    "demo": "config eval.reporting eval.judging train",
    "eval.harness": "errors eval.scores config models data runs adapters eval.reading building inference eval.judging",
    "cli": (
        "errors ranks config served runs audit init eval.results fetch push sweep eval.reading merging eval.comparing "
        "building inference eval.reporting plan doctor eval.judging launching train bench demo eval.harness"
    ),
}
ROOMS = {room: tuple(words.split()) for room, words in ALLOWED.items()}
# What only the rooms of mathematics may import of others' packages.
TORCH_ONLY = (
    "debias.methods",
    "debias.readouts",
    "debias.losses",
    "debias.sharpness",
    "debias.smoothness",
    "debias.penalties",
    "debias.projections",
    "debias.masks",
)
MAY_USE_TRITON = ("debias.methods.triton_kernels",)  # imported on a GPU alone, by one function
# The only places that know the evaluator, and they only inside a function.
MAY_USE_EVALUATOR = ("debias.cli", "debias.demo")
# Copied beside exported tasks for the harness to run; nothing of ours imports it.
COPIED = ("debias_eval.harness.templates.debias_tasks",)


OF_A_RUN = re.compile(r"(\S*/)?(config\.yaml|run\.json|metrics\.jsonl|trainer_state\.json|checkpoint-\S*)")
FOLDERS_OF_A_RUN = ("adapter", "model", "eval")


def module_of(path: Path) -> str:
    package = next(name for name, folder in SOURCES.items() if path.is_relative_to(folder))
    parts = path.relative_to(SOURCES[package]).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


MODULES = {module_of(path): path for path in FILES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache  # a dozen tests ask
def imports(node: ast.AST, *, inside_functions: bool = True) -> tuple[str, ...]:
    """Every imported module; `from a import b` gives a.b where that is a module of ours, else a."""
    return tuple(_imports(node, inside_functions))


def _imports(node: ast.AST, inside_functions: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(child, ast.expr):  # no statement lies within one
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            assert child.module is not None
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield inner if inner in MODULES else child.module
        else:
            yield from _imports(child, inside_functions)


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def is_ours(module: str) -> bool:
    return within(module, tuple(SOURCES))


def room_of(module: str) -> str:
    """The package or file at a root that a module lies in."""
    package, *rest = module.split(".")
    return ("eval." if package == "debias_eval" and rest else "") + (rest[0] if rest else package)


def foreign_to(room: str, tree: ast.Module) -> list[str]:
    """What of ours the module imports and its room may not."""
    return [name for name in imports(tree) if is_ours(name) and room_of(name) not in (room, *ROOMS[room])]


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes_of(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """A signature for the type checker; the function itself has the docstring."""
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)


def offenders(wrong: Callable[[Path], Iterable[object]]) -> dict[str, list[object]]:
    """What is wrong in each file. One test looks at all: a test a file would take longer than the look."""
    return {module: found for module, path in MODULES.items() if (found := list(wrong(path)))}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40


def test_every_module_has_a_room() -> None:
    assert sorted({room_of(module) for module in MODULES}) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    """Also inside functions, and for the type checker alone."""
    for module, path in MODULES.items():
        if room_of(module) == room:
            foreign = foreign_to(room, tree_of(path))
            assert foreign == [], f"{module} imports {foreign}"


def test_rooms_that_judge_open_without_imports() -> None:
    """A room's `__init__` is its one sentence: opening a module loads nothing of its neighbours."""
    for room in (name for name in MODULES if within(name, ("debias_eval",)) and MODULES[name].name == "__init__.py"):
        assert [type(node).__name__ for node in tree_of(MODULES[room]).body] == ["Expr"], room


@pytest.mark.parametrize("room", TORCH_ONLY)
def test_mathematics_needs_torch_alone(room: str) -> None:
    for module, path in MODULES.items():
        if within(module, (room,)):
            names = {name.partition(".")[0] for name in imports(tree_of(path))}
            known = {"torch", "debias", "triton"} if module in MAY_USE_TRITON else {"torch", "debias"}
            foreign = names - sys.stdlib_module_names - known
            assert not foreign, f"{module} imports {foreign}"


def test_kernels_are_imported_inside_a_function_alone() -> None:
    def wrong(path: Path) -> list[str]:
        return [name for name in imports(tree_of(path), inside_functions=False) if within(name, MAY_USE_TRITON)]

    assert offenders(wrong) == {}


def test_training_does_not_know_the_evaluator() -> None:
    def wrong(path: Path) -> list[str]:
        if not within(module_of(path), ("debias",)):
            return []
        inside = not within(module_of(path), MAY_USE_EVALUATOR)
        return [name for name in imports(tree_of(path), inside_functions=inside) if within(name, ("debias_eval",))]

    assert offenders(wrong) == {}


def test_nothing_imports_the_command_line() -> None:
    def wrong(path: Path) -> list[str]:
        face = ("debias.cli", "debias.demo")
        return [name for name in imports(tree_of(path)) if within(name, face) and room_of(module_of(path)) != "cli"]

    assert offenders(wrong) == {}


def test_only_one_file_subclasses_the_trainer() -> None:
    subclasses = [
        module_of(path)
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).rpartition(".")[2] == "Trainer" for base in node.bases)
    ]
    assert subclasses == ["debias.engines.checkpoints"]


def test_one_room_imports_deepspeed() -> None:
    users = [module_of(path) for path in FILES if any(within(name, ("deepspeed",)) for name in imports(tree_of(path)))]
    assert {within(name, ("debias.engines.zero",)) for name in users} == {True}


def test_rooms_stand_on_each_other() -> None:
    """No import runs back up: a room imports rooms of lower floors alone."""
    TopologicalSorter(ROOMS).prepare()


def test_no_import_cycles() -> None:
    """Of modules, counting what is imported inside functions and for the type checker alone."""
    graph = {module: {n for n in imports(tree_of(path)) if n in MODULES} - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def loads(code: str, *names: str) -> list[str]:
    """Which of `names` are loaded after `code` ran in a fresh process."""
    script = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_judging_needs_no_torch() -> None:
    """Not even through what it imports: results are read and reports written where nothing can train."""
    modules = [name for name in MODULES if within(name, ("debias_eval",)) and name not in COPIED]
    known = {"debias_eval.scores.scoring", "debias_eval.results.files", "debias_eval.reporting.report"}
    assert known | set(COPIED) <= set(MODULES)
    assert loads(f"import {', '.join(modules)}", "torch", "transformers", "peft") == []


def test_data_config_and_command_line_load_no_torch() -> None:
    modules = ("debias", "debias.config.run", "debias.errors", "debias.data", "debias.cli.app")
    assert loads(f"import {', '.join(modules)}", "torch", "transformers", "peft", "datasets") == []


@pytest.mark.slow
def test_the_mathematics_loads_no_transformers() -> None:
    modules = ("debias.methods", "debias.losses", "debias.gradients", "debias.engines")
    assert loads(f"import {', '.join(modules)}", "transformers", "peft", "bitsandbytes", "deepspeed") == []


def test_measures() -> None:
    def wrong(path: Path) -> Iterator[str]:
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE:
            yield f"{lines} lines"
        for function in functions(path):
            assert function.end_lineno is not None
            if (lines := function.end_lineno - function.lineno + 1) > LONGEST_FUNCTION:
                yield f"{function.name} has {lines} lines"

    assert offenders(wrong) == {}


def trusting(tree: ast.Module) -> list[int]:
    """Lines where transformers builds something by name without being told whether a folder's own code is run."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    reads = [call for call in calls if ast.unparse(call.func).endswith((".from_pretrained", ".from_config"))]
    words = re.compile(r"trust_remote_code=(False|trusted\(.*\)|(self|source)\.trusted)")
    told = [[one for one in call.keywords if words.fullmatch(ast.unparse(one))] for call in reads]
    return [
        call.lineno
        for call, no in zip(reads, told, strict=True)
        if not no and not ast.unparse(call.func).startswith("Peft")  # which runs none
    ]


def test_code_that_comes_with_a_model_is_run_where_it_is_trusted_alone() -> None:
    assert offenders(lambda path: trusting(tree_of(path))) == {}


def sources_made(tree: ast.Module) -> list[str]:
    """What each `ModelSource(...)` is told of whether the model's own code may run."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "ModelSource"]
    return [ast.unparse(call.args[2]) if len(call.args) == 3 else "?" for call in made]


def test_a_source_is_trusted_where_its_name_is() -> None:
    """`source.trusted` is as good as `trusted(name)`: sources are made in one place, which asks it."""
    made = {module: told for module, path in MODULES.items() if (told := sources_made(tree_of(path)))}
    assert made == {"debias.models.source": ["trusted(model)"]}


def names_of_a_run(tree: ast.Module) -> list[int]:
    """Lines with a string that names something in a run's folder, docstrings left out.

    `adapter`, `model` and `eval` are words too: they are names where they are a part of a path.
    """
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    divided = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    parts = {id(side) for node in divided for side in (node.left, node.right)}
    parts |= {id(one) for node in joined if node.func.attr == "joinpath" for one in node.args}  # type: ignore[attr-defined]
    return [
        node.lineno
        for node in strings
        if id(node) not in documentation
        and (OF_A_RUN.fullmatch(node.value) or (id(node) in parts and node.value in FOLDERS_OF_A_RUN))
    ]


def test_the_files_of_a_run_are_named_once() -> None:
    found = offenders(lambda path: names_of_a_run(tree_of(path)))
    assert set(found) == {"debias.runs.names"}


def test_the_names_of_a_run_load_nothing() -> None:
    heavy = ("torch", "transformers", "pydantic", "yaml", "debias.config.run")
    assert loads("import debias.runs.names", *heavy) == []


def test_nothing_is_printed() -> None:
    def wrong(path: Path) -> list[int]:
        calls = [node for node in nodes_of(path) if isinstance(node, ast.Call)]
        return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]

    assert offenders(wrong) == {}


def test_what_is_public_has_a_docstring() -> None:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

    def wrong(path: Path) -> list[str]:
        tree = tree_of(path)
        public = [n for n in tree.body if isinstance(n, kinds) and n.name[0] != "_" and not is_overload(n)]
        bare = [n.name for n in public if not ast.get_docstring(n)]
        return bare if ast.get_docstring(tree) else ["the module itself", *bare]

    assert offenders(wrong) == {}


def test_every_signature_is_typed() -> None:
    def wrong(path: Path) -> Iterator[str]:
        for function in functions(path):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            bare = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls", "ctx")]
            if bare or function.returns is None:
                yield f"{function.name}: {bare or 'what it returns'}"

    assert offenders(wrong) == {}


def test_the_checker_sees_what_it_should() -> None:
    """A checker that finds nothing anywhere would pass everything."""
    tree = ast.parse(
        "import a.b\nfrom debias import errors\nfrom debias.data import load_examples\ndef f():\n    import c\n"
    )
    assert list(imports(tree)) == ["a.b", "debias.errors", "debias.data", "c"]
    assert list(imports(tree, inside_functions=False)) == ["a.b", "debias.errors", "debias.data"]


def test_the_checker_sees_a_call_that_trusts() -> None:
    told, untold = "AutoConfig.from_pretrained(x, trust_remote_code=False)", "kind.from_config(x, dtype=y)"
    asked, always, resolved = (told.replace("False", word) for word in ("trusted(x)", "True", "source.trusted"))
    lines = [told, untold, "PeftModel.from_pretrained(a, x)", asked, always, resolved]
    assert trusting(ast.parse("\n".join(lines))) == [2, 5]
    assert sources_made(ast.parse("a.ModelSource(x, y, True)\nModelSource(x, y, trusted=True)")) == ["True", "?"]


def test_the_checker_sees_a_name_of_a_run() -> None:
    lines = [
        '"config.yaml"',
        'x = "config.yaml"',
        'x / "eval"',
        'x["eval"]',
        'x = f"checkpoint-{n}"',
        'x.joinpath("adapter")',
    ]
    assert names_of_a_run(ast.parse("\n".join(lines))) == [2, 3, 5, 6]
    assert names_of_a_run(ast.parse("x = 'config.yaml is not there'\ny = '*/run.json'")) == [2]


def test_the_checker_sees_a_wrong_door() -> None:
    tree = ast.parse("from debias_eval.scores import scoring\ndef f():\n    from debias_eval.judging import judge\n")
    assert foreign_to("eval.results", tree) == ["debias_eval.judging.judge"]
    assert foreign_to("eval.harness", tree) == []
    with pytest.raises(CycleError):
        TopologicalSorter({**ROOMS, "eval.scores": ("eval.harness",)}).prepare()


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest collects one of them alone, and calls the other an error."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
