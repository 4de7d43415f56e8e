"""Exports load in other programs and compute what was trained; what is interrupted, forged or foreign is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch

from zoedge.commands.export import check
from zoedge.commands.export import folder as export_folder
from zoedge.commands.export import merged as export_merged
from zoedge.commands.export import peft as export_peft
from zoedge.core import digests, engine, storage
from zoedge.errors import (
    DamagedError,
    DataError,
    DivergedError,
    IdentityError,
    ReplayError,
    StorageError,
    UsageError,
    ZoedgeError,
)
from zoedge.log.log import Log
from zoedge.methods.noise.normal import Normal
from zoedge.methods.spaces.lora import Lora
from zoedge.methods.spaces.prompt import Prompt
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import replay, setup

CASES = {
    "llama nf4": ["model.quantization=nf4"],
    "llama nf4, all": ["model.quantization=nf4", "space.targets=all", "space.layers=all"],
    "llama int8, last 1": ["model.quantization=int8", "space.targets=all", "space.layers=last 1"],
    "llama none, b": ["model.quantization=none", "space.train=b"],
    "opt fp4, all": ["model.quantization=fp4", "space.targets=all", "space.layers=all"],
    "opt nf4, last 1": ["model.quantization=nf4", "space.targets=[fc1, out_proj]", "space.layers=last 1"],
    "opt int8": ["model.quantization=int8", "space.layers=all"],
    "opt none, b, all": ["model.quantization=none", "space.targets=all", "space.layers=all", "space.train=b"],
    "half nf4": ["model.quantization=nf4"],
    "mistral nf4, all": ["model.quantization=nf4", "space.targets=all", "space.layers=all"],
    "qwen2 int8": ["model.quantization=int8"],
    "qwen3 nf4, all": ["model.quantization=nf4", "space.targets=all", "space.layers=all"],
    "gemma int8": ["model.quantization=int8", "space.targets=all"],
    "gpt_neox int8": ["model.quantization=int8", "space.targets=[query_key_value, dense]"],
    "pythia nf4, all": ["model.quantization=nf4", "space.targets=all", "space.layers=all"],
}
MERGES = {"llama nf4, all": "fp32", "llama int8, last 1": "fp32", "opt none, b, all": "fp32", "opt nf4, last 1": "fp32"}
MERGES |= {"half nf4": "fp32", "llama nf4": "fp16", "opt fp4, all": "fp16"}
MERGES |= {
    case: "fp32" for case in CASES if case.split()[0] in ("mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "pythia")
}


class Made(NamedTuple):
    bench: setup.Measuring
    log: Log

    def peft(self, folder: Path, **options: Any) -> Path:
        return export_peft.write_peft(self.bench.run(self.log), self.log, self.bench.recipe, folder, **options)

    def merged(self, folder: Path, *args: Any, **options: Any) -> export_merged.MergeResult:
        return export_merged.write_merged(self.bench.recipe, self.bench.space, folder, *args, **options)


@pytest.fixture(scope="module")
def cached() -> dict[str, Any]:
    return {}


@pytest.fixture
def made(cached: dict[str, Any], recipe_file: Path, families: dict[str, Path], half: Path) -> Callable[[str], Made]:
    """A run of four steps far enough from 0 that it matters, trained once for all tests."""

    def train(case: str) -> Made:
        if case not in cached:
            sources = {**families, "half": half}
            more = [
                f"model.source={sources[case.split()[0]]}", "rule.lr=0.002", "space.alpha=12", "rule.schedule=constant",
                "train.steps=4", "model.revision=v1",
            ]  # fmt: skip
            bench = setup.Measuring.build(read_recipe(str(recipe_file), [*more, *CASES[case]]))
            folder = recipe_file.parent / f"run {case}"
            folder.mkdir()
            with setup.begin_run(bench, folder) as log:
                for _ in engine.play(bench.run(log), 4):
                    pass
                log.finish(digests.digest(bench.space))
            cached[case] = Made(bench, Log.open(folder / run_folder.LOG_FILE))
        return cached[case]

    return train


@pytest.fixture
def adapter(made: Callable[[str], Made], tmp_path: Path) -> tuple[Path, Made]:
    one = made("llama nf4")
    return one.peft(tmp_path / "adapter", tokenizer_from=one.bench.base.path), one


@pytest.fixture
def differences(cached: dict[str, Any], made: Callable[[str], Made], tmp_path: Path) -> dict[tuple[str, str], float]:
    """Largest difference of logits by (kind, case): all exports in one fresh process."""
    if "differences" not in cached:
        jobs = [("peft", case, made(case).peft(tmp_path / f"{case} peft")) for case in CASES]
        for case, dtype in MERGES.items():
            jobs.append(("merged", case, made(case).merged(tmp_path / case, dtype, log=made(case).log).folder))
        one = made("llama nf4")
        start = export_peft.write_peft(
            replay.build_replay_run(one.log), one.log, one.bench.recipe, tmp_path / "untrained"
        )
        jobs.append(("untrained", "llama nf4", start))
        found = check.check_exports(
            [(kind.replace("untrained", "peft"), x, made(case).bench) for kind, case, x in jobs]
        )
        cached["differences"] = {(kind, case): x for (kind, case, _), x in zip(jobs, found)}
        cached["folders"] = {(kind, case): folder for kind, case, folder in jobs}
    return cached["differences"]


def moved(made: Made) -> float:
    """How far training moved the logits."""
    base, space = made.bench.base, made.bench.space
    ids = check.make_probe_ids(base.model.config.vocab_size, base.context_length)
    start = space.value.clone()
    after = check.compute_logits(base, space, ids)
    space.value.zero_()
    before = check.compute_logits(base, space, ids)
    space.value.copy_(start)
    return float((after - before).abs().max())


# -- other programs compute what was trained


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_peft_model_gives_the_trained_logits(
    case: str, differences: dict[tuple[str, str], float], made: Callable[[str], Made]
) -> None:
    assert moved(made(case)) > 0.1
    assert differences["peft", case] < 1e-5  # measured: 0 to 1e-6, by order of summation


def test_the_comparison_notices_another_adapter(
    differences: dict[tuple[str, str], float], made: Callable[[str], Made]
) -> None:
    assert differences["untrained", "llama nf4"] == pytest.approx(moved(made("llama nf4")), rel=1e-4)


@pytest.mark.parametrize("case", MERGES)
def test_a_fresh_plain_model_gives_the_trained_logits(
    case: str, differences: dict[tuple[str, str], float], cached: dict[str, Any]
) -> None:
    assert differences["merged", case] < {"fp32": 1e-5, "fp16": 5e-3}[MERGES[case]]  # measured: 2e-6, 2e-3
    folder = cached["folders"]["merged", case]
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == {"fp32": "float32", "fp16": "float16"}[MERGES[case]]
    assert {"generation_config.json", "tokenizer.json", "README.md"} <= {p.name for p in folder.iterdir()}
    said = export_folder.read_marker(folder)
    raw = (folder / "model.safetensors").read_bytes()
    payload = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert said["payload"] == {"model.safetensors": hashlib.sha256(payload).hexdigest()}
    assert said["kept"].keys() == made_shapes(cached[case]) and min(said["kept"].values()) > 0.9


def made_shapes(made: Made) -> Any:
    return made.bench.space.shapes.keys()


@pytest.mark.parametrize("case", CASES)
def test_peft_adapts_our_modules_and_no_other_with_the_replayed_bits(
    case: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    one = made(case)
    replayed = replay.build_replay_run(one.log)
    for _ in engine.play(replayed, len(one.log)):
        pass
    folder = export_peft.write_peft(replayed, one.log, one.bench.recipe, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(one.bench.recipe.model.source)
    wrapped = PeftModel.from_pretrained(plain, folder)
    layers = {n: m for n, m in wrapped.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    assert layers.keys() == one.bench.space.shapes.keys()
    for name, value in one.bench.space.tensors():
        module, _, which = name.rpartition(".")
        assert torch.equal(getattr(layers[module], which)["default"].weight, value)
        assert layers[module].scaling["default"] == one.bench.space.scale
    loaded = export_peft.load_adapter(folder, one.bench.space, one.log.header.base, one.log.fingerprint)
    assert list(loaded) == [n for n in one.bench.space.shapes for n in (f"{n}.lora_A", f"{n}.lora_B")]
    assert all(torch.equal(loaded[name], value) for name, value in one.bench.space.tensors())


def test_modules_that_are_no_product_are_named_in_full() -> None:
    odd = ["model.layers.0.a.q", "model.layers.1.a.v"]

    def settings(*modules: str) -> dict[str, Any]:
        return Lora(4, 8.5).peft({"shapes": [[name, 8, 8] for name in modules]})

    assert settings(*odd)["target_modules"] == odd and settings(*odd)["layers_to_transform"] is None
    assert settings("head")["target_modules"] == ["head"]


# -- what an export says, and does not say


def test_exports_name_their_origin_and_no_path_of_this_machine(
    adapter: tuple[Path, Made], llama: Path, tmp_path: Path
) -> None:
    folder, one = adapter
    one.merged(tmp_path / "merged", log=one.log)
    for path in (*folder.iterdir(), *(tmp_path / "merged").iterdir()):
        for here in (llama.parent, tmp_path, Path.home(), Path(export_folder.__file__).parent):
            assert str(here).encode() not in path.read_bytes(), path
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama" and config["revision"] == "v1"
    assert (
        json.loads((folder / "tokenizer_config.json").read_text()).keys().isdisjoint({"is_local", "local_files_only"})
    )
    said = export_folder.read_marker(folder)
    assert said["steps"] == 4 and said["log"] == one.log.fingerprint and said["base"] == one.log.header.base.hex()
    assert said["state"] == digests.digest(one.bench.space).hex() and said["quantization"] == "nf4"
    assert set(said["files"]) | {"zoedge.json"} == {p.name for p in folder.iterdir()}
    with safetensors.safe_open(folder / export_folder.WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt", "log": one.log.fingerprint, "payload": said["payload"]}
    for where in (folder, tmp_path / "merged"):
        text = (where / "README.md").read_text()
        assert one.log.fingerprint in text and "tiny" in text and "- steps: 4" in text


def test_the_same_state_is_exported_to_the_same_bytes(adapter: tuple[Path, Made], tmp_path: Path) -> None:
    folder, one = adapter
    again = one.peft(tmp_path / "again", tokenizer_from=one.bench.base.path)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("facebook/opt-1.3b", "facebook/opt-1.3b"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/home/me/models/mine", "mine"),
        ("~/mine/", "mine"),
        ("./models/mine", "mine"),
        ("../..", Path("../..").resolve().name or "base"),
        ("C:\\me\\mine", "mine"),
        ("/", "base"),
    ],
)
def test_a_source_is_published_without_its_path(source: str, said: str) -> None:
    assert export_folder.redact_source(source) == said


def test_the_chat_template_comes_along(made: Callable[[str], Made], half: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(half, tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text("{{ messages }}")
    folder = made("half nf4").peft(tmp_path / "adapter", tokenizer_from=tmp_path / "chat")
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"


def test_a_state_that_is_not_the_logs_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("llama nf4")
    with pytest.raises(ReplayError, match="step 4"):
        export_peft.write_peft(replay.build_replay_run(one.log), one.log, one.bench.recipe, tmp_path / "a", steps=4)
    halfway = replay.build_replay_run(one.log)
    for _ in engine.play(halfway, 2):
        pass
    for steps in (2, None):
        folder = export_peft.write_peft(halfway, one.log, one.bench.recipe, tmp_path / "a", steps=steps)
        assert export_folder.read_marker(folder)["steps"] == steps


def test_only_finite_tensors_that_peft_knows_are_exported(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("llama nf4")
    run = replay.build_replay_run(one.log)
    run.space.leaves()[0].value[7] = float("nan")
    with pytest.raises(DivergedError):
        export_peft.write_peft(run, one.log, one.bench.recipe, tmp_path / "a")
    with pytest.raises(UsageError, match="nothing to merge"):
        export_merged.write_merged(one.bench.recipe, Prompt().blank({"width": 8}, 0, Normal()), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# -- folders


def test_what_is_not_ours_is_never_replaced(adapter: tuple[Path, Made], tmp_path: Path) -> None:
    folder, one = adapter
    assert one.peft(folder) == folder  # ours: replaced
    assert not (folder / "tokenizer.json").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        one.peft(folder)
    foreign, file, link = tmp_path / "foreign", tmp_path / "file", tmp_path / "link"
    foreign.mkdir()
    assert one.peft(foreign)  # empty
    shutil.rmtree(foreign)
    foreign.mkdir()
    (foreign / "zoedge.json").write_text('{"base": "", "source": ""}')  # as the quantised cache has
    file.write_text("x")
    link.symlink_to(folder)
    for place in (foreign, file, link):
        with pytest.raises(UsageError, match=place.name):
            one.peft(place)
        with pytest.raises(UsageError, match=place.name):
            one.merged(place)
    assert file.read_text() == "x" and [p.name for p in foreign.iterdir()] == ["zoedge.json"]


@pytest.mark.parametrize("kind", ["peft", "merged"])
@pytest.mark.parametrize("replaced", [False, True])
def test_an_interrupted_export_never_looks_complete(
    kind: str, replaced: bool, made: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, folder = made("llama none, b"), tmp_path / "out"
    one.peft(folder) if replaced else None
    before = {p.name: p.read_bytes() for p in folder.iterdir()} if replaced else None

    def write() -> None:
        one.peft(folder) if kind == "peft" else one.merged(folder)

    def intact() -> bool:
        return before == ({p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else None)

    real, calls, stop = storage.write_durably, 0, 0

    def failing(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            path.with_name(".half").write_bytes(data[: len(data) // 2])
            raise StorageError("No space left on device.")
        real(path, data)

    count = {"peft": 4, "merged": 7}[kind]
    monkeypatch.setattr("zoedge.scoring.models.loading.load_base", lambda spec: one.bench.base)
    for module in (export_folder, export_peft, export_merged):
        monkeypatch.setattr(module, "write_durably", failing)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *args, **options: None)  # as SIGKILL: nothing is tidied up
        for stop in range(1, count + 1):
            calls = 0
            with pytest.raises(StorageError, match="No space"):
                write()
            (draft,) = tmp_path.glob(f".out.tmp-{os.getpid()}")
            assert calls == stop and intact()
            with pytest.raises(DamagedError, match="not a complete"):
                export_folder.read_marker(draft)
            draft.rename(tmp_path / f".out.tmp-{999999000 + stop}")  # of a process that is gone
    renames = 2 if replaced else 1
    for stop in range(renames):
        left, rename = stop, storage.Disk.rename

        def once(self: storage.Disk, a: Path, b: Path) -> None:
            nonlocal left
            if a.is_dir():
                left -= 1
                if left == -1:
                    raise OSError(5, "Input/output error")
            rename(self, a, b)

        with monkeypatch.context() as broken:
            broken.setattr(storage.Disk, "rename", once)
            with pytest.raises(StorageError, match="Input/output"):
                write()
        assert intact()
    stop = 0
    write()
    assert export_folder.read_marker(folder)["kind"] == kind
    assert [p.name for p in tmp_path.iterdir() if ".tmp-" in p.name or ".old-" in p.name] == []


# -- the loader


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors, and every digest with them: what is refused is refused for what it is."""
    path, said = folder / export_folder.WEIGHTS_FILE, export_folder.read_marker(folder)
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    raw, said["payload"] = export_peft.encode_tensors(tensors)
    path.write_bytes(export_peft.add_metadata(raw, payload=said["payload"], log=said["log"]))
    (folder / export_folder.MARKER_FILE).write_text(json.dumps(said))


def rename(tensors: dict[str, Any], key: str) -> None:
    tensors[key] = tensors.pop(min(tensors))


def put(tensors: dict[str, Any], value: Callable[[torch.Tensor], torch.Tensor]) -> None:
    key = min(tensors)
    tensors[key] = value(tensors[key])


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], type[ZoedgeError], str]] = {
    "nan": (lambda t: put(t, lambda x: x * float("nan")), DamagedError, "not finite"),
    "inf": (lambda t: t[min(t)].view(-1).__setitem__(3, float("inf")), DamagedError, "not finite"),
    "a missing key": (lambda t: t.pop(min(t)), IdentityError, "of 8 tensors, 1 missing"),
    "an extra key": (
        lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(1)}),
        IdentityError,
        "1 unknown",
    ),
    "a renamed key": (lambda t: rename(t, "base_model.model.y.lora_B.weight"), IdentityError, "1 missing .*1 unknown"),
    "no PEFT name": (lambda t: rename(t, "q_proj.lora_A"), IdentityError, "1 missing .*1 unknown"),
    "a path for a name": (lambda t: rename(t, "../../../tmp/x"), DamagedError, "not a tensor's name"),
    "another shape": (lambda t: put(t, lambda x: x[:2].contiguous()), IdentityError, r"is \[2, 64\], not \[4, 64\]"),
    "a transposed shape": (lambda t: put(t, lambda x: x.T.contiguous()), IdentityError, r"is \[64, 4\], not \[4, 64\]"),
    "another type": (lambda t: put(t, lambda x: x.half()), DamagedError, "not a float32"),
    "too much": (lambda t: t.update(z=torch.zeros(1 << 22)), DamagedError, "at most"),
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_adapter_is_refused(how: str, adapter: tuple[Path, Made]) -> None:
    folder, one = adapter
    change, error, sentence = FORGERIES[how]
    forge(folder, lambda tensors: None)
    export_peft.load_adapter(folder, one.bench.space)
    forge(folder, change)
    for space in (one.bench.space, None):
        with pytest.raises(error, match=sentence):
            export_peft.load_adapter(folder, space)


def test_every_flipped_byte_of_the_weights_is_noticed(adapter: tuple[Path, Made]) -> None:
    folder, one = adapter
    path = folder / export_folder.WEIGHTS_FILE
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for at in (*range(0, start, 3), *range(start, len(good), 1999), len(good) - 1):
        raw = bytearray(good)
        raw[at] ^= 1 << at % 8
        path.write_bytes(raw)
        try:
            found = export_peft.load_adapter(folder, one.bench.space)
        except (DamagedError, IdentityError):
            continue
        # what can be flipped unnoticed means nothing: names of metadata, spaces
        assert at < start and all(torch.equal(found[n], v) for n, v in one.bench.space.tensors())
    for size in (0, 7, 8, start, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(DamagedError):
            export_peft.load_adapter(folder, one.bench.space)


def test_headers_that_the_library_would_take_are_refused(adapter: tuple[Path, Made]) -> None:
    folder, _ = adapter
    path = folder / export_folder.WEIGHTS_FILE
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header, payload = good[8 : 8 + size].rstrip(), good[8 + size :]
    entry = header[header.index(b'"base_model') :]
    for new, sentence in (
        (header[:-1] + b"," + entry, "twice"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "not a table"),
        (b'{"a": 1}', "not a float32"),
        (b'{"__metadata__": 1}', "not a table"),
    ):
        path.write_bytes(len(new).to_bytes(8, "little") + new + payload)
        with pytest.raises(DamagedError, match=sentence):
            export_peft.load_adapter(folder)
    path.write_bytes((1 << 62).to_bytes(8, "little") + good[8:])
    with pytest.raises(DamagedError, match="a header of"):
        export_peft.load_adapter(folder)


def test_an_adapter_of_something_else_is_refused_by_name(
    adapter: tuple[Path, Made], made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder, one = adapter
    space, log = one.bench.space, one.log
    with pytest.raises(IdentityError, match="another base"):
        export_peft.load_adapter(folder, space, base=made("half nf4").log.header.base)
    with pytest.raises(IdentityError, match="another log"):
        export_peft.load_adapter(folder, space, log.header.base, "0" * 32)
    with pytest.raises(IdentityError, match="unknown"):
        export_peft.load_adapter(folder, made("llama int8, last 1").bench.space)
    fewer = made("llama nf4, all").bench.space
    with pytest.raises(IdentityError, match="of 42 tensors, 34 missing"):
        export_peft.load_adapter(folder, fewer)
    recipe = read_recipe(str(tmp_path / "tiny.yaml"), ["space.alpha=16"])
    with pytest.raises(IdentityError, match="lora_alpha is 12, not 16"):
        export_peft.load_adapter(folder, recipe.space.blank(space.describe(), 7, recipe.noise))
    one.merged(tmp_path / "merged")
    with pytest.raises(IdentityError, match="merged model"):
        export_peft.load_adapter(tmp_path / "merged")


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("adapter_config.json", {"lora_alpha": 80}, "lora_alpha is 80, and was written as 12"),
        ("adapter_config.json", {"target_modules": ["q_proj"]}, "target_modules"),
        ("adapter_config.json", {"use_rslora": True}, "use_rslora"),
        ("zoedge.json", {"payload": "0" * 64}, "not what was written"),
        ("zoedge.json", {"log": "0" * 32}, "another log"),
        ("zoedge.json", {"space": {"name": "lora"}, "trained": {}}, "description"),
        ("zoedge.json", {"space": {"name": "lora", "rank": -4}}, "description"),
        ("zoedge.json", {"space": {"name": "sgd"}}, "description"),
        ("zoedge.json", {"trained": {"shapes": [["../x", 4, 4]]}}, "description"),
        (
            "zoedge.json",
            {"space": {"name": "lora", "train": "b"}, "trained": {"shapes": [["x", 4, None]]}},
            "description",
        ),
        ("zoedge.json", {"zoedge": 2}, "not the marker"),
        ("zoedge.json", {"files": 3}, "not the marker"),
    ],
)
def test_a_changed_table_is_refused(
    file: str, change: dict[str, Any], sentence: str, adapter: tuple[Path, Made]
) -> None:
    folder, one = adapter
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedError, match=sentence):
        export_peft.load_adapter(folder, one.bench.space)
    path.write_text("{")
    with pytest.raises(DamagedError):
        export_peft.load_adapter(folder)
    path.unlink()
    with pytest.raises(DamagedError):
        export_peft.load_adapter(folder)


# -- merging


@pytest.fixture
def blank(made: Callable[[str], Made]) -> Iterator[tuple[Made, Any]]:
    """A run without quantisation, and its space anew."""
    one = made("llama none, b")
    recipe = one.bench.recipe
    yield one, recipe.space.blank(one.bench.space.describe(), recipe.seed, recipe.noise)


def fill(space: Any, size: float) -> Any:
    for i, (name, value) in enumerate(space.tensors()):
        if name.endswith("lora_B"):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(i)) * size)
    return space


def test_an_update_that_rounding_would_eat_is_refused(blank: tuple[Made, Any], tmp_path: Path) -> None:
    one, space = blank
    fill(space, 1e-5)
    with pytest.raises(DataError, match=r"In bf16, \d+% of the update of model\.layers\.1\.self_attn.*--dtype fp32"):
        export_merged.write_merged(one.bench.recipe, space, tmp_path / "out", "bf16")
    assert not (tmp_path / "out").exists()
    report = export_merged.write_merged(one.bench.recipe, space, tmp_path / "out", "bf16", force=True)
    name, least = report.least
    assert least < 0.5 and name in space.shapes and "bf16" in str(report)
    exact = export_merged.write_merged(one.bench.recipe, space, tmp_path / "out", "fp32")
    assert exact.least[1] > 0.99


def test_kept_is_what_it_says(blank: tuple[Made, Any], tmp_path: Path) -> None:
    one, space = blank
    fill(space, 1e-3)
    report = one.merged(tmp_path / "none", "fp32")
    assert report.kept.keys() == space.shapes.keys()
    report = export_merged.write_merged(one.bench.recipe, space, tmp_path / "out", "fp16")
    base = safetensors.torch.load_file(Path(one.bench.recipe.model.source) / "model.safetensors")
    out, tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors"), dict(space.tensors())
    for name in space.shapes:
        update = (tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]).double() * 3.0
        lost = out[f"{name}.weight"].double() - (base[f"{name}.weight"].double() + update)
        assert report.kept[name] == pytest.approx(1 - (lost.norm() / update.norm()).item(), rel=1e-5)
    still = export_merged.write_merged(one.bench.recipe, fill(space, 0.0), tmp_path / "out", "fp16")
    assert set(still.kept.values()) == {1.0}


def test_values_that_overflow_and_disks_that_are_full_are_refused(
    blank: tuple[Made, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, space = blank
    with pytest.raises(DataError, match="does not fit fp16"):
        export_merged.write_merged(one.bench.recipe, fill(space, 1e6), tmp_path / "out", "fp16", force=True)
    with pytest.raises(UsageError, match="fp8"):
        one.merged(tmp_path / "out", "fp8")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**7, 10**7, 10))
    with pytest.raises(DataError, match="GB are free"):
        one.merged(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(made: Callable[[str], Made], half: Path, opt: Path, tmp_path: Path) -> None:
    one = made("llama nf4")
    with pytest.raises(IdentityError, match="not the one that was trained on"):
        one.merged(tmp_path / "out", base_folder=half, log=one.log)
    with pytest.raises(IdentityError, match=r"has no model\.layers\.1"):
        one.merged(tmp_path / "out", base_folder=opt)


def test_the_merge_is_of_a_fresh_base_dequantised_as_trained(
    made: Callable[[str], Made], half: Path, tmp_path: Path
) -> None:
    """bitsandbytes repacks 4-bit weights in an evaluation-mode forward on CPUs with AVX512-BF16; dequantised after
    that they are garbage. A merge must not care."""
    import bitsandbytes as bnb

    from zoedge.scoring.models.quantised import dequantise_weight

    one = made("half nf4")
    used = setup.Measuring.build(one.bench.recipe)
    for module in used.base.model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = bnb.functional.has_avx512bf16()
    used.base.model.eval()
    with torch.inference_mode():
        used.base.model(torch.arange(8)[None])
    q = "model.layers.0.self_attn.q_proj"
    kept = torch.equal(*(dequantise_weight(x.base.model.get_submodule(q)) for x in (used, one.bench)))
    assert kept is not bnb.functional.has_avx512bf16()
    used.space.value.copy_(one.bench.space.value)
    export_merged.write_merged(used.recipe, used.space, tmp_path / "out", "fp32", log=one.log)
    out = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    tensors = dict(one.bench.space.tensors())
    stored = safetensors.torch.load_file(half / "model.safetensors")
    assert out.keys() == stored.keys()
    for name, weight in stored.items():
        module, want = name.removesuffix(".weight"), weight.float()
        if "proj" in name:
            codes, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            state.dtype = torch.float32
            want = bnb.functional.dequantize_4bit(codes, state)
            assert torch.equal(want, dequantise_weight(one.bench.base.model.get_submodule(module)))
            if module in one.bench.space.shapes:
                want = want + 3.0 * (tensors[f"{module}.lora_B"] @ tensors[f"{module}.lora_A"])
        assert torch.equal(out[name], want), name


def test_shards_and_one_file_hold_the_same_model(
    made: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    one = made("llama none, b")
    one.merged(tmp_path / "one", "fp32")
    monkeypatch.setattr(export_merged, "SHARD_BYTES", 100_000)
    one.merged(tmp_path / "many", "fp32")
    names = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert list(export_folder.read_marker(tmp_path / "many")["payload"]) == names
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / x).state_dict() for x in ("one", "many"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_export_that_does_not_load_is_reported_in_a_sentence(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("llama none, b")
    folder = one.merged(tmp_path / "out", "fp32").folder
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match="does not load in a fresh process"):
        check.check_export("merged", folder, one.bench)
