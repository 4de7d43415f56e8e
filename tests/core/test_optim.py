"""zoedge.optim.ZerothOrder: it learns, it is the engine's arithmetic, it gives bits back, it resumes and replays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.modules import mlp, state, task
from torch import Tensor, nn

import zoedge
from zoedge.core import engine
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import SKIPPED, Key, Leaf
from zoedge.errors import DamagedError, DataError, DivergedError, IdentityError, LockedError, ReplayError, UsageError
from zoedge.log.log import Log
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.optim import ZerothOrder
from zoedge.run import identity

ROOT = Path(zoedge.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unsynced: None) -> None:
    monkeypatch.chdir(tmp_path)


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# -- it learns


def test_a_quadratic_converges() -> None:
    p = nn.Parameter(torch.tensor([3.0, -2.0, 1.0, 4.0]))
    goal = torch.tensor([1.0, 1.0, -1.0, 0.5])
    optimizer = ZerothOrder([p], lr=0.1, eps=1e-2, log=None)
    first = optimizer.step(lambda: nn.functional.mse_loss(p, goal, reduction="sum"))
    for _ in range(60):
        last = optimizer.step(lambda: nn.functional.mse_loss(p, goal, reduction="sum"))
    assert first > 20 and last < 0.01 and (p - goal).abs().max() < 0.1
    assert optimizer.steps == 61 and optimizer.fingerprint is None


def test_a_small_network_learns() -> None:
    module = mlp()
    loss = task(module)
    before = float(loss().detach())
    with ZerothOrder(module.named_parameters(), lr=5e-2, eps=1e-3, queries=4, log=None) as optimizer:
        for _ in range(60):
            optimizer.step(loss)
    assert float(loss().detach()) < 0.6 * before


def test_a_step_is_the_papers_arithmetic() -> None:
    """theta - lr g z in float32, g = (f(theta + eps z) - f(theta - eps z)) / 2 eps to 16 bits: by hand."""
    p = nn.Parameter(torch.tensor([0.5, -1.5, 2.0]))
    start, weights = p.detach().clone(), torch.tensor([1.0, 2.0, 4.0])
    optimizer = ZerothOrder([p], lr=0.25, eps=0.5, seed=7, log=None)
    found = optimizer.step(lambda: float((p * weights).sum()))
    z = Rademacher().draw(Key(7, 0, 0), Leaf("", 0, start, (), 3))
    g = float((z * weights).sum())  # linear: exact
    assert torch.equal(p.detach(), start - 0.25 * g * z) and g != 0
    assert found == pytest.approx(float((start * weights).sum()))


WORDS = [(kind, word) for kind in ("noise", "estimator", "rule") for word in list_words(PART_FOLDERS[kind])]


def partners(kind: str, word: str) -> dict[str, Any]:
    """A word with others that it goes with, and the options that it asks for."""
    found: dict[str, Any] = {"noise": "rademacher", "estimator": "two_sided", "rule": "sgd", kind: word}
    for other, allowed in getattr(load_part(kind, word), "only_with", {}).items():
        section, _, option = other.partition(".")
        if not option:
            found[section] = allowed[0]
    for other, allowed in getattr(load_part(kind, word), "only_with", {}).items():
        section, _, option = other.partition(".")
        if section == "rule" and option:
            found["rule"] = {"name": "sgd", "lr": allowed[0]} if option == "lr" else found["rule"]
    return found


def test_an_estimator_of_single_examples_is_refused() -> None:
    with pytest.raises(UsageError, match="gauss_newton reads the losses of single examples, and a closure returns one"):
        ZerothOrder(mlp().named_parameters(), estimator="gauss_newton", steps=8, log=None)
    with pytest.raises(UsageError, match="forward differentiates a recipe's model, and a closure returns one number"):
        ZerothOrder(mlp().named_parameters(), estimator="forward", steps=8, log=None)


@pytest.mark.parametrize("kind,word", [pair for pair in WORDS if pair[1] not in ("gauss_newton", "forward")])
def test_every_word_and_object_trains_and_replays(kind: str, word: str) -> None:
    chosen = partners(kind, word)
    logs = []
    for name, given in {"word": chosen[kind], "object": load_part(kind, word)()}.items():
        module = mlp()
        start = state(module)
        made = {**chosen, kind: given}
        with ZerothOrder(module.named_parameters(), steps=8, log=f"{name}.zlog", **made) as optimizer:
            for _ in range(8):
                optimizer.step(task(module))
            fingerprint = optimizer.finish()
        found = zoedge.replay(f"{name}.zlog", base=start)
        assert same(found.tensors, state(module)) and found.fingerprint == fingerprint
        assert word in ("stp", "s2p", "as2p", "conservative") or not same(found.tensors, start), "something moved"
        logs.append(fingerprint)
    assert logs[0] == logs[1], "a word and its object are one"


# -- bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probing_gives_the_same_bits_back(dtype: torch.dtype) -> None:
    module = mlp(dtype=dtype)
    start, seen = state(module), []
    optimizer = ZerothOrder(module.named_parameters(), lr=1e-2, eps=0.5, log=None)
    addresses = [p.data_ptr() for p in module.parameters()]

    def never() -> float:
        seen.append(state(module))
        return float("nan")

    for _ in range(3):
        optimizer.step(never)
        assert same(state(module), start) and [p.data_ptr() for p in module.parameters()] == addresses
    assert len(seen) == 6 and all(not torch.equal(s["0.weight"], start["0.weight"]) for s in seen)
    assert all(s[name].dtype == dtype for s in seen for name in s)

    class Mine(Exception):
        pass

    calls = []

    def raising() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise Mine("of the user's")
        return 1.0

    with pytest.raises(Mine, match="of the user's"):
        optimizer.step(raising)
    assert same(state(module), start) and optimizer.steps == 3
    optimizer.step(task(module))
    assert not same(state(module), start) and optimizer.steps == 4


def test_memory_that_ends_in_a_closure_is_the_users() -> None:
    """The engine measures an exhausted step again in parts: a closure has none, and its error comes out as it is."""
    p, calls = nn.Parameter(torch.ones(2)), []

    def full() -> float:
        calls.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        ZerothOrder([p], log=None).step(full)
    assert len(calls) == 1 and torch.equal(p.detach(), torch.ones(2))


def test_memory_that_ends_between_points_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = ZerothOrder([p], log=None)

    def full(*args: Any) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("zoedge.methods.spaces._parameters.torch.add", full)
        with pytest.raises(DataError, match="Memory ended while the parameters were moved to a point"):
            optimizer.step(lambda: 1.0)
    assert torch.equal(p.detach(), torch.ones(2)) and optimizer.step(lambda: 1.0) == 1.0


def test_sixteen_bits_keep_what_their_grid_would_lose() -> None:
    """Steps of 2**-12 on bfloat16's grid of 2**-7 at 1: rounded each, nothing would ever move."""
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = ZerothOrder([p], lr=2.0**-12, eps=0.5, log=None)
    z = torch.stack([Rademacher().draw(Key(0, i, 0), Leaf("", 0, torch.ones(4), (), 4)) for i in range(256)])
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for _ in range(256):
        optimizer.step(lambda: float((p.float() * weights).sum()))
    # bfloat16 of p + eps z is exact while p is on the grid: g = z[0], and p[0] falls by 2**-12 each step
    assert float(p[0]) == pytest.approx(1 - 256 * 2.0**-12, abs=2.0**-7) and float(p[0]) < 1
    others = 1 - 2.0**-12 * (z[:, :1] * z[:, 1:]).sum(0)
    assert torch.allclose(p[1:].float(), others, atol=2.0**-7)


def test_frozen_strided_scalar_and_tied_parameters() -> None:
    module = nn.Module()
    module.a = nn.Parameter(torch.randn(4, 3).t())  # strided
    module.b = nn.Parameter(torch.tensor(2.0))
    module.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    module.tied = module.a
    assert not module.a.is_contiguous()
    start = state(module)
    with ZerothOrder(module.named_parameters(), lr=1e-2) as optimizer:
        for _ in range(5):
            optimizer.step(
                lambda: float((module.a**2).sum() + module.b**2 + (module.tied * module.frozen[:, None]).sum())
            )
    assert torch.equal(module.frozen, torch.ones(3)) and not torch.equal(module.a, start["a"])
    found = zoedge.replay("run.zlog", base=start).tensors
    assert found.keys() == {"a", "b"} and torch.equal(found["a"], module.a) and torch.equal(found["b"], module.b)


def test_large_vectors_are_drawn_leaf_by_leaf_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for lean in (1 << 26, 10):
        monkeypatch.setattr("zoedge.methods.spaces._parameters.LEAN_ELEMENTS", lean)
        module = mlp()
        with ZerothOrder(module.named_parameters(), queries=2, log=f"{lean}.zlog") as optimizer:
            for _ in range(4):
                optimizer.step(task(module))
            found.append((optimizer.fingerprint, state(module)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


# -- the log: resuming and replaying


def trained(until: int, module: nn.Module, log: str = "run.zlog", **options: Any) -> ZerothOrder:
    optimizer = ZerothOrder(module.named_parameters(), lr=1e-2, hash_every=3, log=log, **options)
    while optimizer.steps < until:
        optimizer.step(task(module))
    return optimizer


def test_resuming_ends_in_the_same_bytes() -> None:
    whole, parts = mlp(), None
    trained(12, whole, "a.zlog", rule="adam").close()
    for until in (5, 5, 12):
        parts = mlp()  # as it was at the start
        trained(until, parts, "b.zlog", rule="adam").close()
    assert parts is not None and same(state(whole), state(parts))
    assert Path("a.zlog").read_bytes() == Path("b.zlog").read_bytes()


CHILD = """
import sys, torch, zoedge
sys.path.insert(0, sys.argv[1])
from helpers.modules import mlp, task, state
module = mlp()
with zoedge.optim.ZerothOrder(module.named_parameters(), lr=1e-2, hash_every=3, log="run.zlog") as optimizer:
    while optimizer.steps < 12:
        optimizer.step(task(module))
        print(optimizer.steps, flush=True)
    optimizer.finish()
"""


def test_a_killed_program_goes_on_and_a_fresh_process_replays_the_same_bits(tmp_path: Path) -> None:
    module = mlp()
    safetensors.torch.save_file(state(module), "start.safetensors")
    trained(12, module, "whole.zlog").finish()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZOEDGE_FAILPOINT": "apply.mid:17:kill"}  # 4 tensors: in step 5
    argv = [sys.executable, "-c", CHILD, str(ROOT / "tests")]
    killed = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split() == ["1", "2", "3", "4"], killed.stderr[-500:]
    with Log.open(Path("run.zlog")) as log:
        assert len(log) == 5  # logged before it was applied
    del env["ZOEDGE_FAILPOINT"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.split() == [str(i) for i in range(6, 13)]
    assert Path("run.zlog").read_bytes() == Path("whole.zlog").read_bytes()
    command = [sys.executable, "-m", "zoedge", "replay", "run.zlog", "--base", "start.safetensors", "-o", "out"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("12 steps at "), done.stderr[-500:]
    assert same(safetensors.torch.load_file("out/parameters.safetensors"), state(module))


def test_the_commands_on_such_a_log(zoedge: Any) -> None:
    module = mlp()
    safetensors.torch.save_file(state(module), "start.safetensors")
    trained(6, module).finish()
    done = zoedge("verify", "run.zlog", "--replay", "--base", "start.safetensors")
    assert done.code == 0 and "replayed 6 steps: 2 state hashes agree" in done.out and "finished" in done.out
    assert zoedge("log", "export", "run.zlog", "--packed", "-o", "run.zpack").code == 0
    done = zoedge("verify", "run.zpack", "--replay", "--base", "start.safetensors")
    assert done.code == 0 and "replayed 6 steps" in done.out
    assert zoedge("log", "show", "run.zlog").code == 0
    done = zoedge("verify", "run.zlog", "--replay")
    assert done.code == 3 and "replay begins with the values that its parameters had before the first step" in done.err
    for command in (["resume", "run.zlog"], ["eval", "run.zlog"], ["pack", "run.zlog", "-o", "x.zoe"]):
        done = zoedge(*command)
        assert done.code == 2 and "is the log of a zoedge.optim.ZerothOrder: no recipe made it" in done.err
    Path("start.safetensors").write_bytes(b"no")
    done = zoedge("verify", "run.zlog", "--replay", "--base", "start.safetensors")
    assert done.code == 3 and "start.safetensors: not a readable .safetensors file" in done.err
    assert zoedge("replay", "run.zlog", "--base", "start.safetensors").code == 3


def test_replay_names_what_differs() -> None:
    module = mlp()
    start = state(module)
    trained(6, module).close()
    for base, error, said in (
        (None, DataError, "replay begins with the values"),
        ({k: v for k, v in start.items() if k != "2.bias"}, IdentityError, "lack '2.bias'"),
        ({**start, "0.bias": torch.zeros(7)}, IdentityError, r"'0.bias' was float32 \[8\], not float32 \[7\]"),
        ({**start, "0.bias": start["0.bias"].half()}, IdentityError, "not float16"),
        ({**start, "0.bias": start["0.bias"] + 1}, IdentityError, "initial values are not the log's"),
        ({"0.weight": 3}, UsageError, "tensors by name are wanted"),
    ):
        with pytest.raises(error, match=said):
            zoedge.replay("run.zlog", base=base)
    found = zoedge.replay("run.zlog", at=4, base=start)
    assert found.steps == 4 and not same(found.tensors, state(module)) and not same(found.tensors, start)
    assert same(zoedge.replay("run.zlog", base=mlp()).tensors, state(module)), "a module"
    assert same(zoedge.replay("run.zlog", base=list(start.values())).tensors, state(module)), "in the log's order"


def test_a_forged_header_is_refused() -> None:
    from dataclasses import replace

    from zoedge.core.canonical import encode_canonical

    trained(1, mlp()).close()
    header = Log.open(Path("run.zlog")).header
    for about in (
        {"optimizer": {}},
        {"optimizer": {**header.about["optimizer"], "noise": {"name": "../../x"}}, "space": header.about["space"]},
        {"optimizer": header.about["optimizer"], "space": {"shapes": [[1]]}},
        {"optimizer": header.about["optimizer"], "space": 3},
    ):
        Log.create(Path("forged.zlog"), replace(header, block=encode_canonical(about))).close()
        with pytest.raises(DamagedError, match="what its header says of the optimiser cannot be read"):
            zoedge.replay("forged.zlog", base=mlp())
        Path("forged.zlog").unlink()


def test_a_log_of_something_else_is_refused(finished: Path) -> None:
    trained(6, mlp()).close()
    other = mlp(seed=5)
    for make, said in (
        (lambda: trained(9, other), "their initial values"),
        (lambda: trained(9, mlp(), noise="normal"), "noise.name rademacher -> normal"),
        (lambda: trained(9, mlp(), eps=1e-2), "estimator.eps 0.003 -> 0.01"),
        (lambda: trained(9, mlp(), seed=1), "seed 0 -> 1"),
        (lambda: trained(9, mlp(dtype=torch.bfloat16)), "bfloat16"),
        (lambda: trained(9, nn.Sequential(nn.Linear(3, 8))), "the trained tensors"),
    ):
        with pytest.raises(IdentityError, match="Cannot go on with") as e:
            make()
        assert said in str(e.value)
    with pytest.raises(IdentityError) as e:
        ZerothOrder(mlp().named_parameters(), lr=5e-2, hash_every=4)
    assert "hash_every 3 -> 4" in str(e.value) and "rule.lr" not in str(e.value)
    with pytest.raises(IdentityError, match="is the log of a recipe's run"):
        ZerothOrder(mlp().named_parameters(), log=finished / "runs" / "tiny" / "run.zlog")
    optimizer = ZerothOrder(mlp().named_parameters(), lr=5e-2, hash_every=3)  # an lr is of a record, not of the run
    with pytest.raises(LockedError):
        trained(9, mlp())
    assert optimizer.steps == 6
    optimizer.close()


def test_a_log_whose_states_are_off_is_refused() -> None:
    trained(6, mlp()).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoedge.core.engine.digest", lambda space: bytes(32))  # the header keeps its own
        with pytest.raises(ReplayError, match="after step 3"):
            trained(9, mlp())
    trained(9, mlp()).close()  # the lock was freed


def test_losses_that_are_not_finite_are_skipped_and_then_end_it() -> None:
    module = mlp()
    start = state(module)
    optimizer = ZerothOrder(module.named_parameters())
    for _ in range(8):
        optimizer.step(lambda: float("inf"))
    with pytest.raises(DivergedError, match=r"not finite at steps 0..7: no step moved anything. Lower lr or eps"):
        optimizer.step(lambda: float("inf"))
    assert same(state(module), start) and all(r.flags & SKIPPED for r in optimizer._journal)
    optimizer.close()
    with ZerothOrder(mlp().named_parameters()) as again:  # it is replayed, and ends as it did
        assert again.steps == 8
        with pytest.raises(DivergedError):
            again.step(lambda: 1.0)


# -- as torch's optimisers are used


def test_schedulers_set_the_lr_of_each_record() -> None:
    module = mlp()
    optimizer = ZerothOrder(module.named_parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / 4))
    for _ in range(6):
        optimizer.step(task(module))
        scheduler.step()
    optimizer.close()
    with Log.open(Path("run.zlog")) as log:
        assert [r.lr for r in log] == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
    again = mlp()
    resumed = ZerothOrder(again.named_parameters(), lr=0.5)
    last = torch.optim.lr_scheduler.LambdaLR(resumed, lambda i: 1 / (1 + i), last_epoch=resumed.steps - 1)
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.5 / 7) and last.last_epoch == 6
    assert same(state(again), state(module))
    resumed.close()


def test_groups_named_and_not() -> None:
    module = mlp()
    groups: list[dict[str, Any]] = [{"params": list(module[0].parameters())}, {"params": list(module[2].parameters())}]
    with ZerothOrder(groups, lr=1e-2) as optimizer:
        optimizer.step(task(module))
        optimizer.param_groups[1]["lr"] = 1.0
        with pytest.raises(UsageError, match=r"One lr a step is logged, and the groups have 0.01, 1.0"):
            optimizer.step(task(module))
        with pytest.raises(UsageError, match="Parameters cannot be added"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    names = [name for name, *_ in Log.open(Path("run.zlog")).header.about["space"]["shapes"]]
    assert names == ["0.0", "0.1", "1.0", "1.1"]
    named = [{"params": list(module[i].named_parameters(prefix=f"layer{i}"))} for i in (0, 2)]
    with ZerothOrder(named, log="named.zlog"):
        pass
    names = [name for name, *_ in Log.open(Path("named.zlog")).header.about["space"]["shapes"]]
    assert names == ["layer0.weight", "layer0.bias", "layer2.weight", "layer2.bias"]


def test_state_dict_says_where_the_state_is() -> None:
    module = mlp()
    optimizer = trained(4, module)
    found = optimizer.state_dict()
    assert found == {"log": "run.zlog", "steps": 4, "fingerprint": optimizer.fingerprint} and json.dumps(found)
    optimizer.load_state_dict(found)
    optimizer.step(task(module))
    with pytest.raises(IdentityError, match=r"run.zlog: it is at step 5 \(.*\), and the state at step 4"):
        optimizer.load_state_dict(found)
    optimizer.close()
    with pytest.raises(UsageError, match="finished, or closed"):
        optimizer.step(task(module))
    with pytest.raises(UsageError, match="without a log nothing of the steps before is kept"):
        ZerothOrder(module.parameters(), log=None).load_state_dict(found)


def test_a_finished_log_takes_no_step() -> None:
    trained(4, mlp()).finish()
    with ZerothOrder(mlp().named_parameters(), lr=1e-2, hash_every=3) as optimizer:
        assert optimizer.steps == 4
        with pytest.raises(ValueError, match="END"):
            optimizer.step(lambda: 1.0)


def flip_a_bit(module: nn.Module) -> None:
    """Change the lowest bit of one element of the first weight, which moves no version count of torch."""
    weight = module[0].weight.detach().numpy()  # type: ignore[index]
    weight.view("<u4")[1, 1] ^= 1


def changes() -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    yield "loaded", lambda m: m.load_state_dict(mlp(seed=9).state_dict())
    yield "clamped", lambda m: torch.no_grad()(lambda: m[0].weight.clamp_(-0.1, 0.1))()
    yield "moved", lambda m: m.half()
    yield "through data", lambda m: m[0].weight.data.clamp_(-0.1, 0.1)
    yield "one bit through numpy", flip_a_bit
    yield "swapped", lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0))


@pytest.mark.parametrize("what,change", changes())
def test_what_another_changes_is_noticed(what: str, change: Callable[[nn.Module], Any]) -> None:
    module = mlp()
    optimizer = ZerothOrder(module.named_parameters(), log=None)
    optimizer.step(lambda: 1.0)
    change(module)
    with pytest.raises(UsageError, match=r"0\.weight was changed, or moved, by something else"):
        optimizer.step(lambda: 1.0)


HIDDEN = [case for case in changes() if case[0] in ("through data", "one bit through numpy", "swapped")]


@pytest.mark.parametrize("what,change", HIDDEN)
@pytest.mark.parametrize("end", ["step", "finish", "close", "with", "closure"])
def test_what_torch_does_not_count_is_noticed_everywhere(
    what: str, change: Callable[[nn.Module], Any], end: str
) -> None:
    """And the log holds the steps before the change alone."""
    module = mlp()
    optimizer = trained(4, module)
    known = module[0].weight.detach().clone()
    with pytest.raises(UsageError, match=r"0\.weight was changed, or moved, by something else"):
        if end == "closure":
            alias = nn.Sequential(nn.Linear(1, 1))
            alias[0].weight.data = module[0].weight.data
            optimizer.step(lambda: (change(alias), 1.0)[1])
        elif end == "with":
            with optimizer:
                change(module)
        else:
            change(module)
            optimizer.step(lambda: 1.0) if end == "step" else vars(type(optimizer))[end](optimizer)
    optimizer._log.close()  # type: ignore[union-attr]
    state = zoedge.replay("run.zlog", base=mlp().state_dict())
    assert state.steps == 4 and torch.equal(state.tensors["0.weight"], known)


def test_an_error_of_the_block_is_not_hidden_by_a_change() -> None:
    module = mlp()
    with pytest.raises(KeyError, match="mine"), trained(4, module):
        module[0].weight.data.zero_()
        raise KeyError("mine")


def test_a_16_bit_parameter_is_watched_too() -> None:
    """Its master is ours: what is written to it would be lost at the next step."""
    module = mlp().bfloat16()
    optimizer = ZerothOrder(module.named_parameters(), lr=1e-2, log=None)
    optimizer.step(lambda: 1.0)
    module[0].weight.data.zero_()
    with pytest.raises(UsageError, match=r"0\.weight was changed"):
        optimizer.step(lambda: 1.0)


def shared_tensors() -> Iterator[tuple[str, list[torch.Tensor], str]]:
    flat = torch.arange(24.0)
    yield "a part", [flat, flat[2:6]], "0.0 and 0.1"
    yield "the same", [flat, flat], "0.0 and 0.1"
    yield "an overlap", [flat[:10], flat[9:]], "0.0 and 0.1"
    yield "a transpose", [flat.view(4, 6), flat.view(4, 6).T], "0.0 and 0.1"
    yield "a column", [flat.view(4, 6)[:, 1], torch.ones(3), flat[7:8]], "0.0 and 0.2"
    yield "another type", [flat[:4], flat.view(torch.bfloat16)[6:12]], "0.0 and 0.1"
    yield "expanded", [torch.ones(1).expand(4)], "0.0 and 0.0"
    yield "unfolded", [flat.unfold(0, 4, 2)], "0.0 and 0.0"
    yield "a view of a frozen one is nothing", [flat[:4], flat[4:8]], ""
    yield "columns of one matrix", [flat.view(4, 6)[:, 1], flat.view(4, 6)[:, 2]], ""
    yield "halves", [flat[::2], flat[1::2]], ""
    yield "a transpose alone", [flat.view(4, 6).T], ""


@pytest.mark.parametrize("what,tensors,names", shared_tensors())
def test_parameters_that_share_memory_are_refused(what: str, tensors: list[torch.Tensor], names: str) -> None:
    parameters = [nn.Parameter(t) for t in tensors]
    if names:
        with pytest.raises(UsageError, match=rf"^{names} share memory: a step would move it twice"):
            ZerothOrder(parameters, lr=1e-2)
        assert not Path("run.zlog").exists()
        return
    before = {f"0.{i}": p.data.clone() for i, p in enumerate(parameters)}
    with ZerothOrder(parameters, lr=1e-2) as optimizer:
        for _ in range(3):
            optimizer.step(lambda: float(sum(p.sum() for p in parameters)))
        optimizer.finish()
    state = zoedge.replay("run.zlog", base=before)
    assert all(torch.equal(state.tensors[f"0.{i}"], p.data) for i, p in enumerate(parameters))


def test_an_interrupted_step_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    module = mlp()
    optimizer = ZerothOrder(module.named_parameters(), log=None)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "advance", lambda run, record: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(task(module))
    with pytest.raises(UsageError, match="The last step was interrupted"):
        optimizer.step(task(module))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"noise": "rademachr"}, "noise: no 'rademachr'. There is: "),
    ({"noise": "rademachr"}, "did you mean 'rademacher'?"),
    ({"noise": torch.nn.ReLU()}, r"noise: ReLU\(\) is not a word, a table with a name, or one of zoedge's noises"),
    ({"noise": {"rank": 2}}, "has no name"),
    ({"noise": {"name": "low_rank", "rnk": 2}}, "noise.rnk: unknown key - did you mean 'rank'?"),
    ({"eps": -1.0}, "estimator.eps: -1.0 is not"),
    ({"lr": 0.0}, "rule.lr: 0.0 is not"),
    ({"lr": "fast"}, "rule.lr: 'fast' is not a number"),
    ({"estimator": "stp", "eps": 1e-3}, "estimator: stp has no eps; it has"),
    ({"queries": 0}, "estimator.queries: 0 is not"),
    ({"queries": 100}, "100 directions a step do not fit a log's slot: 82 at most"),
    ({"estimator": "stp", "rule": "adam"}, "estimator: stp goes only with rule: sgd, not adam"),
    ({"rule": "adamu"}, r"rule: adamu depends on the length of the run. Say steps=N"),
    ({"rule": {"name": "sgd", "schedule": "linear"}}, "its schedule is linear, over how many steps"),
    ({"seed": -1}, "seed: -1 is not a whole number in 0..18446744073709551615"),
    ({"steps": 0}, "steps: 0 is not a whole number"),
    ({"sync_every": 1.5}, "sync_every: 1.5 is not a whole number in 1..4096"),
    ({"hash_every": 0}, "hash_every: 0 is not"),
    ({"params": []}, "params: optimizer got an empty parameter list"),
    ({"params": [3]}, "params: "),
    ({"params": [nn.Parameter(torch.ones(2), requires_grad=False)]}, "No parameter requires a gradient"),
    ({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]}, "0.0 is float64: float32, bfloat16, float16 can"),
]


@pytest.mark.parametrize("options,said", MISTAKES)
def test_mistakes_get_sentences(options: dict[str, Any], said: str) -> None:
    params = options.pop("params", None)
    with pytest.raises(UsageError, match=said):
        ZerothOrder(mlp().parameters() if params is None else params, **options)
    assert not Path("run.zlog").exists()


@pytest.mark.parametrize(
    "closure,said",
    [
        (lambda: None, "The closure returned NoneType: it must return one number"),
        (lambda: torch.ones(2), r"a tensor of shape \[2\]"),
        (lambda: "1.0", "returned str"),
        (None, "give it a closure that returns the loss"),
    ],
)
def test_what_is_no_loss_gets_a_sentence(closure: Any, said: str) -> None:
    module = mlp()
    start = state(module)
    optimizer = ZerothOrder(module.parameters(), log=None)
    with pytest.raises(UsageError, match=said):
        optimizer.step(closure)
    assert same(state(module), start) and optimizer.steps == 0


def test_numbers_of_any_kind_are_losses() -> None:
    import numpy as np

    optimizer = ZerothOrder(mlp().parameters(), log=None)
    for value in (2, 2.0, torch.tensor(2.0), torch.tensor([[2.0]]), np.float32(2), torch.tensor(2, dtype=torch.int64)):
        assert optimizer.step(lambda: value) == 2.0


def test_no_gradient_is_recorded() -> None:
    module = mlp()
    loss = task(module)

    def closure() -> Tensor:
        found = loss()
        assert not found.requires_grad
        return found

    ZerothOrder(module.parameters(), log=None).step(closure)


def test_the_header_says_what_it_is() -> None:
    trained(3, mlp()).close()
    header = Log.open(Path("run.zlog")).header
    assert (
        identity.is_optimizer_log(header) and header.elements == 41 and header.about["optimizer"]["rule"]["lr"] == 1e-2
    )
    with pytest.raises(UsageError, match="no recipe made it"):
        identity.recipe_from_header(header, "run.zlog")
