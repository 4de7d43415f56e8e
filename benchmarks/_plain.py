"""What zoedge is measured against: plain inference (the floor), and MeZO's step as its paper writes it.

Both run on a base that zoedge has loaded, so that the quantised product, the threads and the types are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad


def one_token(batch: Any) -> bool:
    """Is the batch of options of one token each? Else every scored row has a target of its own."""
    return bool(batch.targets.shape != batch.rows.shape)


@torch.inference_mode()
def floor(base: Any, batch: Any, copies: int) -> Tensor:
    """The logits that the loss reads, by transformers' own forward over `copies` of a batch: [copies * S, R, columns].

    One token an option: those columns of the head alone. Else all columns, at the scored rows alone.
    """
    model, head = base.model, base.facts.head(base.model)
    ids, rows, targets = (x.to(base.device) for x in (batch.ids, batch.rows, batch.targets))
    h = model.base_model(input_ids=ids.repeat(copies, 1), use_cache=False)[0]
    h = h.gather(1, rows.repeat(copies, 1)[..., None].expand(-1, -1, h.shape[-1]))
    return linear(h.float(), head.weight[targets[0]].float()) if one_token(batch) else head(h)


def normals(parameters: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
    """The step's direction, anew at every pass: a global generator, and a normal tensor a parameter, in its type."""
    torch.manual_seed(seed)
    for p in parameters:
        yield torch.normal(mean=0.0, std=1.0, size=p.shape, dtype=p.dtype, device=p.device)


@torch.inference_mode()
def mezo(
    parameters: Sequence[Tensor],
    loss: Callable[[], float],
    eps: float,
    lr: float,
    seed: int,
    draw: Callable[[Sequence[Tensor], int], Iterator[Tensor]] = normals,
) -> float:
    """One step of MeZO's Algorithm 1 (arXiv 2305.17333) in place; returns the projected gradient.

    Four passes over the parameters: + eps z, - 2 eps z, + eps z, and the update. Two forwards, one after the other.
    """

    def move(by: float) -> None:
        for p, z in zip(parameters, draw(parameters, seed)):
            p.add_(z.mul_(by))

    move(eps)
    above = loss()
    move(-2 * eps)
    below = loss()
    move(eps)
    g = (above - below) / (2 * eps)
    move(-lr * g)
    return g


def loss_of(model: Any, batch: Any, once: bool = False) -> Callable[[], float]:
    """MeZO's loss of a batch, from logits of all positions over the whole vocabulary.

    The mean over all tokens; for classification, one sequence an option. once: one sequence an example there too, so that
    as many padded tokens are computed as zoedge computes.
    """
    single, options = one_token(batch), batch.targets.shape[1]
    last = batch.rows[:, -1:]  # the row whose next token is the last
    if single and once:
        ids = batch.ids
    elif single:
        last = last.repeat_interleave(options, 0)
        ids = pad(batch.ids.repeat_interleave(options, 0), (0, 1)).scatter(1, last + 1, batch.targets.reshape(-1, 1))
    else:  # sequences of one length
        ids = torch.cat([batch.ids, batch.targets[:, -1:]], 1)
    ids, last, targets, labels = (x.to(model.device) for x in (ids, last, batch.targets, batch.labels))

    def loss() -> float:
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)
        if single:
            here = log_p.gather(1, last[..., None].expand(-1, -1, log_p.shape[-1]))[:, 0]
            found = here.gather(-1, targets if once else targets.reshape(-1, 1))
            return cross_entropy(found.view(-1, options), labels).item()
        return -log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()

    return loss


@contextmanager
def adapted(model: Any, matrices: dict[str, Tensor], scale: float) -> Iterator[None]:
    """LoRA as it is usually written, y + scale (x A') B', while open. matrices: NAME.lora_A and NAME.lora_B of modules."""
    hooks = []
    for site in {name.rpartition(".")[0]: None for name in matrices}:
        a, b = matrices[f"{site}.lora_A"], matrices[f"{site}.lora_B"]
        term = lambda module, args, y, a=a, b=b: y + linear(linear(args[0], a), b) * scale
        hooks.append(model.get_submodule(site).register_forward_hook(term))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
