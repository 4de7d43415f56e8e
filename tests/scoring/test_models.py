"""The forward that scores equals transformers' own, and leaves nothing behind.

Reference: the same folder loaded by transformers in float32, each Linear's weight replaced by the dequantised codes of
a fresh bitsandbytes load; our loader, hooks and kernels have no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import reference, save
from helpers.scores import CLOSE, FAMILIES, VOCABULARY, Get, attach, deltas, far, plain_logits, random_examples

from zoedge.errors import DataError
from zoedge.recipe.sections import Model
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.layers import select_layers
from zoedge.scoring.models.loading import load_base, make_deterministic, resolve_dtype
from zoedge.scoring.tasks._examples import Examples
from zoedge.scoring.tasks.classify import Classify, ClassifyTraining

SCHEMES = (("nf4", True), ("nf4", False), ("fp4", True), ("int8", True), ("none", True))


@pytest.fixture(scope="module")
def loaded(families: dict[str, Path]) -> Get:
    """(family, quantization, double_quant) -> its base, loaded once. Called inside tests, where the cache is theirs."""

    @lru_cache
    def get(family: str, quantization: str = "nf4", double_quant: bool = True) -> Base:
        return load_base(Model(source=str(families[family]), quantization=quantization, double_quant=double_quant))

    return get


@pytest.fixture
def clean(loaded: Get) -> Iterator[Get]:
    """The same bases, handed back without trunk, cut and hooks."""
    used: list[Base] = []

    def get(*what: Any) -> Base:
        used.append(loaded(*what))
        return used[-1]

    yield get
    for base in used:
        base.kept.clear()
        base.cut = 0
        for module in base.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not base.model.get_output_embeddings():
                module._forward_hooks.clear()


LENGTHS = [41, 7, 23, 60, 1, 15]


@pytest.mark.parametrize(
    "family,quantization,double",
    [(f, *s) for f in FAMILIES for s in (SCHEMES if f in ("llama", "opt") else (SCHEMES[0], SCHEMES[3]))],
)
def test_scored_rows_equal_the_plain_forward(
    clean: Get, families: dict[str, Path], family: str, quantization: str, double: bool
) -> None:
    base = clean(family, quantization, double)
    spec = Model(source=str(families[family]), quantization=quantization, double_quant=double)
    assert resolve_dtype(spec, base.device) == base.dtype == torch.float32
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))
    full = plain_logits(reference(families[family], spec), batch)
    assert full.shape[-1] == VOCABULARY and full.abs().max() > 1
    h = base.hidden_states(batch, 1)
    assert far(base.logits(h, torch.arange(VOCABULARY)), full) < CLOSE
    assert far(base.logits(h, torch.tensor([300, 5, 11])), full[..., [300, 5, 11]]) < CLOSE
    targets = torch.randint(0, VOCABULARY, batch.rows.shape, generator=torch.Generator().manual_seed(1))
    want = torch.log_softmax(full.double(), -1).gather(-1, targets[..., None])[..., 0]
    assert far(base.log_likelihood(h, targets).double(), want) < CLOSE


def test_the_vocabulary_in_chunks_is_the_whole(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))
    h, targets = base.hidden_states(batch, 1), torch.arange(18).view(6, 3) * 20
    whole = base.log_likelihood(h, targets)
    for columns in (348, 100, 7):
        monkeypatch.setattr("zoedge.scoring.models.base.HEAD_COLUMNS", columns)
        assert far(base.log_likelihood(h, targets), whole) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_company_do_not_matter(clean: Get, family: str) -> None:
    base, examples = clean(family), random_examples(LENGTHS)
    together = base.hidden_states(examples.collate(range(len(LENGTHS))), 1)
    backwards = base.hidden_states(examples.collate(range(len(LENGTHS))[::-1]), 1)
    assert far(backwards.flip(0), together) < CLOSE
    for i in range(len(LENGTHS)):
        alone = base.hidden_states(examples.collate([i]), 1)  # no padding at all
        assert far(alone[0], together[i, : alone.shape[1]]) < CLOSE
    other = examples.collate(range(len(LENGTHS)))
    for s, ids in enumerate(examples.tokens):
        other.ids[s, len(ids) :] = 123  # what stands in the padding is nobody's business
    assert torch.equal(base.hidden_states(other, 1), together)


@pytest.mark.parametrize(
    "family,target", [("mistral", 64), ("qwen2", 96), ("qwen3", 96), ("gemma", 96), ("pythia", 96)]
)
def test_the_longest_sequence_is_the_windows(clean: Get, family: str, target: int) -> None:
    """Mistral's window is 64 of 96 positions; Qwen2's of 8 is switched off in its configuration."""
    assert clean(family).context_length == target


def test_up_to_the_window_attention_is_causal_and_beyond_it_is_not(clean: Get, families: dict[str, Path]) -> None:
    base, model = clean("mistral", "none"), reference(families["mistral"], Model(source="", quantization="none"))
    gaps = []
    for length in (64, 66):
        batch = random_examples([length]).collate([0])
        batch.rows[0, 0] = length - 1
        found = base.logits(base.hidden_states(batch, 1), torch.arange(VOCABULARY))
        gaps.append(far(found, plain_logits(model, batch)))
    assert gaps[0] < CLOSE and gaps[1] > 1e-3


def test_a_window_that_is_switched_on_counts(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import Qwen2Config

    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_attention_heads=2)
    for max_window_layers, longest in ((1, 24), (2, 96)):  # layers from max_window_layers on have it: one of two, none
        config = Qwen2Config(
            **sizes, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=96, use_sliding_window=True,
            sliding_window=24, max_window_layers=max_window_layers,
        )  # fmt: skip
        folder = save(tmp_path / str(longest), config, tokenizer)
        assert load_base(Model(source=str(folder), quantization="none")).context_length == longest


def test_gemmas_scale_is_not_rounded_to_the_storage_type(tmp_path: Path, tokenizer: Any) -> None:
    """sqrt(48) in bfloat16, and the product in it, are off by up to 0.4 %; also after taming twice, as an export does."""
    from transformers import AutoModelForCausalLM, GemmaConfig

    config = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=24, max_position_embeddings=96, dtype="bfloat16",
    )  # fmt: skip
    folder, ids = save(tmp_path / "gemma", config, tokenizer), torch.arange(300)[None]
    base = load_base(Model(source=str(folder)))
    assert base.model.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings()(ids)
        assert far(base.facts.embed(base.model, ids, torch.arange(ids.shape[1])[None]), want) < CLOSE
        make_deterministic(base.model, base.dtype)
        assert far(base.facts.embed(base.model, ids, torch.arange(ids.shape[1])[None]), want) < CLOSE


def test_old_pythia_checkpoints_load(clean: Get, families: dict[str, Path], tmp_path: Path) -> None:
    """They hold masks and frequencies that are computed today."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(families["pythia"], tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    assert "embed_out.weight" in tensors, "their name of the head"
    for i in range(3):
        place = f"gpt_neox.layers.{i}.attention"
        tensors[f"{place}.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.bool)
        tensors[f"{place}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{place}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    old, new = load_base(Model(source=str(tmp_path / "old"), quantization="none")), clean("pythia", "none")
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))
    assert torch.equal(old.hidden_states(batch, 1), new.hidden_states(batch, 1))
    assert torch.equal(old.model.lm_head.weight, new.model.lm_head.weight)


def test_opt_positions_start_at_two(clean: Get) -> None:
    base = clean("opt", "none")
    decoder = base.model.model.decoder
    h = base.facts.embed(base.model, torch.tensor([[5, 6, 7]]), torch.arange(3)[None])
    want = decoder.embed_tokens.weight[[5, 6, 7]] + decoder.embed_positions.weight[[2, 3, 4]]
    assert torch.equal(h[0], want)


def test_the_tokenizers_first_token_is_kept(clean: Get, families: dict[str, Path], tmp_path: Path) -> None:
    """OPT's tokenizer puts </s> first: every sequence has it, and a truncated one keeps it."""
    from zoedge.scoring.rows.row import Row

    base, task = clean("opt"), Classify(options={"n": " terrible", "p": " great"})
    rows = [Row("a:1", {"text": "a bright" + " film" * 3 * k, "label": "p"}) for k in (1, 9)]
    for limit in (90, 20):
        examples, counts = task.encode(rows, base.tokenizer, limit, "truncate")
        assert counts["truncated"] == (limit == 20)
        assert [ids[0] for ids in examples.tokens] == [2, 2] and max(map(len, examples.tokens)) <= limit
        assert examples.tokens[1][-3:] == base.tokenizer(" film It was").input_ids[-3:]
    assert clean("llama").tokenizer("a film").input_ids[0] != 1  # and none is added where the tokenizer adds none


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [[0], [59, 3, 3], [5, 0, 41, 17]])
def test_the_last_block_at_scored_rows_is_the_full_block(clean: Get, family: str, rows: list[int]) -> None:
    base = clean(family)
    h = torch.randn(3, 60, 64, generator=torch.Generator().manual_seed(4))
    at = torch.tensor([rows, rows[::-1], rows])
    context = {"attention_mask": None, **base.facts.context(base.model, h, torch.arange(60)[None])}
    with torch.inference_mode():
        full = base.blocks[-1](h, **context)
        few = base.facts.last(base.blocks[-1], h, at, **context)
    assert few.shape == (3, len(rows), 64)
    assert far(few, full.gather(1, at[..., None].expand(-1, -1, 64))) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_cache_is_exact_at_every_cut(clean: Get, family: str, tmp_path: Path) -> None:
    base = clean(family, "int8") if family == "opt" else clean(family)
    alike, mixed = random_examples([24] * 6), random_examples(LENGTHS)
    depth = len(base.blocks)
    for cut in range(depth):
        base.find_linears(list(range(cut, depth)), "all")
        assert base.cut == cut and not base.kept
        batches = [alike.collate(range(6)), mixed.collate(range(6)), mixed.collate([3, 1])]
        without = [base.hidden_states(b, 2) for b in batches]
        done = [sum(base.cache_trunk(e, tmp_path)) for e in (alike, mixed)]
        assert done == [len(LENGTHS), len(LENGTHS)] if cut else done == [0, 0] and not base.kept
        found = [base.hidden_states(b, 2) for b in batches]
        if cut < depth - 1:  # the last block alone is computed once for all points, in another order
            assert torch.equal(found[0], without[0]), "equal shapes: the same bits"
        assert max(map(far, found, without)) < CLOSE


@pytest.mark.parametrize("compute,bound", [("bf16", 0.1), ("fp16", 0.02)])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_half_precision_computes_the_same_up_to_rounding(
    clean: Get, families: dict[str, Path], tmp_path: Path, compute: str, bound: float, quantization: str
) -> None:
    """Losses are float64 of float32 logits in every type; the trunk is exact in it, too."""
    exact = clean("llama", quantization)
    half = load_base(Model(source=str(families["llama"]), quantization=quantization, compute_dtype=compute))
    batch = random_examples([24] * 6).collate(range(6))
    columns, logits = torch.arange(VOCABULARY), []
    for base in (exact, half):
        with attach(base, "last 2").visit(deltas(2)):
            logits.append(base.logits(base.hidden_states(batch, 2), columns))
    assert logits[1].dtype == torch.float32 and 0 < far(*logits) < bound
    before = half.hidden_states(batch, 1)
    assert before.dtype == half.dtype and sum(half.cache_trunk(batch.examples, tmp_path)) == 6
    assert torch.equal(half.hidden_states(batch, 1), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("train", ["both", "b"])
def test_points_together_equal_points_alone(clean: Get, family: str, quantization: str, train: str) -> None:
    """Each point's rows go through the same kernels, in batches of other sizes: measured 0.0 to 1e-6."""
    base = clean(family, quantization)
    space, some = attach(base, train=train), [*deltas(3), lambda leaf: None]
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))
    with space.visit(some):
        together = base.hidden_states(batch, 4).view(4, len(LENGTHS), 3, -1)
    alone = []
    for one in some:
        with space.visit([one]):
            alone.append(base.hidden_states(batch, 1))
    assert far(together, torch.stack(alone)) < CLOSE
    assert min(far(alone[0], x) for x in alone[1:]) > 0.01, "the points do differ"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("train", ["both", "b"])
def test_the_hook_is_w_plus_alpha_over_rank_b_a(
    clean: Get, families: dict[str, Path], family: str, quantization: str, train: str
) -> None:
    base = clean(family, quantization)
    targets = {"opt": ["q_proj", "v_proj", "fc1"], "gpt_neox": ["query_key_value", "dense", "dense_4h_to_h"]}
    space = attach(
        base, "last 2", targets.get(base.model.config.model_type, ["q_proj", "v_proj", "down_proj"]), train=train
    )
    model = reference(families[family], Model(source=str(families[family]), quantization=quantization))
    matrices = dict(space.tensors())
    assert len(matrices) == 2 * len(space.shapes) == 12
    for name in space.shapes:
        with torch.no_grad():
            model.get_submodule(name).weight += 8.0 / 4 * matrices[f"{name}.lora_B"] @ matrices[f"{name}.lora_A"]
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))
    with space.visit([lambda leaf: None]):
        found = base.logits(base.hidden_states(batch, 1), torch.arange(VOCABULARY))
    bare = base.logits(base.hidden_states(batch, 1), torch.arange(VOCABULARY))
    want = plain_logits(model, batch)
    assert far(found, want) < CLOSE and far(bare, want) > 0.01


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_visiting_leaves_no_trace(clean: Get, quantization: str) -> None:
    """Master, model and outputs keep their bits over many visits, also when the forward raises half-way."""
    base = clean("llama", quantization)
    space = attach(base)
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))

    def everything() -> dict[str, bytes]:
        found = {"master": space.value, "A": space.fixed, "bare": base.hidden_states(batch, 1)}
        with space.visit([lambda leaf: None]):
            found["here"] = base.hidden_states(batch, 1)
        found |= {name: t for name, t in base.model.state_dict().items() if isinstance(t, torch.Tensor)}
        return {name: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in found.items()}

    places = [p.data_ptr() for p in base.model.parameters()]
    before = everything()
    for count in (1, 5, 2):
        with space.visit(deltas(count)):
            base.hidden_states(batch, count)

    class Midway(Exception):
        pass

    def fall(*_: Any) -> None:
        raise Midway

    handle = base.blocks[1].register_forward_pre_hook(fall)
    for broken in (deltas(2), [*deltas(1), fall]):
        with pytest.raises(Midway), space.visit(broken):
            base.hidden_states(batch, 2)
    handle.remove()
    assert everything() == before
    assert [p.data_ptr() for p in base.model.parameters()] == places


def test_there_is_never_a_second_base(clean: Get) -> None:
    """Over steps the base's storage stays where it is, and no tensor of a weight's size outlives a forward."""
    import gc

    base = clean("llama")
    space = attach(base)
    batch = random_examples(LENGTHS).collate(range(len(LENGTHS)))

    def held() -> tuple[list[int], int]:
        gc.collect()
        places = [p.data_ptr() for p in base.model.parameters()]
        alive = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is torch.Tensor
        }
        return places, sum(alive.values())

    with space.visit(deltas(2)):
        base.hidden_states(batch, 2)
    first = held()
    for _ in range(3):
        with space.visit(deltas(2)):
            base.hidden_states(batch, 2)
        space.add(space.leaves()[0], torch.ones_like(space.value), 0.5)
    assert held() == first


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_options_of_several_tokens_are_mean_log_p(clean: Get, families: dict[str, Path], family: str) -> None:
    """per > 1: an option's score is the mean log p of its tokens, computed here one option at a time."""
    from zoedge.scoring.rows.row import Row

    base = clean(family)
    task = Classify(options={"bad": " not very good", "good": " great", "so": " dull boring"})
    texts = ["the film is bright", "a plot", "bad scene and terrible actor of the story"]
    rows = [Row(f"a:{i}", {"text": t, "label": "good"}) for i, t in enumerate(texts)]
    examples, _ = task.encode(rows, base.tokenizer, 90, "error")
    assert examples.sequences_each == 3 and len(examples.tokens) == 9
    scores = ClassifyTraining(task, examples, 0, 3).outputs(base, examples.collate([0, 1, 2]), 2)
    assert torch.equal(scores[0], scores[1])
    model = reference(families[family], Model(source=str(families[family])))
    for i, text in enumerate(texts):
        prompt = base.tokenizer(f"{text} It was").input_ids
        for j, option in enumerate(task.options.values()):
            ids = base.tokenizer(f"{text} It was{option}").input_ids
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            each = [log_p[k - 1, ids[k]].item() for k in range(len(prompt), len(ids))]
            assert abs(scores[0, i, j].item() - math.fsum(each) / len(each)) < CLOSE


def test_one_token_options_give_the_loss_of_the_whole_vocabulary_restricted(clean: Get) -> None:
    """per = 1 and per > 1 are two ways to one loss: the softmax over options drops what the options share."""
    base = clean("llama")
    single = random_examples(LENGTHS)
    several = Examples(2, labels=single.labels)
    for s in range(len(LENGTHS)):
        single.rows[s] = [LENGTHS[s] - 1]
        for target in single.targets[s]:
            several.tokens.append(single.tokens[s])
            several.rows.append(single.rows[s])
            several.targets.append([target])
    losses = [ClassifyTraining(Classify(), e, 0, 6).score(base, e.collate(range(6)), 1) for e in (single, several)]
    assert far(*losses) < CLOSE


@pytest.mark.parametrize(
    "layers,chosen", [("all", [0, 1, 2]), ("last 1", [2]), ("last 3", [0, 1, 2]), ([2, 0], [0, 2])]
)
def test_layers(layers: Any, chosen: list[int]) -> None:
    assert select_layers(layers, 3) == chosen


@pytest.mark.parametrize("layers", ["last 0", "last 4", "last", "first 1", "last -1", [], [3], [-1], [1, 1]])
def test_layers_that_are_not_there(layers: Any) -> None:
    with pytest.raises(DataError, match=r"space\.layers"):
        select_layers(layers, 3)


def test_targets_that_are_not_there(clean: Get) -> None:
    with pytest.raises(DataError, match=r"no module named 'q_prj' in LlamaForCausalLM.*did you mean 'q_proj'"):
        clean("llama").find_linears("all", ["q_prj"])
    with pytest.raises(DataError, match=r"space\.targets"):
        clean("llama").find_linears("all", [])


def test_the_first_examples_of_a_set_read_what_is_cached_of_it(
    clean: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration and samples score a set's first rows at each look: its lower layers are not computed again for them."""
    base = clean("llama")
    examples = random_examples(LENGTHS)
    base.set_cut(2)
    alone = base.hidden_states(examples.head(4).collate(range(4)), 2)
    sum(base.cache_trunk(examples, tmp_path))
    monkeypatch.setattr(Base, "trunk", lambda *args: pytest.fail("computed again"))
    for few in (examples.head(4), examples.head(5).head(4)):
        assert far(base.hidden_states(few.collate(range(4)), 2), alone) < CLOSE
