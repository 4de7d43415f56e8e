"""Every command as a user types it, on a tiny model: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done

from zoedge.log.log import Log
from zoedge.run import folder as run_folder
from zoedge.run import identity, setup


@pytest.fixture
def trained(recipe_file: Path, zoedge: Callable[..., Done]) -> Path:
    done = zoedge("finetune", recipe_file, "rule.lr=0.05", "--plain")
    assert done.code == 0, done.err
    return recipe_file.parent / "runs" / "tiny"


def test_finetune_shows_before_during_and_after(recipe_file: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("finetune", recipe_file, "--plain")
    folder = recipe_file.parent / "runs" / "tiny"
    assert done.code == 0, done.err
    for part in (
        "step 0: accuracy",
        "step 10: accuracy",
        "zero-shot",
        "after 24 steps",
        "fingerprint",
        "zoedge replay",
    ):
        assert part in done.out
    assert {p.name for p in folder.iterdir()} >= {"run.zlog", "recipe.yaml", "metrics.jsonl", "adapter"}
    with Log.open(folder / "run.zlog") as log:
        assert len(log) == 24 and log.state.end is not None and log.fingerprint in done.out


def test_a_second_finetune_redoes_nothing(recipe_file: Path, trained: Path, zoedge: Callable[..., Done]) -> None:
    before = (trained / "run.zlog").read_bytes()
    done = zoedge("finetune", recipe_file, "rule.lr=0.05", "--plain")
    assert done.code == 0 and "after 24 steps" in done.out and "loading" not in done.out
    assert (trained / "run.zlog").read_bytes() == before
    assert zoedge("finetune", recipe_file, "rule.lr=0.05", "--resume", "never").code == 2


def test_another_recipe_in_the_same_folder_is_refused_with_the_field(
    recipe_file: Path, trained: Path, zoedge: Callable[..., Done]
) -> None:
    done = zoedge("finetune", recipe_file, "rule.lr=0.05", "estimator.eps=0.02")
    assert done.code == 4 and "estimator.eps 0.01 -> 0.02" in done.err


def test_replay_and_all_levels_of_verify(
    recipe_file: Path, trained: Path, tmp_path: Path, zoedge: Callable[..., Done]
) -> None:
    moved = tmp_path / "elsewhere.zlog"
    moved.write_bytes((trained / "run.zlog").read_bytes())
    done = zoedge("replay", moved, "-o", tmp_path / "rebuilt")
    assert done.code == 0, done.err
    for folder in (trained / "adapter", tmp_path / "rebuilt"):
        done = zoedge("verify", moved, "--replay", "--adapter", folder)
        assert done.code == 0 and "bit for bit" in done.out, done.err
    name = "adapter_model.safetensors"
    assert (trained / "adapter" / name).read_bytes() == (tmp_path / "rebuilt" / name).read_bytes()
    done = zoedge("replay", moved, "--to-step", 11, "-o", tmp_path / "half")
    assert done.code == 0
    assert zoedge("verify", moved, "--adapter", tmp_path / "half").code == 8
    own = tmp_path / "own.yaml"
    own.write_text(recipe_file.read_text().replace("lr: 1e-2", "lr: 0.05"))
    done = zoedge("verify", moved, "--against", own)
    assert done.code == 0 and "24 batches" in done.out, done.err
    assert zoedge("verify", moved, "--against", recipe_file).code == 4


def test_verify_names_a_damaged_slot_and_a_wrong_state(
    trained: Path, tmp_path: Path, zoedge: Callable[..., Done]
) -> None:
    from zoedge.log.slots import chain_value, encode_slot

    raw = bytearray((trained / "run.zlog").read_bytes())
    bad = tmp_path / "bad.zlog"
    raw[-64 * 5 + 25] ^= 1
    bad.write_bytes(raw)
    done = zoedge("verify", bad)
    assert done.code == 5 and "slot" in done.err and "byte" in done.err
    with Log.open(trained / "run.zlog") as log:  # a whole log whose g of step 12 is another: only replay can tell
        header = log.header.encode()
        link, out = header[480:496], bytearray(header)
        for seq, slot in enumerate(iter_slots(trained / "run.zlog", len(header))):
            body = slot[:-16]
            if body[0] == 1 and int.from_bytes(body[8:12], "little") == 12:
                record = log[12]._replace(g=(log[12].g[0] * 2,))
                body = encode_slot(64, 1, seq, 12, record)
            link = chain_value(link, body)
            out += body + link
    forged = tmp_path / "forged.zlog"
    forged.write_bytes(out)
    assert zoedge("verify", forged).code == 0
    done = zoedge("verify", forged, "--replay")
    assert done.code == 8 and "10..14" in done.err, done.err


def iter_slots(path: Path, start: int) -> Any:
    raw = path.read_bytes()
    for i in range(start, len(raw), 64):
        yield raw[i : i + 64]


def test_log_show_export_diff(trained: Path, tmp_path: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("log", "show", trained, "-n", 3)
    assert done.code == 0 and "fingerprint" in done.out and "     23 " in done.out
    rows = [json.loads(line) for line in zoedge("log", "show", trained, "--json").out.splitlines()]
    assert rows[0]["steps"] == 24 and [r["step"] for r in rows[1:]] == list(range(24))
    assert zoedge("log", "export", trained, "-o", tmp_path / "log.csv").code == 0
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 25
    done = zoedge("log", "export", trained, "--packed", "-o", tmp_path / "log.zpack")
    assert done.code == 0, done.err
    done = zoedge("verify", tmp_path / "log.zpack", "--adapter", trained / "adapter")
    assert done.code == 0, done.err
    assert zoedge("log", "diff", trained, trained).code == 0


def test_eval_generate_export(trained: Path, tmp_path: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("eval", trained, "--json")
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    after = next(x for x in run_folder.read_metrics(trained) if x["event"] == "after")
    assert scores["after 24 steps"]["accuracy"] == after["accuracy"]
    done = zoedge("generate", trained, "-p", "the film is fun It was", "--compare-base")
    base, tuned = done.out.splitlines()
    assert (
        done.code == 0
        and base.startswith("base:")
        and "great" in tuned
        and "terrible" in tuned
        and base[6:] != tuned[6:]
    )
    done = zoedge("generate", trained, "-p", "the film is", "--tokens", 4, "--free")
    assert done.code == 0 and done.out.strip(), done.err
    done = zoedge("export", trained, "--to", "peft", "--check")
    assert done.code == 0 and "largest difference" in done.out, done.err
    done = zoedge("export", trained, "--to", "gguf-lora", "--check")
    assert done.code == 0 and "difference of weights 0" in done.out and (trained / "adapter.gguf").is_file(), done.err
    assert zoedge("export", trained, "--to", "gguf").code == 2
    done = zoedge("export", trained, "--to", "merged", "-o", tmp_path / "merged", "--dtype", "fp32", "--check")
    assert done.code == 0 and "largest difference" in done.out, done.err


def pipe(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Standard input is a pipe that says this and ends."""
    out, into = os.pipe()
    os.write(into, text)
    os.close(into)
    monkeypatch.setattr(sys, "stdin", os.fdopen(out, encoding="utf-8"))


@pytest.mark.parametrize("form", ["plain text", "own", "chatml"])
def test_chat_answers_every_line_of_a_pipe(
    form: str, recipe_file: Path, llama: Path, tmp_path: Path, zoedge: Callable[..., Done], monkeypatch: Any
) -> None:
    """The base says what it says after the text that each form makes of a line, and so, alone or beside it, the tuned."""
    from transformers import AutoTokenizer

    source = tmp_path / "base"
    shutil.copytree(llama, source)
    more, prompt = [], "the film is"
    if form == "own":
        (source / "chat_template.jinja").write_text(
            "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}{% if not loop.last %} {% endif %}"
            "{% endfor %}{% if add_generation_prompt %} assistant {% endif %}"
        )
        prompt = "<s>user the film is assistant "
    elif form == "chatml":
        rows = tmp_path / "chats.jsonl"
        rows.write_text(json.dumps({"prompt": "the film", "completion": "was fun"}) + "\n")
        more = ["task={name: chat, format: chatml}", f"data={{train: '{rows}', valid: null, test: null}}"]
        prompt = "<|im_start|>user\nthe film is<|im_end|>\n<|im_start|>assistant\n"
    done = zoedge("finetune", recipe_file, f"model.source={source}", "rule.lr=0.05", "train.steps=4", *more, "--plain")
    assert done.code == 0, done.err
    run = recipe_file.parent / "runs" / "tiny"
    pipe(monkeypatch, f"the film is\n\n{'bad plot ' * 60}\nthe film is\n/quit\ngood\n".encode())
    done = zoedge("chat", run, "--compare-base", "--tokens", 3)
    assert done.code == 0 and done.err.count("do not fit") == 1, done.err
    base, tuned = done.out.removesuffix("\n").split("\ntuned: ")[0], done.out.count("tuned: ")
    assert tuned == 2 and done.out == done.out[: len(done.out) // 2] * 2
    bench = setup.Measuring.build(identity.recipe_from_header(Log.open(run / "run.zlog").header, str(run)))
    ids = AutoTokenizer.from_pretrained(source)(prompt, add_special_tokens=False).input_ids
    assert ids.count(1) == (form == "own")
    assert base == f"base:  {bench.base.generate_answers([ids], 1, 3)[0][0]}"
    pipe(monkeypatch, b"the film is")  # ends without a line's end
    assert done.out.startswith(f"{base}\ntuned: {zoedge('chat', run, '--tokens', 3).out}")


def test_chat_refuses_what_it_cannot_answer(
    recipe_file: Path, roberta: Path, trained: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, b"the film \xff is\n")
    done = zoedge("chat", trained)
    assert done.code == 3 and "UTF-8" in done.err, done.err
    task = "{name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    folder = recipe_file.parent / "masks"
    more = ["space.targets=all", "train.steps=2", "--plain", "--run-dir", folder]
    done = zoedge("finetune", recipe_file, f"model.source={roberta}", f"task={task}", *more)
    assert done.code == 0, done.err
    done = zoedge("chat", folder)
    assert done.code == 3 and "RobertaForMaskedLM fills masks: it has no continuation" in done.err, done.err


def test_recipes_can_be_listed_shown_and_copied(tmp_path: Path, zoedge: Callable[..., Done]) -> None:
    assert "quickstart" in zoedge("recipes", "ls").out
    assert zoedge("recipes", "show", "quickstart").out.startswith("#")
    assert zoedge("recipes", "cp", "quickstart", tmp_path).code == 0
    assert zoedge("recipes", "cp", "quickstart", tmp_path).code == 2


def test_a_dry_run_prints_a_recipe_and_why_it_is_so(
    tmp_path: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = zoedge("finetune", "first-film", "space=lora", "rule.schedule=cosine", "--dry-run")
    assert done.code == 0 and not list(tmp_path.iterdir()), "nothing is written"
    comments = [line for line in done.out.splitlines() if line.startswith("#")]
    assert [line.partition(" - ")[0] for line in comments] == [
        "# What the recipe leaves open, and its other settings decide:",
        "# estimator.eps: auto",
        "# rule.lr: auto",
        "# train.watchdog: {clip: 10.0, factor: 3.0, patience: 50, rewinds: 8, rise: 1.5, trust: 0.03}",
    ]
    assert comments[-1].endswith(" - rule.lr is auto: short trials choose it, and a long run may not bear it.")
    Path("again.yaml").write_text(done.out)
    again = zoedge("finetune", "again.yaml", "--dry-run")
    assert again.out.startswith("".join(line + "\n" for line in done.out.splitlines() if not line.startswith("#")))
    assert "#" not in zoedge("finetune", "quickstart", "--dry-run").out, "which leaves nothing open"
    assert zoedge("finetune", "first-film", "rule.lrr=1", "--dry-run").code == 2


def test_doctor_and_quantize(llama: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("doctor", "--json")
    assert done.code == 0 and json.loads(done.out)["well"], done.out
    done = zoedge("quantize", llama, "--to", "int8")
    assert done.code == 0 and "int8" in done.out


def test_help_answers_without_torch() -> None:
    code = "import sys; sys.argv = ['zoedge', '--help']\nfrom zoedge.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "finetune" in done.stdout and done.stdout.strip().endswith("[]")


COMMAND = [sys.executable, "-m", "zoedge"]


def test_killed_at_random_moments_it_ends_in_the_same_bytes(recipe_file: Path, trained: Path) -> None:
    """SIGKILL, resume, SIGKILL, ...: log and adapter equal the uninterrupted run's, byte for byte."""
    folder = recipe_file.parent / "killed"
    start = [*COMMAND, "finetune", str(recipe_file), "rule.lr=0.05", "--plain", "--run-dir", str(folder)]
    path, kills = folder / "run.zlog", 0
    header = (trained / "run.zlog").stat().st_size - 64 * 32
    for slots in (1, 9, 20):
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (path.exists() and path.stat().st_size >= header + 64 * slots):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    subprocess.run([*COMMAND, "resume", str(folder), "--quiet"], check=True)
    assert path.read_bytes() == (trained / "run.zlog").read_bytes()
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(recipe_file: Path) -> None:
    folder = recipe_file.parent / "stopped"
    start = [*COMMAND, "finetune", str(recipe_file), "train.steps=5000", "--plain", "--run-dir", str(folder)]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = folder / "run.zlog"
    while process.poll() is None and not (path.exists() and path.stat().st_size > 6000):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"zoedge resume {folder}" in err
    with Log.open(path) as log:
        assert len(log) > 0 and log.state.end is None and log.torn == 0
