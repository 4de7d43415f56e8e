"""llama.cpp's adapter file: its keys, names and order of rows, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from zoedge.commands.export import check
from zoedge.commands.export import gguf as export_gguf
from zoedge.core import digests, engine
from zoedge.errors import DamagedError, DivergedError, ReplayError, StorageError, UsageError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import setup

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}  # of the fixtures; 16 rows each


class Made:
    """A run of four steps over a base, and its file."""

    def __init__(self, recipe_file: Path, folder: Path, source: Path, *more: str):
        overrides = [f"model.source={source}", "rule.lr=0.05", "train.steps=4", *more]
        self.bench = setup.Measuring.build(read_recipe(str(recipe_file), overrides))
        folder.mkdir()
        with setup.begin_run(self.bench, folder) as log:
            for _ in engine.play(self.bench.run(log), 4):
                pass
            log.finish(digests.digest(self.bench.space))
        self.log = Log.open(folder / run_folder.LOG_FILE)

    def written(self, path: Path, **options: Any) -> Path:
        config = self.bench.base.model.config
        return export_gguf.write_gguf(self.bench.space, self.log, self.bench.recipe, config, path, **options)


@pytest.fixture
def made(recipe_file: Path, tmp_path: Path, families: dict[str, Path]) -> Callable[..., Made]:
    def train(family: str, *more: str) -> Made:
        return Made(recipe_file, tmp_path / f"run {len(list(tmp_path.iterdir()))}", families[family], *more)

    return train


ALL = ("space.targets=all", "space.layers=last 2", "space.alpha=12")


def turned(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row i of a head's first half, then row i of its second, for every i: one row at a time."""
    size = len(rows) // heads
    order = [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[order]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_file_holds_what_llama_cpp_reads(family: str, made: Callable[..., Made], tmp_path: Path) -> None:
    one = made(family, *ALL)
    reader = gguf.GGUFReader(one.written(tmp_path / "adapter.gguf"))
    said = {key: reader.get_field(key).contents() for key in reader.fields if "." in key and key[:4] != "GGUF"}
    assert said == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "tiny", "adapter.type": "lora",
        "adapter.lora.alpha": 12.0, "zoedge.base": one.log.header.base.hex(), "zoedge.log": one.log.fingerprint,
        "zoedge.state": digests.digest(one.bench.space).hex(),
    }  # fmt: skip
    found = {tensor.name: tensor for tensor in reader.tensors}
    trained = {name: value.numpy() for name, value in one.bench.space.tensors()}
    assert len(found) == len(trained) == 2 * 7 * 2
    for layer in (1, 2):
        for module, name in NAMES.items():
            a, b = (trained[f"model.layers.{layer}.{module}.lora_{which}"] for which in "AB")
            theirs_a, theirs_b = (found[f"blk.{layer}.{name}.weight.lora_{which}"] for which in "ab")
            assert theirs_a.tensor_type == theirs_b.tensor_type == gguf.GGMLQuantizationType.F32
            assert list(theirs_a.shape) == [a.shape[1], 4] and list(theirs_b.shape) == [4, len(b)]  # ggml's order
            assert np.array_equal(theirs_a.data, a) and b.any()
            assert np.array_equal(theirs_b.data, turned(b, HEADS[module]) if module in HEADS else b)
            assert np.array_equal(theirs_b.data, b) == (module not in HEADS)


def test_turned_rows_make_llama_cpps_rotation_transformers_own() -> None:
    """Neighbours turned after the permutation are the halves turned before it: why q and k are permuted."""
    from transformers.models.llama.modeling_llama import rotate_half

    config = type("Config", (), {"num_attention_heads": 4, "num_key_value_heads": 2})
    x = torch.randn(32, 1)
    ours = export_gguf.permute_rows(rotate_half(x.view(2, 16)).view(32, 1), "a.k_proj", config)
    pairs = export_gguf.permute_rows(x, "a.k_proj", config).view(2, 8, 2)
    assert torch.equal(ours.view(2, 8, 2), torch.stack([-pairs[..., 1], pairs[..., 0]], -1))


def test_a_fresh_process_finds_the_trained_weights(made: Callable[..., Made], tmp_path: Path) -> None:
    one = made("llama", *ALL, "space.train=b")
    path = one.written(tmp_path / "adapter.gguf")
    raw = path.read_bytes()
    assert check.check_gguf(path, one.bench) <= 1e-6
    assert one.written(path).read_bytes() == raw  # ours: replaced, by the same bytes
    b = dict(one.bench.space.tensors())["model.layers.1.self_attn.k_proj.lora_B"].numpy()
    at = raw.index(turned(b, 2).tobytes())
    path.write_bytes(raw[:at] + b.tobytes() + raw[at + b.nbytes :])
    with pytest.raises(ReplayError, match="differ from the trained ones"):
        check.check_gguf(path, one.bench)
    path.write_bytes(raw.replace(b"blk.2.attn_q.weight.lora_a", b"blk.0.attn_q.weight.lora_a"))
    with pytest.raises(DamagedError, match="not the tensors that were trained"):
        known = check.build_reference("gguf-lora", one.bench)
        export_gguf.measure_difference(str(path), one.bench.recipe.model.model_dump(), known)


def test_other_families_and_spaces_are_refused(made: Callable[..., Made], tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    for family in ("opt", "qwen2"):
        with pytest.raises(UsageError, match=f"'{family}': a GGUF adapter is written for llama and mistral alone"):
            made(family).written(path)
    for space in ("prompt", "prefix"):
        with pytest.raises(UsageError, match="LoRA adapters alone"):
            made("llama", f"space={{name: {space}, tokens: 4}}").written(path)
    assert not path.exists()


def test_states_and_files_that_are_not_the_runs_are_refused(made: Callable[..., Made], tmp_path: Path) -> None:
    one, path = made("llama"), tmp_path / "adapter.gguf"
    (tmp_path / "other.gguf").write_bytes(b"GGUF and another")
    for place in (tmp_path, tmp_path / "other.gguf"):
        with pytest.raises(UsageError, match="Name another"):
            one.written(place)
    with pytest.raises(StorageError, match="cannot write there"):
        one.written(tmp_path / "other.gguf" / "adapter.gguf")
    one.bench.space.value[3] += 1
    with pytest.raises(ReplayError):
        one.written(path, steps=4)
    one.bench.space.value[3] = float("nan")
    with pytest.raises(DivergedError):
        one.written(path)
    assert not path.exists()
