"""Bases as people have them: broken, half fetched, quantised by others, with settings, adapters and tokenizers of their own."""

# ruff: noqa: E501 - a case a line
from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Done
from safetensors.torch import load_file, save_file

from zoedge.errors import DataError, DivergedError, ReplayError
from zoedge.recipe.sections import Model
from zoedge.scoring.models.checkpoint import check_files
from zoedge.scoring.models.loading import load_base, load_tokenizer
from zoedge.scoring.sources import cache
from zoedge.scoring.sources.resolve import resolve_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 269060552\n"


def base(folder: Path, quantization: str = "none") -> Any:
    return load_base(Model.model_validate({"source": str(folder), "quantization": quantization}))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def model(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder to break: my.yaml, rows.jsonl, model/ and runs/tiny."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


# -- tokens beyond the model's table


@pytest.mark.parametrize("changed", ["task.prompt='{text} <|x|> It was'", "task.options={negative: ' <|x|>', positive: ' great'}", "task={name: lm, text: text}",
                                     "task={name: choose, prompt: '{text}', option: ' {choice}', choices: [options]}", "task={name: generate, prompt: '{text}', answer: answer}",
                                     "task={name: chat, format: plain}"])  # fmt: skip
def test_a_token_that_the_model_does_not_have(changed: str, model: Path, zoedge: Callable[..., Done]) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    tokenizer.save_pretrained(model)
    row = {
        "text": "a film" + (" <|x|>" if "lm" in changed else ""),
        "label": "positive",
        "options": ["good", "<|x|>"],
        "answer": "<|x|>",
    }
    row |= {"prompt": "a film", "completion": "so <|x|>"} if "chat" in changed else {}
    if "choose" in changed:
        row["label"] = 0
    Path("rows.jsonl").write_text(
        "".join(json.dumps(row | {"text": f"{row['text']} {i}", "prompt": f"a film {i}"}) + "\n" for i in range(12))
    )
    for command in ("validate", "preview", "finetune"):
        done = zoedge(command, "my.yaml", "name=b", changed)
        assert (
            done.code == 3 and f"the token '<|x|>' ({len(tokenizer) - 1}) is not in the model's table of " in done.err
        ), (command, done)


def test_nothing_is_read_that_was_not_written(llama: Path) -> None:
    loaded = base(llama)
    h = torch.zeros(1, 2, 64)
    log_p = loaded.log_likelihood(h, torch.tensor([[5, loaded.model.config.vocab_size]]))
    assert math.isfinite(log_p[0, 0]) and math.isnan(log_p[0, 1])
    with pytest.raises(
        DataError, match=r"^The prompt: the token 'None' \(9,999\) is not in the model's table of \d+ tokens"
    ):
        from zoedge.scoring.models.decode import generate_text

        generate_text(loaded, [1, 9999], 2, "")


# -- what lies in the folder


def broken(folder: Path, name: str) -> None:
    """Make of a model folder the one with that name."""
    if name == "an adapter beside the model":
        (folder / "adapter_config.json").write_text("{}")
    elif name == "an adapter alone":
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text("{}")
    elif name == "pickles alone":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif name == "GGUF beside config.json":
        (folder / "model.safetensors").rename(folder / "model-q8.gguf")
    elif name == "GGUF alone":
        (folder / "model.safetensors").rename(folder / "model-q8.gguf")
        (folder / "config.json").unlink()
    elif name in ("gptq", "awq", "compressed-tensors"):
        change(folder / "config.json", quantization_config={"quant_method": name, "bits": 4})
    elif name == "mlx":
        change(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    else:
        (folder / name).write_text(POINTER)


FOLDERS = {
    "an adapter beside the model": "holds an adapter (adapter_config.json) beside the model. Take the adapter's files out, or merge it",
    "an adapter alone": "has no config.json: not a model folder. It is an adapter: name its base (base_model_name_or_path",
    "pickles alone": "It has pytorch_model.bin, a pickle, which can run code and is never loaded here. Convert it once, with weights_only",
    "GGUF beside config.json": "has no .safetensors weights. It has GGUF files. Name one: model.source: ",
    "GGUF alone": "has no config.json: not a model folder. It has GGUF files. Name one: model.source: ",
    "gptq": "was quantised by gptq, whose weights are not read. Name the 16-bit model that it was made from",
    "awq": "was quantised by awq, whose weights are not read.",
    "compressed-tensors": "was quantised by compressed-tensors, whose weights are not read.",
    "mlx": "was quantised by mlx, whose weights are not read.",
} | {
    name: f"{name} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull"
    for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja")
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_model(name: str, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    broken(folder, name)
    with pytest.raises(DataError) as e:
        check_files(folder)
    assert str(e.value).startswith("model.source: ") and FOLDERS[name] in str(e.value)


def test_the_conversion_of_pickles_works_as_it_is_written(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = shutil.copytree(llama, tmp_path / "old")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError) as e:
        check_files(folder)
    command = str(e.value).partition('python -c "')[2].partition('" - and write model.source: NEW.')[0]
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    new, old = load_file(tmp_path / "NEW" / "model.safetensors"), load_file(llama / "model.safetensors")
    assert all(torch.equal(new[name], value) for name, value in old.items())
    load_tokenizer(tmp_path / "NEW")


def test_what_is_no_gguf_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text(POINTER)
    with pytest.raises(DataError, match=r"a\.gguf is a Git LFS pointer"):
        resolve_model(str(tmp_path / "a.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGML")
    with pytest.raises(DataError, match=r"a\.gguf is not a GGUF file\. Is its download complete\?"):
        resolve_model(str(tmp_path / "a.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(
        DataError, match=r"a\.gguf: transformers cannot convert it .* Name the model that it was made from"
    ):
        resolve_model(str(tmp_path / "a.gguf"))


def test_a_folder_of_the_cache_is_whole_or_made_again(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path))
    folder = base(llama, "nf4").path
    assert folder.parent == tmp_path / "quantised"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
        with pytest.raises(DataError, match="would lack files in the cache, and was not made"):
            cache.require_model_files(folder)
        assert base(llama, "nf4").path == folder
        cache.require_model_files(folder)


def test_a_tokenizer_that_transformers_builds_anew(families: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """transformers builds a Qwen2's without the normaliser that its tokenizer.json has."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(families["qwen2"], tmp_path / "model")
    change(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    text = "The FILM"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids != load_tokenizer(folder)(text).input_ids
    assert load_tokenizer(folder)(text).input_ids == load_tokenizer(families["qwen2"])(text.lower()).input_ids
    monkeypatch.setattr("zoedge.scoring.models.loading.is_as_written", lambda *_: False)
    with pytest.raises(DataError, match=r"builds another tokenizer than tokenizer\.json describes"):
        load_tokenizer(folder)


# -- greedy, and where an answer ends

SETTINGS: dict[str, Any] = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": list(range(3, 300)), "min_new_tokens": 9, "num_beams": 3, "do_sample": True, "temperature": 9.0,
    "bad_words_ids": [[5], [6]], "forced_eos_token_id": 2, "begin_suppress_tokens": list(range(3, 300)), "guidance_scale": 3.0,
}  # fmt: skip


def test_greedy_is_greedy_and_eos_may_be_several(llama: Path, tmp_path: Path) -> None:
    plain = base(llama)
    prompts = [plain.tokenizer(text).input_ids for text in ("the film is", "a dull story of the plot")]
    wanted = [plain.generate("the film is", 12), plain.generate_answers(prompts, 1, 12)]
    folder = shutil.copytree(llama, tmp_path / "model")
    change(folder / "generation_config.json", **SETTINGS)
    own = base(folder)
    assert [own.generate("the film is", 12), own.generate_answers(prompts, 1, 12)] == wanted
    assert own.model.generation_config.repetition_penalty == 1.5, "an export still has the base's settings"
    first = plain.tokenizer(wanted[0], add_special_tokens=False).input_ids[0]
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=[2, first, 9999])
    several = base(folder)
    assert several.generate("the film is", 12) != wanted[0] and several.generate_answers(prompts, 2, 5)
    assert several.generate("the film is", 12) in ("", plain.tokenizer.decode([first]))


def test_an_answer_ends_where_training_ended_it(llama: Path, tmp_path: Path) -> None:
    """A model that says, after any user: good scene film good scene film ..., as in a base whose eos is not its turn's end."""
    loaded = base(shutil.copytree(llama, tmp_path / "model"))
    good, scene, film = (
        loaded.tokenizer(f" {w}", add_special_tokens=False).input_ids for w in ("good", "scene", "film")
    )
    follows = {film[-1]: good[0], good[-1]: scene[0], scene[-1]: film[0]}
    follows |= {a: b for word in (good, scene, film) for a, b in pairwise(word)}
    with torch.no_grad():
        for name, p in loaded.model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()
        head = torch.zeros(loaded.model.config.vocab_size, 64)
        table = torch.zeros(loaded.model.config.vocab_size, 64)
        for place, (a, b) in enumerate(follows.items()):
            table[a, place] = head[b, place] = 1.0
        loaded.model.get_input_embeddings().weight.copy_(table)
        loaded.model.lm_head.weight = torch.nn.Parameter(head)
    assert loaded.generate("a film", 9).startswith(" good scene film good scene")
    assert loaded.generate("a film", 9, end=" scene") == " good"
    assert loaded.generate("a film", 9, end="film go") == " good scene "
    template = "{% for m in messages %}{{ m.content + (' scene ' if m.role == 'assistant' else ' ') }}{% endfor %}"
    loaded.tokenizer.chat_template = template
    from zoedge.scoring.tasks.chat import Chat

    prompt, end = Chat().render_question("a film", loaded.tokenizer)
    assert (prompt, end) == ("a film ", " scene")
    assert Chat("chatml").render_question("a film", loaded.tokenizer)[1] == "<|im_end|>"


# -- bases that are not finite


@pytest.mark.parametrize(("quantization", "name"), [("none", "model.layers.0.mlp.up_proj.weight"), ("nf4", "model.layers.0.mlp.up_proj (its scales)"), ("none", "model.norm.weight")])  # fmt: skip
def test_a_base_that_is_not_finite(quantization: str, name: str, model: Path, zoedge: Callable[..., Done]) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name.replace(" (its scales)", ".weight")].view(-1)[0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    for more in ([], ["task.objective=accuracy", "rule.lr=auto"], ["space={name: lora, start: probe}"]):
        done = zoedge("finetune", "my.yaml", "name=b", f"model.quantization={quantization}", *more)
        assert done.code == DivergedError.exit_code and not Path("runs/b/adapter").exists(), done
        assert (
            f"The base's own loss is not finite: {name} holds NaN or infinity, so that the checkpoint is broken."
            in done.err
        )


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    from zoedge.run import folder
    from zoedge.run.evaluate import Score

    folder.append_metric(tmp_path, event="valid", loss=math.nan, of=[math.inf, {"x": -math.inf}], count=3)
    raw = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(raw, parse_constant=pytest.fail) == {
        "event": "valid",
        "loss": None,
        "of": [None, {"x": None}],
        "count": 3,
    }
    assert math.isnan(Score.of(json.loads(raw)).loss)


# -- an export that is another model


def test_an_export_that_is_another_model(model: Path, zoedge: Callable[..., Done], monkeypatch: Any) -> None:
    from zoedge.commands.export import check

    monkeypatch.setattr(
        check, "ask_python", lambda words, what, jobs: [check.measure_difference(**job) for job in jobs]
    )
    done = zoedge("export", "runs/tiny", "--to", "merged", "--check")
    assert done.code == 0 and "largest difference of logits" in done.out
    real = check.check_export

    def spoil(kind: str, folder: Path, trained: Any) -> float:
        name = next(folder.glob("*.safetensors"))
        tensors = load_file(name)
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.5
        save_file(tensors, name, {"format": "pt"})
        return real(kind, folder, trained)

    monkeypatch.setattr(check, "check_export", spoil)
    done = zoedge("export", "runs/tiny", "--to", "merged", "--check")
    assert done.code == ReplayError.exit_code == 8 and "it is not the trained model" in done.err
