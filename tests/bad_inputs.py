"""Bad inputs to every verb, as a table: what lies in the folder, the words of the command, and what is said.

Each is one fault in a folder that is right otherwise (`GOOD`). A file is a text, bytes, or one of the marks below.
"""

import gzip
import json
from collections.abc import Mapping
from typing import NamedTuple

FOLDER, PIPE, LOOP = object(), object(), object()  # in the place of a file's content
Files = Mapping[str, object]


class Bad(NamedTuple):
    """`debias WORDS` in a folder with `files`, and a part of the one line."""

    words: tuple[str, ...]
    says: str
    files: Files


def row(**changes: object) -> str:
    """A row of data; `...` leaves a column out."""
    values = {"premise": "a man", "hypothesis": "a dog", "label": "neutral", "id": "x", **changes}
    return json.dumps({key: value for key, value in values.items() if value is not ...}) + "\n"


ROWS = "".join(row(label=label) for label in ("entailment", "neutral", "contradiction"))
CSV = "premise,hypothesis,label\na man,a dog,entailment\nb,c,neutral\nd,e,contradiction\n"
RUN = "model: Qwen3-0.6B\noutput_dir: out\ndata: {train: rows.jsonl}\n"
CAUSAL = (
    f'{RUN}head: causal_lm\nprompt:\n  template: "{{premise}} {{hypothesis}}"\n'
    '  verbalizers: {entailment: " yes", neutral: " maybe", contradiction: " no"}\n'
)
SUITE = "name: mine\nversion: 1\ndescription: d\nlicence: CC0\ntask: nli\nsource: rows.jsonl\n"
RESULT = {"suite": "mine", "version": 1, "n": 4, "accuracy": 0.5, "ci95": [0.1, 0.9], "ece": 0.1}
ADAPTER = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "./base", "r": 2, "lora_alpha": 2}
ADAPTER |= {"target_modules": ["query"]}
GOOD: Files = {
    "rows.jsonl": ROWS,
    "run.yaml": RUN,
    "causal.yaml": CAUSAL,
    "suite.yaml": SUITE,
    "done/config.yaml": f"{RUN}method: edge\n",
    "done/run.json": json.dumps({"status": "finished", "steps": 4, "seconds": 1.0, "seed": 0}),
    "done/metrics.jsonl": '{"step": 1, "epoch": 0.5, "loss": 1.0}\n',
    "done/adapter/adapter_config.json": json.dumps(ADAPTER),
    "done/adapter/adapter_model.safetensors": b"\x02" + b"\0" * 7 + b"{}",
    "done/eval/mine.json": json.dumps(RESULT),
    "other/config.yaml": f"{RUN}method: erm\n",
    "other/run.json": json.dumps({"status": "finished", "steps": 4}),
}
DEEP = "[" * 100_000
DIGITS = "9" * 5000
LONG = "x" * 300


def bad(words: str | tuple[str, ...], says: str, **files: object) -> Bad:
    """One line of the table; `__` in a file's name is a folder, and `_dot_` its dot."""
    named = {name.replace("__", "/").replace("_dot_", "."): content for name, content in files.items()}
    return Bad(tuple(words.split()) if isinstance(words, str) else words, says, named)


# --- settings of a run ------------------------------------------------------------------------------------------------

SCALARS = {
    "2024-13-40": "'2024-13-40' is no timestamp (month must be in 1..12)",
    "2024-02-30 25:00:00": "is no timestamp",
    "0x_": "'0x_' is no int",
    "0b_": "'0b_' is no int",
    DIGITS: "is no int (Exceeds the limit",
    "!!int abc": "'abc' is no int",
    "!!float x": "'x' is no float",
    "!!bool maybe": "'maybe' is no bool",
    "!!timestamp foo": "'foo' is no timestamp",
    "!!set [a]": "expected a mapping node",
    "!!omap 5": "not valid YAML",
    "!!python/name:os.system": "could not determine a constructor",
    "&a [*a]": "seed: input should be a valid integer, got [[[",
    "*nowhere": "found undefined alias",
    "{? [a]: b}": "found unhashable key",
    "{a: 1, a: 2}": "the key 'a' is there twice",
    "2024-01-01": "seed: input should be a valid integer",
    DEEP[:1500]: "nested too deeply",
    '"\\ud800"': "seed: ",
    "'": "not valid YAML",
    "@x": "not valid YAML",
    "\x07": "not valid YAML",
}
OF_A_FILE = [
    *(bad("train run.yaml", says, run_dot_yaml=f"{RUN}seed: {text}\n") for text, says in SCALARS.items()),
    bad("train nope.yaml", "nope.yaml: no such file"),
    bad("train qwen3_8b_qlora_edg", "did you mean qwen3_8b_qlora_edge?"),
    bad("train folder", "folder: cannot be read", folder=FOLDER),
    bad("train pipe.yaml", "pipe.yaml: is a pipe, expected a regular file", pipe_dot_yaml=PIPE),
    bad("train loop.yaml", "loop.yaml: ", loop_dot_yaml=LOOP),
    bad("train run.yaml/x", "run.yaml/x"),
    bad(("train", LONG), "File name too long"),
    bad("train ~nobody_here/run.yaml", "no such user here"),
    bad("train $NOT_SET_HERE/run.yaml", "the variable NOT_SET_HERE is not set"),
    bad("train run.yaml", "run.yaml: holds list", run_dot_yaml="- a\n"),
    bad("train run.yaml", "run.yaml: holds NoneType", run_dot_yaml=""),
    bad("train run.yaml", "run.yaml: cannot be read", run_dot_yaml=b"\xff\xfe\x00"),
    bad("train run.yaml", "run.yaml: cannot be read", run_dot_yaml=RUN.encode("utf-16")),
    bad("train run.yaml", "extends itself", run_dot_yaml="extends: run.yaml\n"),
    bad("train run.yaml", "extends is ['a']", run_dot_yaml="extends: [a]\n"),
    bad("train run.yaml", "$NOT_SET_HERE", run_dot_yaml="extends: $NOT_SET_HERE/a.yaml\n"),
    bad("train run.yaml", "gone.yaml: no such file", run_dot_yaml="extends: gone.yaml\n"),
    bad("train run.yaml", "data: missing", run_dot_yaml="model: m\noutput_dir: o\n"),
    bad("train run.yaml", "key", run_dot_yaml=f"{RUN}5: x\n"),
    bad("train run.yaml", "key", run_dot_yaml=f"{RUN}null: x\n"),
    bad("train run.yaml", "the key 'seed' is there twice", run_dot_yaml=f"{RUN}seed: 1\nseed: 2\n"),
]
SETTINGS = {
    "lora_r": "expected key=value",
    "=3": "expected key=value",
    "seed=[1": "not valid YAML",
    "seed=0x_": "not valid YAML",
    "seed=2024-13-40": "not valid YAML",
    f"seed={DIGITS}": "not valid YAML",
    "data={train: a, train: b}": "not valid YAML",
    "seed.x=1": "seed: ",
    "data.labels.0=x": "data.labels: input should be a list",
    "learning_rat=1": "did you mean learning_rate?",
    "trust_remote_code=true": "DEBIAS_TRUST_REMOTE_CODE",
    "fp16=true": "not supported; use bf16",
    "lora_r=1.5": "lora_r",
    "lora_r=true": "expected a number",
    "lora_r=0": "lora_r",
    "learning_rate=.nan": "learning_rate",
    "learning_rate=-1": "learning_rate",
    "learning_rate=fast": "'fast'",
    "max_steps=0": "max_steps is 0",
    "seed=-1": "seed",
    f"max_length={10**20}": "max_length",
    "bf16=maybe": "'maybe'",
    "head=regression": "'regression'",
    "gradients=three_pass": "'three_pass'",
    "save_strategy=often": "'often'",
    "eval_strategy=steps": "data.validation",
    "selection=validation": "needs data.validation",
    "method=egde": "did you mean edge?",
    "method=5": "method",
    "method=[edge]": "method",
    "method={name: edge, alpha: .nan}": "method.alpha",
    "method={name: edge, aplha: 1}": "did you mean alpha?",
    "loss=focl": "did you mean focal?",
    "loss={name: focal, gamma: x}": "loss.gamma",
    "order=sorted": "order.name",
    "bias_model=partial": "bias_model",
    "bias_model={name: partial_input, folds: x}": "bias_model.folds",
    "bias_weight=file": "column must be given",
    "bias_weight=bias_model": "bias_model is missing",
    "adapter=lor": "did you mean lora?",
    "adapter={type: lora, targets: 5}": "adapter.targets",
    "adapter={type: full, targets: [q]}": "adapter.targets",
    "first_stage={settings: {max_step: 1}}": "first_stage.settings",
    "first_stage={settings: {output_dir: x}}": "not the first stage's to choose",
    "model=": "model",
    "model=$NOT_SET_HERE/x": "the variable NOT_SET_HERE is not set",
    "model=~nobody_here/x": "no such user",
    "output_dir=''": "output_dir",
    "output_dir=$NOT_SET_HERE/x": "output_dir: '$NOT_SET_HERE/x': the variable NOT_SET_HERE is not set",
    "output_dir=${NOT_SET_HERE}/x": "the variable NOT_SET_HERE is not set",
    "output_dir=~nobody_here/x": "no such user",
    "output_dir=run.yaml": "run.yaml is a file, expected a folder",
    "output_dir=run.yaml/x/y": "run.yaml is a file, expected a folder",
    "output_dir=.": "is not empty and holds no run",
    f"output_dir={LONG}": "File name too long",
    "output_dir=done": "holds another run",
    "data=": "data",
    "data.train=": "data.train",
    "data.train=nope.jsonl": "no such file; looked for",
    "data.train=$NOT_SET_HERE/a.jsonl": "the variable NOT_SET_HERE is not set",
    "data.train=~nobody_here/a.jsonl": "no such user",
    "data.train=no-*.jsonl": "no file of that pattern",
    "data.train=folder": "neither a file here nor a dataset",
    "data.train=someone/nothing": "neither a file here nor a dataset",
    "data.train=https://example.org/a.jsonl": "no such file",
    "data.train={source: generated, split: tests}": "split is 'tests'",
    "data.train={source: generated, name: x}": "name is 'x'",
    "data.train={source: generated, delimiter: ';'}": "delimiter is ';'",
    "data.train={source: rows.jsonl, limit: 0}": "limit",
    "data.train={source: rows.jsonl, delimiter: ';'}": "goes with .csv and .tsv",
    "data.train={source: rows.jsonl, delimiter: ab}": "expected one character",
    "data.train={source: rows.jsonl, quotes: true}": "goes with .csv and .tsv",
    "data.train={source: rows.jsonl, phenomena: [a]}": "phenomena goes with source 'generated'",
    "data.train={source: rows.jsonl, name: big}": "name is 'big'",
    "data.train={source: rows.jsonl, limit: 1}": "no example of ",
    "data.text_fields=[]": "data.text_fields",
    "data.text_fields=premise": "a list",
    "data.text_fields=[premise, premise]": "holds a name twice",
    "data.text_fields=[premise, claim]": "no column 'claim'",
    "data.label_field=gold": "no column 'gold'",
    "data.group_field=kind": "no column 'kind'",
    "data.labels=[a]": "data.labels",
    "data.labels=[a, a]": "holds a name twice",
    "data.labels=[yes, no]": "quotes",
    "data.labels=[entailment, neutral]": "is not in labels",
    "data.label_map={x: unsure}": "'unsure'",
    "data.planted_bias={label: maybe}": "planted_bias.label is 'maybe'",
    "data.planted_bias={prevalence: 2}": "prevalence",
    "data.planted_color={strength: 0.5}": "planted_color",
    "lr_scheduler_type=liner": "did you mean linear?",
    "optim=adamw": "optim is 'adamw'",
    "report_to=tensorbord": "did you mean tensorboard?",
    "deepspeed=zero9": "did you mean zero",
    "deepspeed=$NOT_SET_HERE": "the variable NOT_SET_HERE is not set",
    "resume=true": "holds no run to resume",
    "prompt={template: a, verbalizers: {a: b}}": "prompt goes with head",
    "head=causal_lm": "prompt is missing",
}
OF_SETTINGS = [bad(("train", "run.yaml", text), says, folder=FOLDER) for text, says in SETTINGS.items()]

# --- rows -------------------------------------------------------------------------------------------------------------

JSONL = {
    "": "it is empty",
    "\n\n": "it is empty",
    f"{ROWS}[1]\n": "row 4: holds a JSON list",
    f"{ROWS}7\n": "row 4: holds a JSON int",
    f'{ROWS}{{"premise": "a\n': "row 4: broken JSON",
    f"{ROWS}{DEEP}\n": "row 4: broken JSON",
    f'{ROWS}{{"premise": {DIGITS}}}\n': "row 4: broken JSON",
    f'{ROWS}{{"label": "a", "label": "b"}}\n': "row 4: the key 'label' is there twice",
    f"{ROWS}{row(premise=...)}": "row 4: no column 'premise'",
    f"{ROWS}{row(premise=3)}": "row 4: premise is 3, expected text",
    f"{ROWS}{row(premise=None)}": "row 4: premise is None",
    f"{ROWS}{row(premise=['a'])}": "row 4: premise is ['a']",
    f"{ROWS}{row(hypothesis=' ')}": "row 4: hypothesis is empty",
    f"{ROWS}{row(hypothesis=chr(0xD800))}": "row 4: hypothesis holds half of a character",
    f"{ROWS}{row(label='unsure')}": "row 4: label 'unsure' is not in labels",
    f"{ROWS}{row(label={'a': 1})}": "row 4: label {'a': 1}",
    f"{row(label='-')}{row(label=None)}{row(label='')}": "all rows lack a gold label",
    row(): "no example of entailment, contradiction among 1",
    json.dumps([json.loads(row())]): "row 1: holds a JSON list",
}
TABLES = {
    "": "it is empty",
    "premise,hypothesis,label\n": "it is empty",
    f"{CSV}a,b\n": "row 4: number of fields differs",
    f"{CSV}a,b,neutral,x\n": "row 4: number of fields differs",
    f"{CSV},b,neutral\n": "row 4: premise is empty",
    f'{CSV}"a, b",c,neutral\n"never,b,neutral\n': "row 5: broken CSV",
    f'{CSV}"a, b",c,neutral\n"a"b,c,neutral\n': "row 5: broken CSV",
    f'{CSV}"a, b",c,neutral\n"open,b,neutral\nc,d,neutral\nshut",e,neutral\n': "row 5: a quote opens in 'premise'",
    CSV.replace("label", "premise"): "'premise' is there twice",
    CSV.replace(",", ";"): 'set delimiter: ";"',
    CSV.replace(",", "\t"): 'set delimiter: "\\t"',
    CSV.replace("hypothesis", ""): "no column 'hypothesis'",
}
IDX = {"train-images-idx3-ubyte": b"abc"}
PACKED = gzip.compress(ROWS.encode() * 50)
OF_ROWS = [
    *(bad("train run.yaml", f"rows.jsonl: {says}" if says[:3] == "row" else says, rows_dot_jsonl=text)
      for text, says in JSONL.items()),
    *(bad("train run.yaml data.train=rows.csv", says, rows_dot_csv=text) for text, says in TABLES.items()),
    bad("train run.yaml", "not UTF-8 text", rows_dot_jsonl=b"\xff\xfe" + ROWS.encode()),
    bad("train run.yaml", "not UTF-8 text", rows_dot_jsonl=ROWS.encode("utf-16")),
    bad("train run.yaml data.train=rows.jsonl.gz", "damaged gzip file", rows_dot_jsonl_dot_gz=PACKED[:60]),
    bad("train run.yaml data.train=rows.jsonl.gz", "damaged gzip file", rows_dot_jsonl_dot_gz=ROWS),
    bad("train run.yaml data.train=rows.jsonl.zst", "cannot be read", rows_dot_jsonl_dot_zst=ROWS),
    bad("train run.yaml data.train=rows.parquet", "cannot be read", rows_dot_parquet=ROWS),
    bad("train run.yaml data.train=rows.parquet", "cannot be read", rows_dot_parquet=b""),
    bad("train run.yaml data.train=rows.xlsx", "openpyxl", rows_dot_xlsx=b"PK"),
    bad("train run.yaml data.train=rows.xls", "unknown kind of file", rows_dot_xls=b"x"),
    bad("train run.yaml data.train=rows.csv", "cannot be read", rows_dot_csv=FOLDER),
    bad("train run.yaml data.train=pipe.csv", "is a pipe", pipe_dot_csv=PIPE),
    bad("train run.yaml data.train=pipe", "is a pipe", pipe=PIPE),
    bad("train run.yaml data.train=loop.csv", "loop.csv is a link to what is not here", loop_dot_csv=LOOP),
    bad("train run.yaml data.train=p?.jsonl", "p2.jsonl: row 1: broken JSON", p1_dot_jsonl=ROWS, p2_dot_jsonl="x\n"),
    bad("train run.yaml data.train=train-images-idx3-ubyte", "image_classification", **IDX),
    bad(("train", "run.yaml", "data={train: train-images-idx3-ubyte}", "head=image_classification", "model=vision:mlp"),
        "no file of labels", **IDX),
    bad(("train", "run.yaml", "bias_weight={source: file, column: w}"), "no column 'w'"),
    bad(("train", "run.yaml", "bias_weight={source: file, column: id}"), "id is 'x', expected a finite number"),
]  # fmt: skip

# --- suites -----------------------------------------------------------------------------------------------------------

OF_A_SUITE = {
    "name: ../x": "name",
    "name: 2024-13-40": "is no timestamp",
    "version: 0": "version",
    f"version: {DIGITS}": "is no int",
    "task: nil": "task",
    "sorce: x": "did you mean source?",
    "source: /etc/passwd.csv": "leads outside",
    "source: ../rows.jsonl": "leads outside",
    "source: ~/rows.jsonl": "leads outside",
    "source: $HOME/rows.jsonl": "leads outside",
    "source: rows.exe": "expected a file",
    "source: {source: rows.csv, delimiter: ab}": "expected one character",
    "source: null": "no data",
    "hub: {source: x}": "hub.source",
    "text_fields: []": "text_fields",
    "labels: [a]": "labels",
    "labels: [yes, no]": "quotes",
    "label_map: {0: x}": "label_map",
    "merge: {a: b}": "merge sends",
    "label_threshold: 0.5": "label_threshold needs two labels",
    "cluster: {field: id, regex: '('}": "is not a regular expression",
    "cluster: {field: id, regex: '*x'}": "is not a regular expression",
    "cluster: {field: id, regex: abc}": "no group in parentheses",
    "cluster: {field: id, words: [a]}": "cluster.words",
    "group_columns: {names: [a], at_least: 1}": "group_columns fill group_field",
    "group_columns: {names: [a], at_least: .nan}": "at_least",
    "consistency: true": "consistency is about clusters",
    "stress: negatoin": "stress",
    "gap: {aligned: [a], conflicting: [b]}": "gap names groups",
    "input_ablation: [claim]": "input_ablation names 'claim'",
    "planted_bias: {field: claim}": "planted_bias.field is 'claim'",
    "group_rule: {partial_input: {fields: [premise, hypothesis], train: a.csv}}": "partial_input.fields",
    "group_rule: {partial_input: {fields: [premise], train: ../a.csv}}": "leads outside",
    "keep: {field: id}": "keep.values",
    "licence: [x": "not valid YAML",
}


def changed(line: str) -> str:
    """The suite with one of its lines in the place of its own."""
    key = line.partition(":")[0]
    return "".join(own for own in SUITE.splitlines(True) if not own.startswith(f"{key}:")) + line + "\n"


EXPORT = "export-harness ./suite.yaml --prompt causal.yaml --no-compare-tokens -o tasks"
OF_SUITES = [
    *(bad("suites ./suite.yaml", says, suite_dot_yaml=changed(line)) for line, says in OF_A_SUITE.items()),
    *(bad(EXPORT, says, suite_dot_yaml=changed(line)) for line, says in {
        "keep: {field: id, values: [y]}": "keep names id 'y'",
        "keep: {field: kind, values: [y]}": "no column 'kind' (keep)",
        "group_field: kind": "no column 'kind'",
        "cluster: {field: kind}": "no column 'kind'",
        "cluster: {field: id, regex: '(\\d+)'}": "finds nothing in id",
        "source: gone.jsonl": "no gone.jsonl",
        "source: gone-*.jsonl": "no gone-*.jsonl",
        "source: {source: rows.jsonl, quotes: true}": "goes with .csv and .tsv",
        "text_fields: [premise, claim]": "no column 'claim'",
    }.items()),
    *(bad(EXPORT, says, rows_dot_jsonl=text) for text, says in list(JSONL.items())[:-2]),
    bad(EXPORT, "is a pipe", suite_dot_yaml=changed("source: pipe.csv"), pipe_dot_csv=PIPE),
    bad("suites snil", "did you mean snli?"),
    bad("suites ./gone.yaml", "no such file"),
    bad("suites ./pipe.yaml", "is a pipe", pipe_dot_yaml=PIPE),
    bad("suites ./folder", "no such file", folder=FOLDER),
    bad("suites ~nobody_here/x", "no such user"),
]  # fmt: skip

# --- judging, reporting -----------------------------------------------------------------------------------------------

RESULTS = {
    "": "damaged results",
    "[]": "damaged results",
    "{}": "damaged results",
    DEEP: "damaged results",
    f'{{"n": {DIGITS}}}': "damaged results",
    json.dumps({**RESULT, "accuracy": 2}): "damaged results: accuracy",
    json.dumps({**RESULT, "accuracy": 0.3}): "is no share of 4 examples",
    json.dumps({**RESULT, "ci95": [0.6, 0.9]}): "does not hold the accuracy",
    json.dumps({**RESULT, "suite": "theirs"}): "holds results of the suite 'theirs'",
    json.dumps({**RESULT, "ece": float("nan")}): "damaged results",
}
OF_RESULTS = [
    *(bad("report done -o page.html", says, done__eval__mine_dot_json=text) for text, says in RESULTS.items()),
    *(bad("report done -o page.html", "run.json: damaged", done__run_dot_json=text)
      for text in ("", "{", DEEP, DIGITS)),
    bad("report done -o page.html", "holds list", done__run_dot_json="[]"),
    bad("report done -o page.html", "is a pipe", done__eval__mine_dot_json=PIPE),
    bad("report done -o page.html", "not valid YAML", done__config_dot_yaml="a: [1"),
    bad("report gone -o page.html", "no such run folder"),
    bad("report rows.jsonl -o page.html", "3 lines are no kept runs"),
    bad("report folder -o page.html", "not a run folder", folder=FOLDER),
    bad(("report", LONG, "-o", "page.html"), LONG[:20]),
    bad("report $NOT_SET_HERE/run -o page.html", "the variable NOT_SET_HERE is not set"),
    bad("report done -o done/run.json", "a run's own record"),
    bad("report done -o done/config.yaml", "a run's own record"),
    bad("report done -o done/adapter/page.html", "a run's own record"),
    bad("report done -o done/eval/page.html", "a run's own record"),
    bad("report done -o done/checkpoint-1/page.html", "a run's own record"),
    bad("report done -o other/metrics.jsonl", "a run's own record"),
    bad("report done -o done/page.html", "would lie inside the run"),
    bad("report done -o other/figures/page.html", "would lie inside the run"),
    bad("report done -o page.html --latex done/table.tex", "would lie inside the run"),
    bad("report done -o folder", "is a folder", folder=FOLDER),
    bad("report done -o pipe", "is a pipe", pipe=PIPE),
    bad("report done -o /dev/null", "is a device"),
    bad("report done -o rows.jsonl/page.html", "rows.jsonl"),
    bad(("report", "done", "-o", LONG), "File name too long"),
    bad("report done -o page.html --markdown done/run.json", "a run's own record"),
    bad("report done -o page.html --latex done/metrics.jsonl", "a run's own record"),
    bad("report done -o page.html --latex page.html", "page.html is given twice"),
    bad("report done -o page.html --markdown folder", "is a folder", folder=FOLDER),
    bad("card gone", "no such run folder"),
    bad("compare done", "two"),
    bad("compare done gone", "gone"),
    bad("compare done --against", "expected folders"),
    bad("compare --against done", "expected folders"),
    bad("compare done other", "nothing to compare"),
    bad("select gone", "gone"),
    bad("select done --rule bset", "bset"),
    bad("select done --rule oracle --suite theirs", "theirs"),
    bad("eval done", "--suite is missing"),
    bad("eval done --suite snil", "did you mean snli?"),
    bad("eval done --suite ./gone.yaml", "no such file"),
    bad("eval done --suite ./suite.yaml", "leads outside", suite_dot_yaml=changed("source: ../a.csv")),
    bad("eval gone --suite ./suite.yaml", "gone"),
    bad("eval folder --suite ./suite.yaml", "folder", folder=FOLDER),
    bad("eval --suite ./suite.yaml", "nothing to judge"),
    bad("eval --suite ./suite.yaml --model ./gone", "-o is missing"),
    bad("eval --suite ./suite.yaml --model ./gone -o j", "no folder"),
    bad("eval --suite ./suite.yaml --model $NOT_SET_HERE/m -o j", "the variable NOT_SET_HERE is not set"),
    bad("eval --suite ./suite.yaml --model ./base --adapter ./gone -o j", "no folder"),
    bad("eval --suite ./suite.yaml --model ~nobody_here/m -o j", "no such user"),
    bad("eval done --suite ./suite.yaml --model m", "a run has its own"),
    bad("eval done --suite ./suite.yaml --normalize words", "--normalize: 'words'"),
    bad("eval done --suite ./suite.yaml --calibrate x", "--calibrate: 'x'"),
    bad("eval done --suite ./suite.yaml --overlap x", "--overlap: 'x'"),
    bad("eval done --suite ./suite.yaml --limit 0", "--limit"),
    bad("eval done --suite ./suite.yaml", "not valid YAML", done__config_dot_yaml="a: [1"),
]  # fmt: skip

# --- harness, edits, merging ------------------------------------------------------------------------------------------

OF_OTHERS = [
    bad("export-harness ./suite.yaml --prompt run.yaml -o tasks", "head is 'classification'"),
    bad("export-harness ./suite.yaml --prompt gone.yaml -o tasks", "no such file"),
    bad("export-harness snil --prompt causal.yaml -o tasks", "did you mean snli?"),
    bad("export-harness ./suite.yaml --prompt causal.yaml --no-compare-tokens -o rows.jsonl", "rows.jsonl"),
    bad("export-harness ./suite.yaml --prompt causal.yaml --no-compare-tokens -o done/eval", "a run's own record"),
    bad("import-harness gone.jsonl -o j", "gone.jsonl: cannot be read"),
    bad("import-harness folder -o j", "holds no samples_", folder=FOLDER),
    *(bad("import-harness s.jsonl -o j", says, s_dot_jsonl=text) for text, says in {
        "": "is empty", "x\n": "line 1: damaged", "[]\n": "line 1: holds list", f"{DEEP}\n": "line 1: damaged",
        f"{DIGITS}\n": "line 1: damaged", "{}\n": "not a sample", '{"doc": {"debias": 5}}\n': "line 1: ",
    }.items()),
    bad("import-harness s.jsonl -o j", "not UTF-8", s_dot_jsonl=b"\xff"),
    bad("import-harness pipe -o j", "is a pipe", pipe=PIPE),
    bad("edit soop done other -o e", "soup"),
    bad("edit soup gone done -o e", "gone"),
    bad("edit soup done -o e --set weights", "expected key=value"),
    bad("edit scale done -o e --set alpha=0x_", "not valid YAML"),
    bad("edit scale done -o e --set alhpa=1", "alpha"),
    bad("edit truncate done -o e --set keep=x", "keep"),
    bad("edit scale done -o done/adapter --set alpha=1", "done"),
    *(bad("edit scale done -o e", "adapter' cannot be read", done__adapter__adapter_config_dot_json=text)
      for text in ("", "[]", "{", DEEP)),
    bad("merge gone -o m", "gone"),
    bad("merge done -o m --adapter gone", "gone"),
    bad("merge done -o m --dtype int3", "int3"),
    bad("merge done -o m --scale nan", "scale"),
    bad("merge done -o rows.jsonl", "rows.jsonl"),
    bad("merge done -o done/adapter", "done"),
    bad("merge done -o folder", "is not empty", folder__x="x"),
]  # fmt: skip

# --- plans, launching, sweeps -----------------------------------------------------------------------------------------

SLURM, K8S = "launch slurm run.yaml", "launch k8s run.yaml --image i:1"
MOUNTED = f"{K8S} --volume c:/ output_dir=/v/out data.train=generated"
OF_PLANS = [
    *(bad(f"plan run.yaml --gpu-memory {size}", "--gpu-memory") for size in ("80", "x", "0GB", "-1GB", "8XB")),
    bad("plan run.yaml model=someone/unknown", "someone/unknown"),
    bad("plan run.yaml model=./gone", "gone"),
    bad("plan run.yaml model=$NOT_SET_HERE/m", "the variable NOT_SET_HERE is not set"),
    bad("plan run.yaml --gpus -1", "--gpus"),
    bad("plan run.yaml --seq-length 1", "--seq-length"),
    bad("plan gone.yaml", "no such file"),
    bad("plan run.yaml lora_r=x", "lora_r"),
    *(bad("plan run.yaml deepspeed=./ds.json", says, ds_dot_json=text) for text, says in {
        "": "not valid JSON", "[]": "holds list", '{"x": 1}': "x is not a setting", DEEP: "not valid JSON",
        f'{{"train_batch_size": {DIGITS}}}': "not valid JSON", '{"zero_optimization": 3}': "zero_optimization is 3",
        '{"zero_optimization": {"stage": 7}}': "stage is 7",
    }.items()),
    bad("plan run.yaml deepspeed=./ds.json", "is no file", ds_dot_json=PIPE),
    bad("plan run.yaml deepspeed=./ds.json", "cannot be read", ds_dot_json=b"\xff"),
    bad(f"{SLURM} --name a/b", "--name"),
    bad((*SLURM.split(), "--partition", "a b"), "--partition"),
    bad(f"{SLURM} --time 1:2:3:4", "--time"),
    bad(f"{SLURM} --time 3", "--time is 3"),
    bad(f"{SLURM} --array-seeds x", "--array-seeds"),
    bad(f"{SLURM} --array-seeds 1,1", "--array-seeds"),
    bad(f"{SLURM} --global-batch 7", "--global-batch is 7"),
    bad(f"{SLURM} --gpus-per-node 2 --ranks-per-node 3", "--ranks-per-node"),
    bad(f"{SLURM} --gpu-memory x", "--gpu-memory"),
    bad(f"{SLURM} --grace 1", "--grace"),
    bad(f"{SLURM} -o rows.jsonl", "exists already"),
    bad(f"{SLURM} -o rows.jsonl/x", "cannot be written"),
    bad(f"{SLURM} -o done/eval/job", "a run's own record"),
    bad(f"{SLURM} overwrite_output_dir=true", "overwrite_output_dir"),
    bad(f"{SLURM} output_dir=$NOT_SET_HERE/x", "the variable NOT_SET_HERE is not set"),
    bad("launch slurm gone.yaml", "no such file"),
    bad("launch slurm run.yaml --nodes 0", "--nodes"),
    bad("launch local gone.yaml", "no such file"),
    bad("launch local run.yaml --nproc 0", "--nproc"),
    bad("launch local run.yaml seed=x", "seed"),
    bad("launch local run.yaml output_dir=~nobody_here/x", "no such user"),
    bad("launch k8s run.yaml", "--image"),
    bad(f"{K8S} --volume x", "--volume"),
    bad(f"{K8S} --env x", "--env"),
    bad(f"{K8S} --env A=1 --env A=2", "given twice"),
    bad(f"{K8S} --volume c:/v --env 5=a output_dir=/v/out", "--env"),
    bad(f"{K8S} --volume c:relative", "--volume"),
    bad(MOUNTED, "--volume"),
    bad(f"{K8S} --memory 5", "--memory"),
    bad(f"{K8S} --namespace A_b", "--namespace"),
    bad("launch k8s run.yaml --image a;b", "--image"),
    bad(f"{K8S} --name {LONG}", "--name"),
    bad("sweep run.yaml -o s --seeds 0", "--seeds"),
    bad("sweep run.yaml -o s --seeds a", "--seeds"),
    bad("sweep run.yaml -o s --set lora_r", "--set"),
    bad("sweep run.yaml -o s --set seed=1", "a sweep sets seed itself"),
    bad("sweep run.yaml -o s --set lora_r=", "no value"),
    bad("sweep run.yaml -o s --set lora_r=0x_,1", "not valid YAML"),
    bad("sweep run.yaml -o s --set lora_r=x", "lora_r"),
    bad("sweep run.yaml -o s --suite snil", "did you mean snli?"),
    bad("sweep run.yaml -o s --only 99", "--only 99"),
    bad("sweep run.yaml -o s --print-commands --only 0", "--print-commands"),
    bad("sweep gone.yaml -o s", "no such file"),
    bad("sweep run.yaml -o rows.jsonl", "is a file"),
    bad("sweep run.yaml -o done/eval --dry-run", "a run's own record"),
    bad("fetch gone.yaml", "no such file"),
    bad("fetch run.yaml model=./gone", "gone"),
    bad("fetch run.yaml model=someone/unknown", "someone/unknown"),
    bad("fetch run.yaml model=package:nope", "package:nope"),
    bad("methods egde", "edge"),
    bad("bench step --batch 0", "--batch"),
    bad("bench step --model ./gone", "gone"),
    bad("bench combine --model nothing", "nothing"),
    bad("bench cost --model nothing", "nothing"),
    bad("bench plan --model nothing", "nothing"),
    bad("bench gpu --shape nothing --device cpu", "nothing"),
    bad("bench gpu --what nothing --shape tiny --device cpu", "nothing"),
    bad("bench judge --suite snil", "snli"),
    bad("bench judge --suite ./suite.yaml --prompt gone.yaml", "no such file"),
    bad("doctor --gpu-memory x", "--gpu-memory"),
    bad("init --data rows.jsonl -o new.yaml", "--model is missing"),
    bad("init --data gone.csv --model m -o new.yaml", "no such file"),
    bad("init --data rows.jsonl --model m -o run.yaml", "is there already"),
    bad("init --data rows.jsonl --model m -o done/eval/run.yaml", "a run's own record"),
    bad("init --data rows.jsonl --model m --head none -o new.yaml", "--head is 'none'"),
    bad("init --data rows.jsonl --model m -o rows.jsonl/new.yaml", "rows.jsonl"),
    bad("init --data rows.jsonl --model m --text-field gone -o new.yaml", "no column 'gone'"),
    bad("predict done other --data rows.jsonl", "2 runs were given"),
    bad("predict done --data rows.jsonl -o done/eval/mine.csv", "a run's own record"),
    bad("predict done --data rows.jsonl -o pipe.csv", "a pipe", pipe_dot_csv=PIPE),
    bad("predict done --data gone.csv", "no such file"),
    bad("predict done --data rows.jsonl --delimiter ;", "goes with .csv and .tsv"),
    bad("predict done --data short.jsonl", "row 1: no column 'hypothesis'", short_dot_jsonl=row(hypothesis=...)),
    bad("predict done --data odd.jsonl", "row 1: premise is 3, expected text", odd_dot_jsonl=row(premise=3)),
    bad("predict --model ./gone --data rows.jsonl", "gone"),
    bad("demo -o rows.jsonl", "rows.jsonl"),
]  # fmt: skip

VERBS = ["train", "eval", "report", "card", "compare", "suites", "methods", "sweep", "select", "plan", "doctor"]
VERBS += ["predict", "init", "fetch", "edit", "merge", "export-harness", "import-harness", "demo"]
GROUPS = {"bench": "step zero combine cost plan gpu judge", "launch": "local slurm k8s"}
EVERY_VERB = [*((verb,) for verb in VERBS), *((group, one) for group, all_ in GROUPS.items() for one in all_.split())]
OF_USAGE = [
    bad("trian", "Did you mean 'train'?"),
    *(bad((*verb, "--no-such-option"), "no-such-option") for verb in EVERY_VERB if verb != ("compare",)),
]

CASES = [*OF_A_FILE, *OF_SETTINGS, *OF_ROWS, *OF_SUITES, *OF_RESULTS, *OF_OTHERS, *OF_PLANS, *OF_USAGE]
