"""This module runs lm-eval's tasks (`zoedge eval RUN --tasks hellaswag`) on a base with what was trained.

The tasks, their prompts and their metrics are lm-eval's (the extra `eval`). Likelihoods come from the forward that training
scores with; answers are greedy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..errors import DataError, IdentityError, UsageError, make_printable, suggest_nearest
from ..run.trained import load_trained
from .export import folder as export_folder
from .export import peft

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
except ImportError as e:
    raise UsageError(
        f"--tasks needs lm-eval ({make_printable(str(e))}). Install it: pip install 'zoedge[eval]'"
    ) from None

from ..core.types import Space
from ..scoring.models.base import Base
from ..scoring.models.decode import generate_greedy
from ..scoring.tasks._examples import Examples

ROWS_PER_BATCH = 2048  # token rows in one forward
LOGIT_ROWS = 256  # rows of logits at a time: 50,272 float32 each are 0.2 MB
MAX_NEW_TOKENS = 256  # tokens of an answer at most, where its task does not say


class LmEvalModel(TemplateLM):
    """The model that lm-eval asks: a base (models.base.Base), and the points that are held in it meanwhile."""

    def __init__(self, base: Base):
        super().__init__()
        base.require_causal()
        self.base, self.tokenizer = base, base.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "The tokenizer has no end-of-text token, with which lm-eval begins a text that has no context."
            )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The base folder's name, under which lm-eval caches."""
        return str(self.base.path.name)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text."""
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens is not False).input_ids)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (log p, whether it is the greedy one) of each continuation, in the order asked for.

        requests: each (texts, context ids, continuation ids).
        """
        longest = self.base.context_length
        examples = Examples(1)
        for _texts, context, continuation in requests:
            if not 0 < len(continuation) <= longest:
                raise DataError(f"A continuation of {len(continuation)} tokens, in a context of {longest}.")
            ids = [*context, *continuation][-(longest + 1) :]  # the last is not read, only scored
            first = max(1, len(ids) - len(continuation))
            examples.add(ids, list(range(first, len(ids))), 0, "")
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for chosen in iter_batches(examples):
            batch = examples.collate(chosen)
            h = self.base.hidden_states(batch, 1)
            real = torch.arange(h.shape[1]) < torch.tensor([len(examples.targets[i]) for i in chosen])[:, None]
            scored = list(self._scored(h[real.to(h.device)], batch.targets[:, : h.shape[1]][real]))
            at = 0
            for i in chosen:
                own = scored[at : at + len(examples.targets[i])]
                at += len(own)
                answers[i] = (sum(p for p, _ in own), all(best for _, best in own))
        return answers

    def _scored(self, h: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[float, bool]]:
        """Yield (log p of the target, whether it is the likeliest token) for hidden states [N, H] and targets [N]."""
        head = self.base.facts.head(self.base.model)
        with torch.inference_mode():
            for rows, wanted in zip(h.split(LOGIT_ROWS), targets.to(h.device).split(LOGIT_ROWS)):
                logp = self.base.project(head, rows, slice(None)).log_softmax(-1)
                own = logp.gather(-1, wanted[:, None])[:, 0]
                yield from zip(own.double().tolist(), (own >= logp.max(-1).values).tolist())

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log p of whole texts, each cut into windows of the context length."""
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.base.context_length,
                context_len=1,
            )
            parts = self._loglikelihood_tokens([(None, *make_disjoint_window(pair)) for pair in windows])
            sums.append(sum(p for p, _ in parts))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each context, up to one of its stop texts. DataError: a task wants samples."""
        replies = []
        for request in requests:
            context, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise DataError("A task wants sampled answers (do_sample): zoedge answers greedily.")
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else [text for text in until if text]
            new = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
            if new >= self.base.context_length:
                raise DataError(f"A task wants {new} new tokens, in a context of {self.base.context_length}.")
            ids = torch.tensor([self.tok_encode(context)[-(self.base.context_length - new) :]])
            stops: dict[str, Any] = {"stop_strings": until, "tokenizer": self.tokenizer} if until else {}
            with torch.inference_mode():
                out = generate_greedy(self.base, ids, torch.ones_like(ids), 1, tokens=new, **stops)
            text: Any = self.tokenizer.decode(out[0], skip_special_tokens=True)
            for stop in until:
                text = text.partition(stop)[0]
            replies.append(text)
        return replies


def iter_batches(examples: Examples) -> Iterator[list[int]]:
    """Yield the numbers of all examples, the longest first, in batches of at most ROWS_PER_BATCH token rows."""
    left = [i for batch in examples.sorted_batches(1) for i in batch][::-1]
    while left:
        size = max(1, ROWS_PER_BATCH // len(examples.tokens[left[0]]))
        yield left[:size]
        left = left[size:]


def find_tasks(names: str, include: Path | None) -> tuple[list[str], Any]:
    """Return the tasks that a list separated by commas names, and lm-eval's manager of them.

    include: a folder of task files of one's own. UsageError: there is no such task or folder.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UsageError("--tasks: name some, such as --tasks hellaswag,arc_easy.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include is not None:
        if not include.is_dir():
            raise UsageError(f"--include: {include} is not a folder of task files (.yaml).")
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(wanted) <= set(own.all_tasks):  # else lm-eval's own are read too, thousands of files
            return wanted, own
    tasks = TaskManager(include_path=str(include) if include else None)
    for name in wanted:
        if name not in tasks.all_tasks:
            raise UsageError(
                f"--tasks: lm-eval has no '{make_printable(name)}'{suggest_nearest(name, tasks.all_tasks) or '.'}"
            )
    return wanted, tasks


def run_tasks(base: Base, space: Space | None, names: list[str], tasks: Any, limit: int | None) -> dict[str, Any]:
    """Return lm-eval's results of these tasks.

    space: what was trained, held in the base meanwhile; None: the base alone. DataError: a task's data cannot be had.
    """
    model = LmEvalModel(base)
    with nullcontext() if space is None else space.visit([lambda leaf: None]):
        try:
            results = simple_evaluate(
                model=model, tasks=names, task_manager=tasks, limit=limit, bootstrap_iters=1000, log_samples=False
            )
        except (DataError, KeyboardInterrupt):
            raise
        except Exception as e:  # of datasets, its network, or a task's own code: no list of kinds would be complete
            raise DataError(
                f"--tasks {','.join(names)}: {type(e).__name__}: {make_printable(str(e), 400)}. Tasks fetch "
                "their data from a hub; "
                "where there is none, --include DIR names a folder of tasks over files of your own."
            ) from e
    return dict(results or {})


def evaluate_tasks(
    run: str, tasks: str, limit: int | None, at: str | None, include: Path | None, compare: bool, source: str | None
) -> dict[str, dict[str, Any]]:
    """Return lm-eval's results of what a run or an exported adapter's folder trained: "tuned", and "base" to compare.

    Args:
        run: the run's folder or name, its log, or an adapter's folder.
        tasks: lm-eval's names, separated by commas.
        limit: at most so many rows of each task.
        at: of a run, after how many steps.
        include: a folder of task files of one's own.
        compare: also ask the base alone.
        source: of an adapter, where its base is.

    Raises:
        UsageError: an unknown task, or options that do not go together.
        DataError: what a task reads cannot be had.
    """
    names, manager = find_tasks(tasks, include)
    if (Path(run) / export_folder.MARKER_FILE).is_file():
        if at is not None:
            raise UsageError("--at: an adapter is of one step. Name its run.")
        base, space = attach_adapter(Path(run), source)
    else:
        if source is not None:
            raise UsageError("--base: of an adapter. A run's base is where its recipe says.")
        trained, *_ = load_trained(run, at)
        base, space = trained.base, trained.space
        if compare and trained.recipe.space.own_start:
            raise UsageError("--compare-base: all weights were trained, and the base's own are not held beside them.")
    results = {"base": run_tasks(base, None, names, manager, limit)} if compare else {}
    return results | {"tuned": run_tasks(base, space, names, manager, limit)}


def format_results(results: dict[str, Any]) -> str:
    """Return lm-eval's table of results."""
    return str(make_table(results)).strip()


def attach_adapter(folder: Path, source: str | None) -> tuple[Base, Space]:
    """Return the base of an exported adapter, and the space that holds the adapter's values over it.

    source: where the base is, if not where the marker says. DamagedError: the files. IdentityError: the base is another.
    UsageError: it is no LoRA adapter.
    """
    from ..methods.noise.rademacher import Rademacher
    from ..methods.spaces.aligned import Aligned
    from ..methods.spaces.lora import Lora
    from ..recipe.sections import Model
    from ..scoring.models.loading import load_base

    facts = export_folder.read_marker(folder)
    if facts["kind"] != "peft":
        raise UsageError(f"{folder} is a whole model: lm-eval reads it itself (lm_eval --model hf).")
    options, description = peft.parse_description(facts, folder)
    if not isinstance(options, (Lora, Aligned)):
        raise UsageError(f"{folder} is a {options.title}, a change from values of its base: name its run instead.")
    try:
        spec = Model(
            source=source or facts["source"],
            revision=None if source else facts["revision"],
            quantization=facts["quantization"],
            double_quant=facts["double_quant"],
            compute_dtype="auto",
            device="auto",
            threads=None,
        )
    except (KeyError, ValueError):
        raise errors.DamagedError(
            f"{folder / export_folder.MARKER_FILE}: what it says of the base cannot be read."
        ) from None
    base = load_base(spec)
    if base.digest.hex() != facts.get("base"):
        raise IdentityError(
            f"{folder}: the base in {base.path} is not the one that was trained on (sha256 {str(facts.get('base'))[:8]}.. -> "
            f"{base.digest.hex()[:8]}..). Name that one with --base."
        )
    space = options.attach(base, 0, Rademacher())
    space.take_start(description)
    space.load_tensors(peft.load_adapter(folder, space, base.digest))
    return base, space
