"""What every space holds to, whatever is trained; and that virtual tokens are where the real ones would be.

References: transformers' own model on the same tokens, and PEFT's model from the exported folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.scores import deltas, far, give_basis, plain_logits, random_examples
from typer.testing import CliRunner

from zoedge.cli import app
from zoedge.commands import verify
from zoedge.commands.export import check, merged
from zoedge.commands.export import folder as export_folder
from zoedge.commands.export import peft as export_peft
from zoedge.core import digests, engine
from zoedge.core import run as core_run
from zoedge.core.canonical import encode_canonical
from zoedge.core.parts import list_words, load_part
from zoedge.core.types import Leaf
from zoedge.errors import DamagedError, DataError, IdentityError, UsageError
from zoedge.log.log import Log
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces.prefix import Prefix
from zoedge.methods.spaces.prompt import Prompt
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import part_name
from zoedge.recipe.sections import Model
from zoedge.run import evaluate, identity, replay, setup
from zoedge.run import folder as run_folder
from zoedge.run.display import make_display
from zoedge.run.evaluation import Evaluator
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.tasks._examples import Batch, Examples

VIRTUAL = ("prompt", "prefix")
SEVERAL = "{name: several, of: {lora: {rank: 4, layers: last 1}, prompt: {tokens: 4}}}"
ALIGNED = "{name: aligned, k: 4, layers: last 2}"
SPACES = ("lora", *VIRTUAL, SEVERAL, ALIGNED)  # those that hold many points at once
FAMILIES = ("llama", "opt", "gpt_neox")
LENGTHS = [33, 7, 1, 20]
SEED = 3
CLOSE = 1e-5  # of logits of size 1 to 3, float32: measured up to 2e-6; a wrong mask, position or row is 1e-2 or more


@pytest.fixture
def base(families: dict[str, Path], roberta: Path) -> Callable[..., Base]:
    def get(family: str, quantization: str = "none") -> Base:
        source = {**families, "roberta": roberta}[family]
        return load_base(Model(source=str(source), quantization=quantization))

    return get


def batch_of() -> Batch:
    return random_examples(LENGTHS, vocabulary=300).collate(range(len(LENGTHS)))


def still(leaf: Leaf) -> None:
    return None


def options_of(space: str) -> Any:
    """What a recipe's `space` says."""
    return read_recipe("two-sided", [f"space={space}", "model.quantization=none"]).space


def attach(word: str, base: Base, moved: float = 0.05, **options: Any) -> Any:
    """A space whose master is random everywhere (`moved`), so that no term of it is zero."""
    made = load_part("space", word)(**options) if options else options_of(word)
    space = give_basis(made.attach(base, SEED, Rademacher()))
    for leaf, make in zip(space.leaves(), deltas(len(space.leaves()), moved)):
        leaf.value.add_(make(leaf))
    return space


def logits(base: Base, batch: Any, copies: int = 1) -> torch.Tensor:
    """[copies, S, R, V]."""
    h = base.hidden_states(batch, copies)
    return base.logits(h, torch.arange(base.model.config.vocab_size)).unflatten(0, (copies, -1))


def plain(base: Base) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32, attn_implementation="eager").eval()


# -- what every space holds to


def test_there_are_spaces() -> None:
    assert {part_name(options_of(word)) for word in SPACES} <= set(list_words("methods.spaces"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", SPACES)
def test_points_together_equal_points_alone(word: str, family: str, base: Callable[..., Base]) -> None:
    model, some, batch = base(family, "nf4"), [*deltas(3, 0.1), still], batch_of()
    space = attach(word, model)
    with space.visit(some):
        together = logits(model, batch, 4)
    alone = []
    for one in some:
        with space.visit([one]):
            alone.append(logits(model, batch))
    assert far(together, torch.cat(alone)) < CLOSE
    assert min(far(alone[0], x) for x in alone[1:]) > 0.01, "the points do differ"


@pytest.mark.parametrize("compute,bound", [("bf16", 0.15), ("fp16", 0.02)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", SPACES)
def test_half_precision_computes_the_same_up_to_rounding(
    word: str, family: str, compute: str, bound: float, families: dict[str, Path]
) -> None:
    folder, found = str(families[family]), []
    for dtype in ("fp32", compute):
        model = load_base(Model(source=folder, quantization="none", compute_dtype=dtype))
        space = attach(word, model)
        with space.visit(deltas(2, 0.1)):
            assert model.hidden_states(batch_of(), 2).dtype == model.dtype
            found.append(logits(model, batch_of(), 2))
    assert 0 < far(*found) < bound


@pytest.mark.parametrize("word", SPACES)
def test_visiting_leaves_no_trace(word: str, base: Callable[..., Base]) -> None:
    """Master, model and outputs keep their bits, also when the forward or a delta raises."""
    model, batch = base("llama", "nf4"), batch_of()
    space = attach(word, model)

    def everything() -> dict[str, bytes]:
        found = {leaf.name: leaf.value for leaf in space.leaves()} | {"bare": model.hidden_states(batch, 1)}
        with space.visit([still]):
            found["here"] = model.hidden_states(batch, 1)
        found |= {name: t for name, t in model.model.state_dict().items() if isinstance(t, torch.Tensor)}
        return {name: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in found.items()}

    class Midway(Exception):
        pass

    def fall(*_: Any) -> None:
        raise Midway

    before = everything()
    assert before["bare"] != before["here"]
    for count in (1, 4, 2):
        with space.visit(deltas(count, 0.1)):
            model.hidden_states(batch, count)
    handle = model.blocks[1].register_forward_pre_hook(fall)
    for broken in (deltas(2, 0.1), [*deltas(1, 0.1), fall]):
        with pytest.raises(Midway), space.visit(broken):
            model.hidden_states(batch, 2)
    handle.remove()
    assert everything() == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", SPACES)
def test_a_description_rebuilds_the_space(word: str, family: str, base: Callable[..., Base]) -> None:
    space = attach(word, base(family), moved=0.0)
    options, said = space.options, space.describe()
    blank = options.blank(said, SEED, Rademacher())
    assert identity.manifest_digest(blank) == identity.manifest_digest(space) and digests.digest(
        blank
    ) == digests.digest(space)
    assert blank.describe() == said
    at = 0
    for leaf in blank.leaves():
        assert leaf.offset == at and leaf.parts[0].offset == at
        for p in leaf.parts:
            assert p.offset == at
            at += torch.Size(p.shape).numel()
        assert at == leaf.offset + len(leaf.value)
    assert {leaf.total for leaf in blank.leaves()} == {at}
    assert options.elements(said) == at


@pytest.mark.parametrize("word", SPACES)
def test_a_damaged_description_is_no_description(word: str, base: Callable[..., Base]) -> None:
    space = attach(word, base("llama"))
    options, said = space.options, space.describe()
    for broken in (None, 3, [], {}, "x", *({**said, key: x} for key in said for x in (None, -1, 0, "x", 1.5, {}))):
        assert options.elements(broken) in (-1, 0), broken


@pytest.fixture
def trained(
    recipe_file: Path, families: dict[str, Path], half: Path, tmp_path: Path
) -> Callable[..., tuple[setup.Measuring, Log]]:
    """A run of so many steps, in pieces that each begin from the log alone: (bench where it ended, the finished log)."""

    def train(
        word: str, family: str, name: str, pieces: tuple[int, ...] = (8,), quantization: str = "none"
    ) -> tuple[setup.Measuring, Log]:
        more = [
            "rule={name: momentum, lr: 0.02}",
            "train.steps=8",
            "eval.select=last",
            f"model.quantization={quantization}",
        ]
        if family != "llama":
            more.append(f"model.source={ {**families, 'half': half}[family] }")
        recipe = read_recipe(str(recipe_file), [f"space={word}", *more])
        folder = tmp_path / name
        folder.mkdir()
        for until in pieces:
            path = folder / run_folder.LOG_FILE
            bench = setup.Measuring.build(recipe, Log.open(path).header if path.exists() else None)
            if not path.exists():
                give_basis(bench.space)
            with Log.resume(path) if path.exists() else setup.begin_run(bench, folder) as log:
                for _ in engine.play(bench.run(log), until):
                    pass
                if until == 8:
                    log.finish(digests.digest(bench.space))
        return bench, Log.open(path)

    return train


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", SPACES)
def test_training_resuming_replaying_and_numpy_agree(word: str, family: str, trained: Callable[..., Any]) -> None:
    bench, log = trained(word, family, "whole")
    final = digests.digest(bench.space)
    again, other = trained(word, family, "pieces", (3, 5, 8))
    assert digests.digest(again.space) == final and other.fingerprint == log.fingerprint
    start = replay.build_replay_run(log)
    assert start.model is None and digests.digest(start.space) != final
    arrays = core_run.Run(
        start.seed, start.steps, verify.UncheckedLog(log), verify.NumpySpace(start.space), start.noise, start.rule
    )
    for run in (start, arrays):
        assert len(list(engine.play(run, len(log)))) == 8
        assert digests.digest(run.space) == final
    assert "agree" in verify.check_states(log)[1][0]


@pytest.mark.parametrize("word", SPACES)
def test_a_log_with_a_damaged_description_is_refused(word: str, trained: Callable[..., Any]) -> None:
    _, log = trained(word, "llama", "run")
    about = {**log.header.about, "space": {}}
    broken: Any = SimpleNamespace(path=log.path, header=replace(log.header, block=encode_canonical(about)))
    with pytest.raises(DamagedError, match="what is trained"):
        replay.build_replay_run(broken)


# -- exports


def test_peft_in_a_fresh_process_gives_the_trained_logits(trained: Callable[..., Any], tmp_path: Path) -> None:
    jobs = []
    for word in SPACES[1:]:
        for family in FAMILIES:
            bench, log = trained(word, family, name := f"{part_name(options_of(word))} {family}")
            run = bench.run(log)
            jobs.append(("peft", export_peft.write_peft(run, log, bench.recipe, tmp_path / f"{name} peft"), bench))
    bench, log = trained("prefix", "half", "half stored", quantization="nf4")
    jobs.append(("peft", export_peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "half"), bench))
    fresh = replay.attach_replayed(replay.build_replay_run(log), log)  # where training began: the check can fail
    jobs.append(("peft", jobs[-1][1], SimpleNamespace(recipe=bench.recipe, base=fresh.base, space=fresh)))
    *found, off = check.check_exports(jobs)
    assert max(found) < CLOSE < 0.01 < off, (found, off)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", VIRTUAL)
def test_peft_and_the_training_forward_agree_on_padded_rows(
    word: str, family: str, trained: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    bench, log = trained(word, family, "run")
    folder, batch = export_peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "adapter"), batch_of()
    peft = PeftModel.from_pretrained(plain(bench.base), folder).eval()
    ((name, value),) = bench.space.tensors()
    assert torch.equal(peft.prompt_encoder["default"].embedding.weight, value)
    with bench.space.visit([still]):
        found = logits(bench.base, batch)
    assert far(found, plain_logits(peft, batch)) < CLOSE
    assert far(found, logits(bench.base, batch)) > 0.01
    loaded = export_peft.load_adapter(folder, bench.space, log.header.base, log.fingerprint)
    assert loaded.keys() == {name} and torch.equal(loaded[name], value)


@pytest.mark.parametrize("word", VIRTUAL)
def test_an_adapter_is_proved_from_log_and_base(word: str, trained: Callable[..., Any], tmp_path: Path) -> None:
    bench, log = trained(word, "llama", "run")
    run = bench.run(log)
    folder = export_peft.write_peft(run, log, bench.recipe, tmp_path / "adapter")
    assert f"{log.header.about['recipe']['name']}: {bench.recipe.space.title}\n" in (folder / "README.md").read_text()
    replayed, _ = verify.check_states(log)
    assert "1 tensors equal" in verify.check_adapter(replayed, log, folder)[0]
    again = CliRunner().invoke(app, ["replay", str(log.path), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / export_folder.WEIGHTS_FILE).read_bytes() == (
        folder / export_folder.WEIGHTS_FILE
    ).read_bytes()
    with pytest.raises(UsageError, match="exported where the base is"):
        export_peft.write_peft(replayed, log, bench.recipe, tmp_path / "other")
    with pytest.raises(UsageError, match="nothing to merge"):
        merged.write_merged(bench.recipe, bench.space, tmp_path / "other")
    longer = replace(bench.recipe.space, tokens=7).blank(bench.space.describe(), SEED, Rademacher())
    with pytest.raises(IdentityError, match=r"not an adapter of this space|is \["):
        export_peft.load_adapter(folder, longer)


def test_spaces_together_are_proved_and_loaded_one_onto_the_other(trained: Callable[..., Any], tmp_path: Path) -> None:
    from peft import PeftModel

    bench, log = trained(SEVERAL, "llama", "run")
    folder = export_peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "adapter")
    assert sorted(p.name for p in folder.iterdir()) == ["lora", "prompt"]
    assert "together, each loaded onto the one before: lora, prompt\n" in (folder / "lora" / "README.md").read_text()
    replayed, _ = verify.check_states(log)
    count = len(dict(bench.space.members["lora"].tensors())) + 1
    assert f"{count} tensors equal" in verify.check_adapter(replayed, log, folder)[0]
    again = CliRunner().invoke(app, ["replay", str(log.path), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    for word in ("lora", "prompt"):
        assert (tmp_path / "again" / word / export_folder.WEIGHTS_FILE).read_bytes() == (
            folder / word / export_folder.WEIGHTS_FILE
        ).read_bytes()
    model, batch = plain(bench.base), batch_of()
    for word in ("lora", "prompt"):
        model = PeftModel.from_pretrained(model, folder / word)
    with bench.space.visit([still]):
        found = logits(bench.base, batch)
    # the terms of two adapters, summed in another order: 1.0e-5 (AVX-512, one thread) to 2.2e-5 (AVX2, two)
    assert far(found, plain_logits(model.eval(), batch)) < 5 * CLOSE
    (folder / "prompt" / export_folder.WEIGHTS_FILE).write_bytes(
        (folder / "lora" / export_folder.WEIGHTS_FILE).read_bytes()
    )
    with pytest.raises((DamagedError, IdentityError)):
        verify.check_adapter(replayed, log, folder)


def test_an_adapter_and_scales_are_merged_together(trained: Callable[..., Any], tmp_path: Path) -> None:
    bench, log = trained(
        "{name: several, of: {scales: {layers: last 1}, lora: {layers: all}}}", "llama", "run", quantization="nf4"
    )
    assert bench.space.width == 1 and bench.recipe.output.export == [] and bench.base.cut == 0
    assert "agree" in verify.check_states(log)[1][0]
    for leaf in bench.space.leaves():
        leaf.value.mul_(0.03)  # values of 3, as they are here, make float32's rounding 0.02 of a logit
    made = merged.write_merged(bench.recipe, bench.space, tmp_path / "merged", "fp32")
    assert check.check_export("merged", made.folder, bench) < CLOSE
    with pytest.raises(UsageError, match="no adapter in PEFT's format"):
        export_peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("[lora, prompt]", r"space\.of: \[lora, prompt\] is not a table of keys"),
        ("{lora: }", r"space\.of: name two spaces at least"),
        ("{lora: , promt: }", r"space: no 'promt'\. .* did you mean 'prompt'"),
        ("{lora: {rnk: 4}, prompt: }", r"space\.of\.lora\.rnk: unknown key - did you mean 'rank'"),
        ("{lora: {r: 4}, prompt: }", r"space\.of\.lora\.r: unknown key - zoedge calls this 'space\.rank'"),
        (
            "{lora: {rank: 0}, prompt: {tokens: 0}}",
            r"of\.lora\.rank: 0 is not at least 1(.|\n)*of\.prompt\.tokens: 0 is",
        ),
        ("{lora: 3, prompt: }", r"space\.of\.lora: 3 is not a table of keys"),
        ("{lora: {name: x}, prompt: }", r"space\.of\.lora\.name: unknown key"),
        ("{lora: , full: }", r"space\.of\.full: goes with no other space"),
        ("{lora: , several: {of: {lora: , prompt: }}}", r"space\.of\.several: goes with no other space"),
        ("{prefix: , prompt: }", r"space\.of: one kind of virtual tokens alone"),
        ("{prompt: , scales: }", r"space: several goes only with model\.quantization: nf4 or fp4 or int8, not none"),
    ],
)
def test_what_goes_not_together_is_told(of: str, sentence: str, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), [f"space={{name: several, of: {of}}}", "model.quantization=none"])


def test_the_order_in_which_spaces_are_written_does_not_matter(recipe_file: Path) -> None:
    found = [
        read_recipe(str(recipe_file), [f"space={{name: several, of: {{{of}}}}}"])
        for of in ("lora: , prompt: ", "prompt: , lora: ")
    ]
    assert list(found[0].space.of) == list(found[1].space.of)


@pytest.mark.parametrize("word", VIRTUAL)
def test_a_merge_that_cannot_be_is_refused_before_training(word: str, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.export: a .* changes no weight"):
        read_recipe(str(recipe_file), [f"space={word}", "output.export=[peft, merged]"])


# -- virtual tokens are where the real ones would be


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", "the film is very", "the film"])
@pytest.mark.parametrize("word", VIRTUAL)
def test_the_start_is_the_model_on_real_tokens(word: str, text: str, family: str, base: Callable[..., Base]) -> None:
    """As embeddings or as keys and values: before training, the virtual tokens are tokens."""
    model, batch = base(family), batch_of()
    space = attach(word, model, moved=0.0, tokens=4, text=text)
    first = model.choose_token_ids(4, text, SEED).tolist()
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    assert len(first) == 4 and (not text or first == (ids * 4)[:4])
    with space.visit([still]):
        found = logits(model, batch)
    reference = plain(model)
    assert far(found, plain_logits(reference, batch, first)) < CLOSE
    assert far(found, plain_logits(reference, batch)) > 0.01


@pytest.mark.parametrize("word", VIRTUAL)
def test_an_opt_with_projections_and_late_norms(word: str, tokenizer: Any, tmp_path: Path) -> None:
    """OPT-350M's plan: embeddings are narrower than the hidden states, and norms come after."""
    from helpers.models import save
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96, word_embed_proj_dim=32, do_layer_norm_before=False,
    )  # fmt: skip
    model, batch = (
        load_base(Model(source=str(save(tmp_path / "350m", config, tokenizer)), quantization="none")),
        batch_of(),
    )
    space = attach(word, model, moved=0.0, tokens=4)
    with space.visit([still]):
        found = logits(model, batch)
    assert far(found, plain_logits(plain(model), batch, model.choose_token_ids(4, "", SEED).tolist())) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", VIRTUAL)
def test_generated_text_sees_the_virtual_tokens(word: str, family: str, base: Callable[..., Base]) -> None:
    """generate caches; here every token is chosen by a whole forward."""
    model = base(family)
    space = attach(word, model, moved=0.3)
    ids, count = model.tokenizer("the film is", return_tensors="pt").input_ids, 0
    bare = model.generate("the film is", 8)
    with space.visit([still]):
        text, new = model.generate("the film is", 8), []
        while count < 8 and new[-1:] != [model.model.config.eos_token_id]:
            rows, text_of = torch.tensor([[ids.shape[1] - 1]]), SimpleNamespace(tokens=ids, whole=None)
            here: Any = SimpleNamespace(ids=ids, rows=rows, index=[0], branches=None, examples=text_of)
            new.append(int(logits(model, here)[0, 0, 0].argmax()))
            ids, count = torch.cat([ids, torch.tensor([new[-1:]])], 1), count + 1
    assert text == model.tokenizer.decode(new, skip_special_tokens=True) != bare


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", SPACES)
def test_points_answer_together_as_alone(word: str, family: str, base: Callable[..., Base]) -> None:
    """Prompts of unlike length, padded on the left, each copy after its own virtual tokens."""
    model, some = base(family), [*deltas(2, 0.3), still]
    attached, prompts = attach(word, model, moved=0.3), [[40, 50, 60, 70, 80], [90], [41, 42]]
    with attached.visit(some):
        together = model.generate_answers(prompts, 3, 6)
    alone = []
    for one in some:
        with attached.visit([one]):
            alone.append([model.generate_answers([prompt], 1, 6)[0][0] for prompt in prompts])
    assert together == alone and len({tuple(row) for row in alone}) > 1


@pytest.mark.parametrize("word", VIRTUAL)
def test_a_model_that_fills_masks_is_refused(word: str, base: Callable[..., Base]) -> None:
    with pytest.raises(DataError, match="fills masks: virtual tokens are not supported"):
        attach(word, base("roberta"))


def test_the_start_is_a_function_of_the_seed(base: Callable[..., Base]) -> None:
    model = base("llama")
    a, b, c = (model.choose_token_ids(40, "", seed).tolist() for seed in (1, 1, 2))
    assert a == b != c and len(set(a)) > 20 and max(a) < model.model.config.vocab_size


@pytest.mark.parametrize("word", VIRTUAL)
def test_virtual_tokens_take_of_the_context(word: str, base: Callable[..., Base], tmp_path: Path) -> None:
    model = base("opt")
    model.set_cut(1)
    attach(word, model, tokens=6)
    assert model.context_length == 90 and model.cut == 0
    assert sum(model.cache_trunk(random_examples(LENGTHS, vocabulary=300), tmp_path)) == 0, (
        "nothing lies below the first block"
    )
    model.find_linears("last 1", "all")
    assert model.cut == 0
    with pytest.raises(DataError, match=r"space\.tokens: 90 leave no room for text in a context of 90"):
        load_part("space", word)(tokens=90).attach(model, SEED, Rademacher())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", VIRTUAL)
def test_rows_up_to_the_last_position_are_scored(word: str, family: str, base: Callable[..., Base]) -> None:
    model, examples = base(family), Examples(1)
    space = attach(word, model, moved=0.0, tokens=6)
    examples.tokens, examples.rows, examples.targets = [list(range(3, 93))], [[89]], [[7, 11]]
    examples.labels, examples.names = [0], ["here:0"]
    batch = examples.collate([0])
    with space.visit([still]):
        found = logits(model, batch)
    assert far(found, plain_logits(plain(model), batch, model.choose_token_ids(6, "", SEED).tolist())) < CLOSE


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["space.tokens=0"], r"space\.tokens: 0 is not at least 1"),
        (["space.tokens=-3"], r"space\.tokens"),
        (["space.tokens=1.5"], r"space\.tokens: 1\.5 is not a whole number"),
        (["space.rank=4"], r"space\.rank: unknown key"),
    ],
)
@pytest.mark.parametrize("word", VIRTUAL)
def test_wrong_options_are_told(word: str, overrides: list[str], sentence: str, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(recipe_file), [f"space={word}", *overrides])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["space.tokens=96"], r"space\.tokens: 96 leave no room for text in a context of 96"),
        (["space.tokens=3", "space.text=the film is very dull"], r"space\.text: 5 tokens, .*1 to space\.tokens \(3\)"),
        (["space.tokens=90"], r"samples .* are longer than 6 tokens"),
    ],
)
@pytest.mark.parametrize("word", VIRTUAL)
def test_what_does_not_fit_is_told(word: str, overrides: list[str], sentence: str, recipe_file: Path) -> None:
    recipe = read_recipe(str(recipe_file), [f"space={word}", *overrides, "model.quantization=none"])
    with pytest.raises(DataError, match=sentence):
        setup.Measuring.build(recipe)


def test_options_have_defaults() -> None:
    assert Prompt() == Prompt(10, "") and Prefix() == Prefix(5, "")


def test_zero_shot_is_the_base_alone(recipe_file: Path, tmp_path: Path) -> None:
    """Whatever the space starts from: virtual tokens that were never trained already move the answers."""
    found, starts = [], []
    for word in ("lora", *VIRTUAL):
        folder = tmp_path / word
        folder.mkdir()
        bench = setup.Measuring.build(read_recipe(str(recipe_file), [f"space={word}", "model.quantization=none"]))
        with setup.begin_run(bench, folder) as log:
            found.append(Evaluator(bench, log, make_display("quiet")).before())
        starts.append(evaluate.evaluate(bench.space, bench.task, bench.base, bench.texts.test, 16))
    text = found[0].base_text
    assert found[0] == found[1] == found[2] == replace(starts[0], drift=0.0, text=text, base_text=text)
    assert all(start.loss != found[0].loss for start in starts[1:])
