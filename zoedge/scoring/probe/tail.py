"""This module has the tail of a network: what follows the last block, a norm and the head, which works on rows alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from ..models.base import Base

WHOLE_LOGITS = 1 << 24  # rows x vocabulary up to which a fit reads the whole vocabulary
TOP_TOKENS, OTHER_TOKENS = 2048, 2500  # of the reduced one, besides the targets
CHUNK_LOGITS = 1 << 22  # logits that are held at a time: 16 MiB
FISHER_LABELS = 2  # drawn for each token
SCALE = 1e4  # a hidden state that is so much larger has a norm in which no epsilon counts


class Rows(NamedTuple):
    """What the tail makes of n hidden states, on the base's device, float32.

    Attributes:
        logits: [n, V].
        errors: softmax of the logits less one at the right token, [n, V].
        sizes: s, by which the norm divides, [n].
        centred: the states whose product with B over (H s) is q, [n, H].
    """

    logits: Tensor
    errors: Tensor
    sizes: Tensor
    centred: Tensor


@dataclass(frozen=True)
class Tail:
    """What follows the last block: the last norm and the head's rows of some tokens, or of all.

    Attributes:
        base: the model.
        weight, bias: the head's, [V, D] and [V] float32, and what is added to the logits of tokens that stand for others.
        places: the row of each token of the whole vocabulary, [all]; -1: none.
        zero: what the head reads of the hidden state 0: the norm's bias, [D].
    """

    base: Base
    weight: Tensor
    bias: Tensor
    places: Tensor
    zero: Tensor

    @classmethod
    def of(cls, base: Base) -> Tail:
        """Return the tail of a base over its whole vocabulary."""
        head = base.facts.head(base.model)
        weight = head.weight.detach().float()
        bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().float()
        nothing = torch.zeros(1, base.model.config.hidden_size, device=base.device, dtype=base.dtype)
        with torch.no_grad():
            zero = base.facts.head_input(base.model, nothing)[0].float()
        return cls(base, weight, bias, torch.arange(len(weight)), zero)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def is_centred(self) -> bool:
        """Whether the norm takes the mean off a state before it divides."""
        return isinstance(self.base.facts.read_norm(self.base.model), nn.LayerNorm)

    def keep_tokens(self, tokens: Tensor, added: Tensor) -> Tail:
        """Return the tail over some tokens [V], whose logits `added` [V] is added to."""
        places = torch.full_like(self.places, -1)
        places[tokens] = torch.arange(len(tokens))
        tokens, added = tokens.to(self.weight.device), added.to(self.weight.device)
        return replace(self, weight=self.weight[tokens], bias=self.bias[tokens] + added, places=places)

    def head_inputs(self, states: Tensor) -> Tensor:
        """Return what the head reads, [n, D] float32, of hidden states [n, H]; it can be differentiated."""
        states = states.to(self.base.device, self.base.dtype)
        return self.base.facts.head_input(self.base.model, states).float()

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [n, V] of hidden states [n, H]."""
        return self.head_inputs(states) @ self.weight.T + self.bias

    def chunks(self, count: int) -> Iterator[slice]:
        """Yield slices of `count` rows whose logits may be held at a time."""
        size = max(1, CHUNK_LOGITS // len(self))
        return (slice(i, i + size) for i in range(0, count, size))

    def losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy [T], float64 on the CPU, of hidden states [T, H] whose right tokens are `targets` [T]."""
        places = self.places[targets].to(self.weight.device)
        with torch.no_grad():
            parts = [
                cross_entropy(self.logits(states[rows]), places[rows], reduction="none")
                for rows in self.chunks(len(states))
            ]
        return torch.cat(parts).cpu().double()

    @torch.no_grad()
    def describe_rows(self, states: Tensor, targets: Tensor) -> Rows:
        """Return what the closed form needs of hidden states [n, H] with the right tokens `targets` [n]."""
        states = states.to(self.base.device)
        inputs = self.head_inputs(states)
        logits = inputs @ self.weight.T + self.bias
        errors = logits.softmax(-1)
        errors[torch.arange(len(errors)), self.places[targets]] -= 1
        centred = self.centre(states)
        # the norm's epsilon is part of its s, whatever it is: a state that is SCALE times larger has none in it
        without = (self.head_inputs(SCALE * states) - self.zero).norm(dim=1)
        sizes = centred.pow(2).mean(1).sqrt() * without / (inputs - self.zero).norm(dim=1)
        return Rows(logits, errors, sizes, centred)

    def centre(self, states: Tensor) -> Tensor:
        """Return what the norm divides by its size."""
        return states - states.mean(1, keepdim=True) if self.is_centred else states

    @torch.no_grad()
    def project_directions(self, b: Tensor) -> Tensor:
        """Return G [V, r]: how s times the logits move along the columns of B [H, r], with s held fixed."""
        columns = b.T.to(self.base.device).float()
        sizes = self.centre(columns).pow(2).mean(1, keepdim=True).sqrt()
        inputs = self.head_inputs(columns * (SCALE / sizes)) - self.zero
        return self.weight @ (inputs * sizes).T


def reduce_vocabulary(tail: Tail, states: Tensor, right: Tensor) -> Tail:
    """Return the tail over as many tokens as a fit to hidden states [T, H] with the right tokens [T] can afford.

    The targets and the base's likeliest tokens stay. OTHER_TOKENS of the rest, drawn evenly, stand for all of it: the
    logarithm of how many each stands for is added to its logit. Without them the loss over the whole vocabulary rises.
    """
    targets = right.unique()
    if len(right) * len(tail) <= WHOLE_LOGITS or len(tail) <= len(targets) + TOP_TOKENS + OTHER_TOKENS:
        return tail
    shares = torch.zeros(len(tail), device=tail.weight.device)
    with torch.no_grad():
        for rows in tail.chunks(len(states)):
            shares += tail.logits(states[rows]).softmax(-1).sum(0)
    shares[targets] = math.inf
    kept = shares.topk(len(targets) + TOP_TOKENS).indices.cpu()
    is_rest = torch.ones(len(tail), dtype=torch.bool)
    is_rest[kept] = False
    rest = is_rest.nonzero()[:, 0]
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:OTHER_TOKENS]]
    added = torch.cat([torch.zeros(len(kept)), torch.full((len(drawn),), math.log(len(rest) / len(drawn)))])
    return tail.keep_tokens(torch.cat([kept, drawn]), added)


def state_gradients(tail: Tail, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the loss at the hidden states, for the right tokens and for drawn ones.

    The first are [T, H], float64 on the CPU, of states [T, H] and targets [T]; the second are FISHER_LABELS times as many,
    each for a token drawn from the softmax of the logits, so that the mean of their outer products is the Fisher matrix.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for rows in tail.chunks(len(states)):
        x = states[rows].to(tail.base.device).requires_grad_()
        with torch.enable_grad():
            inputs = tail.head_inputs(x)
        shares = (inputs.detach() @ tail.weight.T + tail.bias).softmax(-1)
        drawn = torch.multinomial(shares.cpu(), FISHER_LABELS, replacement=True, generator=generator)
        mean = shares @ tail.weight
        gradients: list[Tensor] = []
        for column in (tail.places[targets[rows]], *drawn.T):
            slopes = mean - tail.weight[column.to(mean.device)]
            gradients += torch.autograd.grad(inputs, x, slopes, retain_graph=True)
        parts.append(torch.stack(gradients).cpu().double())
    whole = torch.cat(parts, dim=1)  # [1 + FISHER_LABELS, T, H]
    return whole[0], whole[1:].flatten(0, 1)
