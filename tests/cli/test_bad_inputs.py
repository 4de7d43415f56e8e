"""Every mistake that a user can type: its exact exit code, file:line:column, the way out, and nothing written or lost.

Each case is a finished run's folder (`finished` in conftest.py) with one thing wrong, and a command typed in it.
"""

# ruff: noqa: E501 - a case a line
from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from helpers.changes import ADAPTER, GO, LOG, ROW, ROWS, Change, config, edit, flip, link, pipe, put, recipe, rows, tree
from helpers.commands import Done
from helpers.recipes import TINY

BOM, LONG = b"\xef\xbb\xbf", "a" * 5000


class Case(NamedTuple):
    command: str | list[str]
    change: Change
    code: int
    sentence: str  # a regular expression


def remove(name: str) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def renamed(a: str, b: str) -> Change:
    return lambda folder: (folder / a).rename(folder / b)


def untokenised(folder: Path) -> None:
    for path in (folder / "model").glob("token*"):
        path.unlink()


def tensor_lost(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})


def parquet(folder: Path) -> None:
    rows(b"PAR1" + bytes(50) + b"PAR1", "rows.parquet")(folder)


def nothing(folder: Path) -> None:
    pass


CHAT = "task: {name: chat}"
TASK = next(line for line in TINY.splitlines() if line.startswith("task"))
SPACE = next(line for line in TINY.splitlines() if line.startswith("space"))
CASES: dict[str, Case] = {
    # recipes
    "a typo": Case(GO, recipe("lr: 1e-2", "lrr: 1e-2"), 2, r"my\.yaml:7:19: rule\.lrr: unknown key - did you mean 'lr'\?"),
    "another tool's word": Case(
        GO, recipe("lr: 1e-2", "learning_rate: 1e-2"), 2, r"my\.yaml:7:19: .* zoedge calls this 'rule\.lr'"
    ),
    "the right word elsewhere": Case(GO, recipe("", "eps: 1e-3\n"), 2, r"my\.yaml:11:1: eps: unknown key - did you mean 'es"),
    "a key twice": Case(GO, recipe("", "name: again\n"), 2, r"my\.yaml:11:1: 'name' stands twice\. Remove one"),
    "a tab": Case(GO, recipe("", "a:\n\t- 1"), 2, r"my\.yaml:12:1: not valid YAML: found character '\\t'"),
    "an anchor": Case(GO, recipe("", "seed: &a 1"), 2, r"my\.yaml:11:7: anchors and aliases .* Write the value out"),
    "a tag": Case(GO, recipe("", "seed: !!python/name:os.system"), 2, r"my\.yaml:11:7: the tag .* Remove it"),
    "a bracket left open": Case(GO, recipe("", "output: {export: [peft"), 2, r"my\.yaml:11:23: .*expected ',' or ']'"),
    "not a text": Case(GO, put("my.yaml", b"version: 1\nname: \xff\n"), 2, r"my\.yaml:2: not UTF-8 text \(byte 17\)"),
    "UTF-16": Case(GO, put("my.yaml", TINY.encode("utf-16")), 2, r"my\.yaml:1: not UTF-8 text \(byte 0\)"),
    "NUL bytes": Case(GO, recipe("tiny", "ti\0ny"), 2, r"my\.yaml:2:9: the character U\+0000 is not read"),
    "an escaped NUL": Case(GO, recipe("", 'output: {dir: "a\\0b"}'), 2, "my.yaml: .* without NUL characters"),
    "an empty recipe": Case(GO, put("my.yaml", b""), 2, r"a recipe is a table .* `zoedge recipes show quickstart`"),
    "a list": Case(GO, put("my.yaml", "- 1\n"), 2, "a recipe is a table"),
    "too large a recipe": Case(GO, recipe("", "# " + "x" * 65536), 2, r"my\.yaml: larger than 64 KiB: not a recipe"),
    "too deep": Case(GO, recipe("", "a: " + "[" * 40), 2, r"my\.yaml:11:19: nested more than 16 deep"),
    "a word for a number": Case(GO, recipe("4, batch", "many, batch"), 2, r"my\.yaml:8:9: train\.steps: 'many' is not a whole"),
    "a float for a number": Case(GO, recipe("4, batch", "4.0, batch"), 2, r"my\.yaml:8:9: .*not a whole number - write 4"),
    "not a number": Case(GO, recipe("1e-2", ".nan"), 2, r"my\.yaml:7:19: rule\.lr: \.nan is not a finite number"),
    "out of range": Case(GO, recipe("batch: 4", "batch: 0"), 2, r"my\.yaml:8:19: train\.batch: 0 is not .*1"),
    "an unknown rule": Case(GO, recipe("sgd", "sgdd"), 2, r"my\.yaml:7:8: rule: no 'sgdd'\. There is: .*did you mean 'sgd'"),
    "no data": Case(GO, recipe("data:", "eval2:"), 2, r"my\.yaml:1:1: data: missing - write 'data: \{train: rows\.jsonl\}'"),
    "another version": Case(GO, recipe("version: 1", "version: 2"), 2, r"my\.yaml:1:1: .* - write 'version: 1'"),
    "a name with a path": Case("finetune my.yaml name=../x", nothing, 2, r"\(key=value\): name: '\.\./x' is not a name"),
    "an odd choice of layers": Case(GO, recipe("last 1", "first 1"), 3, r"space\.layers: 'first 1' is not all, 'last 1' \.\. 'last 3'"),
    "CRLF and a BOM": Case(
        GO, put("my.yaml", BOM + TINY.replace("1e-2", "x").replace("\n", "\r\n").encode()), 2, r"my\.yaml:7:19: rule\.lr: 'x'"
    ),
    "all mistakes at once": Case(
        GO, recipe("lr: 1e-2", "lrr: 1, lrs: 2"), 2, r"(?s)my\.yaml:7:19: .*\n.*my\.yaml:7:27: rule\.lrs: unknown"
    ),
    "30,000 mistakes": Case(
        GO, recipe("", "output: {export: [" + "1," * 30000 + "]}"), 2, r"(?s)11:19: .*'peft' or 'merged'.*\.\.\. and \d+ more$"
    ),
    "the best of nothing": Case([*GO.split(), "eval.select=best", "data.valid=null"], nothing, 2, r"write data\.valid: \{split"),
    "nothing to merge": Case(GO, recipe(SPACE, "space: prompt\noutput: {export: [merged]}"), 2, r"my\.yaml:7:10: .*nothing to merge"),
    "parts that do not fit": Case(GO, recipe("sgd", "hizoo"), 2, r"my\.yaml:7:1: rule: hizoo goes only with estimator: curved, not two_sided"),
    "no equals sign": Case([*GO.split(), "rule.lr"], nothing, 2, r"'rule\.lr' is not key=value, such as rule\.lr=1e-3"),
    "an override that is no YAML": Case([*GO.split(), "train.steps=[1"], nothing, 2, r"Quotes make it a text: train\.steps="),
    "an override into a number": Case([*GO.split(), "seed.a=1"], recipe("", "seed: 1"), 2, "seed is not a table of keys"),
    "no such recipe": Case("finetune quickstartt", nothing, 2, "No recipe 'quickstartt': no such file, and not a shipped one. Did you mean quickstart"),
    "a folder for a recipe": Case("finetune model", nothing, 2, "No recipe 'model': no such file"),
    "a log for a recipe": Case(f"finetune {LOG}", nothing, 2, r"run\.zlog:1: not UTF-8 text"),
    "a recipe's name of 5,000 letters": Case(["finetune", LONG], nothing, 2, "File name too long"),
    "show what is no text": Case("recipes show my.yaml", put("my.yaml", b"\xff"), 2, r"my\.yaml:1: not UTF-8"),
    "copy over a file": Case("recipes cp quickstart my.yaml", nothing, 2, "my.yaml is there already; name another file"),
    "copy to nowhere": Case("recipes cp quickstart no/such/x.yaml", nothing, 2, "cannot write: No such file"),
    # rows
    "not JSON": Case(GO, rows(ROW + b'{"text": "a" "label": 1}\n'), 3, r"rows\.jsonl:2: not valid JSON: .*',' or '}' at column 14"),
    "NaN": Case(GO, rows(ROW + ROW + b'{"text": NaN}\n'), 3, r"rows\.jsonl:3: .*NaN is not JSON .*data\.skip_bad_lines=true"),
    "a field twice": Case(GO, rows(b'{"text": "a", "text": "b"}\n'), 3, 'rows.jsonl:1: .*the key "text" stands twice'),
    "a JSON array": Case(GO, rows(b'[{"text": 1}]'), 3, r"rows\.jsonl:1: a JSON array.*jq -c '\.\[\]' OLD > NEW"),
    "rows in Latin-1": Case(GO, rows(ROW + "{\"text\": \"é\"}".encode("latin-1")), 3, r"rows\.jsonl:2: not UTF-8 \(byte 10"),
    "a BOM inside": Case(GO, rows(ROW + BOM + ROW), 3, r"rows\.jsonl:2: .*a BOM inside the file"),
    "NUL in a row": Case(GO, rows(ROW + b'{"text": "a\0"}\n'), 3, r"rows\.jsonl:2: .*invalid control character at column 12"),
    "a line of 2 MiB": Case(GO, rows(ROW + b'{"text": "' + b"x" * (2 << 20) + b'"}\n' + ROW), 3, r"rows\.jsonl:2: longer than 1 MiB"),
    "a row too deep": Case(GO, rows(ROW + b"[" * 90_000 + b"\n"), 3, r"rows\.jsonl:2: nested more than 16 deep"),
    "half a character": Case(GO, rows(ROW + b'{"text": "\\ud800"}\n'), 3, r"rows\.jsonl:2: half a character"),
    "a number of 5,000 digits": Case(GO, rows(ROW + b'{"text": ' + b"9" * 5000 + b"}"), 3, r"rows\.jsonl:2: .*5,000 digits"),
    "CRLF rows": Case(GO, rows((ROW + b"{]\n").replace(b"\n", b"\r\n")), 3, r"rows\.jsonl:2: not valid JSON: .* at column 2"),
    "no good row": Case(GO, rows(b"version: 1\n"), 3, r"rows\.jsonl:1: .*is it the right file\?"),
    "an empty file": Case(GO, rows(b""), 3, r"rows\.jsonl: no rows: the file is empty"),
    "a missing label": Case(GO, rows(ROWS + b'{"text": "x"}\n'), 3, r'rows\.jsonl:31: field "label": missing\. It has: text'),
    "an unknown label": Case(GO, rows(ROWS + ROW.replace(b"positive", b"Positive")), 3, r'rows\.jsonl:31: .*"?Positive"?.*positive'),
    "other fields": Case(
        GO, rows(ROWS.replace(b"text", b"sentence")), 3, r"no row has text .*Add data\.fields: \{text: sentence\}"
    ),
    "too long a row": Case(
        GO, rows(ROWS + ROW.replace(b"a film", b"dull " * 90)), 3, r"first rows\.jsonl:31\)\. Raise data\.max_length, .*on_overflow"
    ),
    "too large a split": Case([*GO.split(), "data.valid.split=500"], nothing, 3, r"data\.valid: cannot take 500 of"),
    "no such rows": Case([*GO.split(), "data.train=row.jsonl"], nothing, 3, r"data\.train: no file .* did you mean 'rows\.jsonl'"),
    "a folder without rows": Case([*GO.split(), "data.train=model"], nothing, 3, r"data\.train: the folder model has no train\.jsonl\. It has: "),
    "rows in a .md": Case(GO, rows(ROW, "rows.md"), 3, r"'\.md' is not read\. Use \.jsonl, \.json, \.csv"),
    "plain text to classify": Case(GO, rows(ROWS, "rows.txt"), 3, r"rows\.txt: its rows are plain text, without label \(task\.label\)\. Set task: lm"),
    "rows that cannot be read": Case(GO, link("rows.jsonl", "/proc/self/mem"), 3, r"rows\.jsonl: cannot be read: Input/output"),
    "somebody else's home": Case([*GO.split(), "data.train=~nobody-here/x"], nothing, 3, "no file '~nobody-here/x'"),
    "a CSV line too short": Case(GO, rows(b"text,label\na,positive\nb\n", "rows.csv"), 3, r"rows\.csv:3: not 2 columns, as in"),
    "a quote left open": Case(GO, rows(b'text,label\n"a,positive\n', "rows.csv"), 3, r"rows\.csv:2: not valid CSV: .* Mend the line"),
    "a column twice": Case(GO, rows(b"text,text\na,b\n", "rows.csv"), 3, r"rows\.csv:1: a column's name stands twice"),
    "a CSV in Latin-1": Case(GO, rows(b"text,label\n\xe9,positive\n", "rows.csv"), 3, r"rows\.csv:2: not UTF-8"),
    "no Parquet": Case(GO, parquet, 3, r"rows\.parquet: not a readable Parquet file"),
    # models
    "no such model": Case([*GO.split(), "model.source=modell"], nothing, 3, "no folder 'modell', and not a packaged model .*ORG/NAME"),
    "a model of 5,000 letters": Case([*GO.split(), f"model.source={LONG}"], nothing, 2, "File name too long"),
    "a hub id, offline": Case([*GO.split(), "model.source=a/b"], nothing, 3, "cannot be fetched .*Give a local folder"),
    "no config.json": Case(GO, remove("model/config.json"), 3, "has no config.json: not a model folder"),
    "a bad config.json": Case(GO, put("model/config.json", "{"), 3, "config.json is not valid JSON: .*line 1 column 2"),
    "a config.json too deep": Case(GO, put("model/config.json", "[" * 90_000), 3, "config.json is not valid JSON"),
    "an odd config.json": Case(GO, config(hidden_size="many"), 3, r"model\.source: model: "),
    "an unknown family": Case(GO, config(model_type="gpt2"), 3, "'gpt2' is not supported yet. zoedge knows: gemma, gpt_neox, llama"),
    "a classifier": Case(GO, config(architectures=["LlamaForSequenceClassification"]), 3, "name the pretrained checkpoint"),
    "a pickle alone": Case(
        GO, renamed("model/model.safetensors", "model/pytorch_model.bin"), 3, "has pytorch_model.bin, a pickle, which can run code"
    ),
    "weights cut": Case(GO, edit("model/model.safetensors", lambda raw: raw[:-100]), 3, r"model\.source: model: .*not fully cov"),
    "weights cut in the header": Case(
        GO, edit("model/model.safetensors", lambda raw: raw[:100]), 3, r"a header of [\d,]+ bytes in a file of 100\. Use a complete"
    ),
    "a tensor lost": Case(GO, tensor_lost, 3, r"model\.norm\.weight\) missing: .* Use a complete checkpoint"),
    "more layers than weights": Case(GO, config(num_hidden_layers=10**9), 3, "says 1,000,000,000 layers, and the weights are"),
    "no tokenizer": Case(GO, untokenised, 3, "tokenizer"),
    "a pipe for weights": Case(GO, pipe("model/model.safetensors"), 3, "is not a regular file. Use a complete"),
    "quantised already": Case(
        [*GO.split(), "model.quantization=nf4"], config(quantization_config={"quant_method": "gptq", "bits": 4}), 3,
        "quantised already. Name the 16-bit model, or set quantization: none",
    ),
    "no chat template": Case(
        GO, lambda folder: (recipe(TASK, CHAT)(folder), put("rows.jsonl", ROWS.replace(b"text", b"prompt").replace(b"label", b"completion"))(folder)),
        3, "no chat template of its own. Set chatml, llama2 or plain",
    ),
    "no such layer": Case([*GO.split(), "space.layers=[7]"], nothing, 3, r"\[7\] must be different numbers in 0\.\.2"),
    "no such module": Case([*GO.split(), "space.targets=[q_prj]"], nothing, 3, "no module named 'q_prj' .* did you mean 'q_proj'"),
    # logs
    "no such run": Case("resume tinny", nothing, 2, "No run 'tinny': .* did you mean 'tiny'"),
    "an empty name": Case(["replay", ""], nothing, 2, "No run '': .* Under runs/: tiny"),
    "a run of 5,000 letters": Case(["resume", LONG], nothing, 2, "File name too long"),
    "an empty log": Case("verify tiny", put(LOG, b""), 5, "0 bytes are too few for a header .* Then delete it"),
    "not a log": Case("log show my.yaml", nothing, 5, "not its magic .*is it another file, or changed in transfer"),
    "a text as a log": Case("log show rows.jsonl", nothing, 5, "not its magic .*changed in transfer"),
    "a log through CRLF": Case("replay tiny", edit(LOG, lambda raw: raw.replace(b"\r\n", b"\n")), 5, "not its magic"),
    "a header cut": Case("verify tiny", edit(LOG, lambda raw: raw[:600]), 5, r"the header is [\d]+ bytes and the file ends after 600"),
    "a bit flipped in the header": Case("resume tiny", edit(LOG, flip(200)), 5, "the header's digest does not match"),
    "a bit flipped in a slot": Case(
        "resume tiny", edit(LOG, flip(-64 * 4)), 5, r"damaged at slot \d+ \(byte \d+, after \d steps\): .*`zoedge repair`"
    ),
    "a newer format": Case("log show tiny", edit(LOG, lambda raw: raw[:8] + b"\2" + raw[9:]), 5, "format 2.0 is not one that this version"),
    "a link to a log": Case(
        "resume tiny", lambda f: ((f / LOG).rename(f / "real.zlog"), (f / LOG).symlink_to(f / "real.zlog")), 74, "symbolic links"
    ),
    "a folder as a log": Case("verify runs", nothing, 2, "No run 'runs': no such log"),
    "a pipe as a log": Case("verify pipe", pipe("pipe"), 2, "No run 'pipe'"),
    "another recipe": Case("finetune my.yaml", recipe("1e-2", "2e-2"), 4, r"rule\.lr 0\.01 -> 0\.02\. Undo the change, or start a new"),
    "other rows": Case("verify tiny --against my.yaml", edit("rows.jsonl", lambda raw: raw[: len(raw) // 2 + 1].rsplit(b"\n", 1)[0]), 4, r"data\.train content"),
    "another base": Case("eval tiny", config(rms_norm_eps=1e-3), 4, r"the base model \(model\.source, quantization\)"),
    "a run that is there": Case("finetune my.yaml --resume never", nothing, 2, "Go on with `zoedge resume runs/tiny`"),
    "a step too far": Case("replay tiny --at 5", nothing, 2, "--at 5: not last, best or a number of steps; the log has 4"),
    "the best of no notes": Case("replay tiny --at best", put("runs/tiny/metrics.jsonl", '[1]\n{"event": "valid"}\n'), 2, "name a step: --at last"),
    "an export over other things": Case("replay tiny -o model", nothing, 2, "model is there and is not an export .* Name another"),
    "an export over a file": Case("replay tiny -o my.yaml", nothing, 2, "my.yaml is there and is not a folder. Name another"),
    "a copy over a file": Case(f"log export tiny -o {LOG}", nothing, 2, "is there already; name another file"),
    "a copy over a dead link": Case("log export tiny -o dead", link("dead", "nowhere"), 2, "is there already; name another file"),
    "a copy to nowhere": Case("log export tiny -o no/such/x.csv", nothing, 74, "cannot write: No such file"),
    "a run folder that is a file": Case("finetune my.yaml --run-dir rows.jsonl", nothing, 74, "Choose another output.dir"),
    # adapters
    "no adapter": Case("verify tiny --adapter model", nothing, 5, "no zoedge.json: .*`zoedge export` writes one"),
    "an adapter half written": Case(ADAPTER, remove("runs/tiny/adapter/zoedge.json"), 5, "not a complete zoedge export"),
    "an adapter's bit flipped": Case(ADAPTER, edit("runs/tiny/adapter/adapter_model.safetensors", flip(-5)), 5, "its bytes are not what was written"),
    "an adapter cut": Case(ADAPTER, edit("runs/tiny/adapter/adapter_model.safetensors", lambda raw: raw[:50]), 5, r"a header of [\d,]+ bytes in a file of 50"),
    "an adapter's config changed": Case(
        ADAPTER, edit("runs/tiny/adapter/adapter_config.json", lambda raw: raw.replace(b'"r": 2', b'"r": 4')), 5, "r is 4, and was written as 2"
    ),
    "an adapter of another base": Case(
        ADAPTER, edit("runs/tiny/adapter/zoedge.json", lambda raw: re.sub(rb'"base": "....', b'"base": "0000', raw)), 4, "is of another base"
    ),
    # command lines
    "no such command": Case("finetun my.yaml", nothing, 2, r"No such command 'finetun'.*See: zoedge --help"),
    "no such option": Case("replay tiny --ot x", nothing, 2, r"No such option: --ot .*--out.*See: zoedge replay --help"),
    "no argument": Case("replay", nothing, 2, "Missing argument 'run'. See: zoedge replay --help"),
    "too many arguments": Case("replay tiny tiny", nothing, 2, r"unexpected extra argument.*\(tiny\).*--help"),
    "an option without its value": Case("replay tiny -o", nothing, 2, "'-o' requires an argument"),
    "minus five steps": Case("log show tiny -n -5", nothing, 2, r"'-n'.*greater than or equal to 0"),
    "some steps": Case("log show tiny -n some", nothing, 2, "'-n'.*valid integer"),
    "minus five tokens": Case("generate tiny -p x --tokens -5", nothing, 2, "'--tokens'.*greater than or equal to 1"),
    "no rows to score": Case("eval tiny --limit 0", nothing, 2, "'--limit'.*greater than or equal to 1"),
    "another resume": Case("finetune my.yaml --resume tiny", nothing, 2, "not auto or never. To go on with a run: zoedge resume tiny"),
    "another device": Case("replay tiny --device meta", nothing, 2, "--device: 'meta' is not cpu or cuda"),
    "another export": Case("export tiny --to onnx", nothing, 2, "--to is peft, merged or gguf-lora"),
    "another quantisation": Case("quantize model --to int3", nothing, 2, "'int3' is not nf4, fp4 or int8"),
    "no such experiment": Case("lab run mesch", nothing, 2, "There is: .* did you mean 'mesh'"),
    "no such option of an experiment": Case("lab run flat-minima step=5", nothing, 2, "did you mean 'steps'"),
    "a colour in a name": Case(["lab", "run", "\x1b[31mred"], nothing, 2, r"lab: no '\\x1b\[31mred'"),
    "a colour in a path": Case(["verify", "\x1b[31m.zlog"], put("\x1b[31m.zlog", b"x" * 600), 5, r"^zoedge: \\x1b\[31m\.zlog: not a read"),
    "half a character in an argument": Case(["replay", "a\udcff"], nothing, 2, r"No run 'a\\udcff'"),
}  # fmt: skip


def test_there_are_sixty() -> None:
    assert len(CASES) >= 60 and len({case.sentence for case in CASES.values()}) > 60


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(finished, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    yield tmp_path / "user"


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_a_sentence_and_loses_nothing(name: str, folder: Path, zoedge: Callable[..., Done]) -> None:
    case = CASES[name]
    case.change(folder)
    before = tree(folder)
    done = zoedge(*(case.command.split() if isinstance(case.command, str) else case.command))
    assert done.code == case.code, done.err
    assert re.search(case.sentence, done.err.strip()), done.err
    assert done.err.startswith("zoedge: ") and "This is a bug" not in done.err and len(done.err) < 30_000
    assert all(c.isprintable() or c == "\n" for c in done.err)
    assert tree(folder) == before


def test_a_locked_run(folder: Path, zoedge: Callable[..., Done]) -> None:
    (folder / LOG).write_bytes((folder / LOG).read_bytes()[:-64])  # no END: there is something to go on with
    before = tree(folder)
    with (folder / LOG).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = zoedge("resume", "tiny")
    assert done.code == 6 and "another zoedge process is writing this run. Wait for it, or stop it" in done.err
    assert tree(folder) == before


def test_the_folder_itself_is_good(folder: Path, zoedge: Callable[..., Done]) -> None:
    """What the cases change one thing of."""
    assert yaml.safe_load(TINY)["name"] == "tiny"
    assert zoedge(*ADAPTER.split()).code == 0 and zoedge(*GO.split(), "--quiet").code == 0
