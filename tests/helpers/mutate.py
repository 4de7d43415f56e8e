"""Change what a log's bytes and a replay depend on: `make mutate`, or `python tests/helpers/mutate.py log/log --count 50`.

One thing of a module's source is changed: a comparison, an operator, a whole number, and / or, a condition, what is
returned. Then its tests run, in a fork that has imported the libraries already, until one fails. A mutant that none
fails is printed: it is a missing test, or it means the same. Sites are drawn by seed; what a user reads is left alone.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.util
import io
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = {  # that hold a module, the fast ones that notice most first
    "log/log": [
        "log/test_log.py", "torture/test_torture_log.py::test_t3_every_call_that_fails[1000-append]", "log/test_repair.py",
    ],
    "core/storage": ["torture/test_torture_log.py", "torture/test_torture_crash.py", "log/test_log.py"],
    "log/repair": ["log/test_repair.py", "torture/test_torture_log.py::test_t3_every_call_that_fails[1000-repair]"],
    "log/packed": ["log/test_packed.py"],
    "core/engine": [
        "methods/test_methods.py::test_train_resume_and_replay_end_in_the_same_bits[low_rank two_sided momentum]",
        "methods/test_methods.py::test_train_resume_and_replay_end_in_the_same_bits[block fzoo sgd]",
        "methods/test_methods.py::test_the_direction_moved_along_is_the_direction_probed[sphere two_sided adam]",
        "methods/test_methods.py::test_train_resume_and_replay_end_in_the_same_bits[normal dap sgd]",
        "methods/test_methods.py::test_directions_are_kept_for_a_step_or_for_a_leaf_of_it",
        "methods/test_methods.py::test_an_estimators_own_signs_are_these_for_ever",
        "log/test_golden.py::test_a_golden_log_replays_to_its_bits",
        "run/test_play.py::test_a_resumed_run_ends_in_the_uninterrupted_runs_bytes",
        *(f"run/test_faults.py::test_{name}" for name in (
            "a_derivative_far_over_the_median_is_clipped", "before_any_state_is_logged_it_goes_back_to_the_beginning",
            "eight_losses_that_are_not_finite_end_a_run_and_change_nothing[lora]",
            "a_run_that_went_back_often_enough_stops_and_stays_stopped[100.0-far over its best]",
            "a_run_that_went_back_resumes_and_replays_to_the_same_bits[full bf16]",
            "out_of_memory_the_step_is_measured_again_in_smaller_pieces[lora-classify]",
            "where_one_example_does_not_fit_a_sentence_says_the_way_out[cuda]",
            "other_errors_of_a_forward_are_not_taken_for_it",
        )),
        "methods/test_estimators.py",
    ],
}  # fmt: skip
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def changed(node: ast.AST) -> list[ast.AST]:
    """What may stand in a node's place."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]):
            new.ops = [COMPARE[type(op)]()]
        case ast.BinOp(op=op) if type(op) in BINARY:
            new.op = BINARY[type(op)]()
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not()):
            return [new.operand]
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int()):
            new.value += 1
        case ast.If() | ast.While() | ast.IfExp():
            new.test = ast.UnaryOp(ast.Not(), new.test)
        case ast.Return(value=value) if value is not None and not (isinstance(value, ast.Constant) and not value.value):
            new.value = ast.Constant(None)
        case _:
            return []
    return [new]


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(parent, field, place in a list) of every node that can be changed; not what only types or messages are made of."""

    def walk(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.AnnAssign)):
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for at, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST):
                    if changed(child):
                        yield node, name, at if isinstance(value, list) else None
                    yield from walk(child)

    return walk(tree)


def mutant(source: str, number: int) -> tuple[ast.Module, str]:
    """The module with its number-th site changed, and that change in words."""
    tree = ast.parse(source)
    parent, name, at = list(sites(tree))[number]
    held = getattr(parent, name)
    old = held if at is None else held[at]
    new = changed(old)[0]
    if at is None:
        setattr(parent, name, new)
    else:
        held[at] = new
    ast.fix_missing_locations(ast.copy_location(new, old))
    was, now = (ast.unparse(x).splitlines()[0] for x in (old, new))
    return tree, f"line {old.lineno}: {was}  ->  {now}"  # type: ignore[attr-defined]


def install(name: str, tree: ast.Module) -> None:
    """The tree as that module, before anything else imports it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(tree, spec.origin, "exec"), module.__dict__)
    parent, _, word = name.rpartition(".")
    setattr(importlib.import_module(parent), word, module)


def survives(name: str, tree: ast.Module, tests: list[str], seconds: float) -> bool:
    """Do all tests pass? In a fork; one that takes so long, or that fills memory, has been noticed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setsid()
            signal.alarm(int(20 * seconds))
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(io.StringIO()):
                import pytest

                install(name, tree)
                args = "-x -q -p no:cacheprovider -p no:xdist -p no:timeout --no-header -W ignore".split()
                code = int(pytest.main([*args, *(str(ROOT / "tests" / t) for t in tests)]))
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help=", ".join(TESTS))
    parser.add_argument("--count", type=int, default=60, help="mutants of a module")
    parser.add_argument("--seconds", type=float, default=300, help="of CPU, after which a module is done")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("ZOEDGE_SEED", "20261122")))
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("hypothesis", "peft", "transformers.models.llama.modeling_llama", "typer", "zoedge"):
        importlib.import_module(name)  # once, not in every fork
    gc.collect()
    gc.freeze()
    for module in options.modules:
        source = (ROOT / "zoedge" / f"{module}.py").read_text()
        every = len(list(sites(ast.parse(source))))
        some = random.Random(options.seed).sample(range(every), min(options.count, every))
        name, left = f"zoedge.{module.replace('/', '.')}", []

        def used() -> float:
            here, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            return here.ru_utime + here.ru_stime + children.ru_utime + children.ru_stime

        began = used()
        if not survives(name, ast.parse(source), TESTS[module], options.seconds):
            print(f"{module}: its tests fail without any change")
            return 1
        whole, done = used() - began, 0
        for number in some:
            tree, what = mutant(source, number)
            if survives(name, tree, TESTS[module], 3 * whole + 10):
                left.append(what)
                print(f"  {module} {what}", flush=True)
            done += 1
            if used() - began > options.seconds:
                break
        print(
            f"T12 {module}: {done} mutants of {every}, {done - len(left)} killed, {len(left)} alive, "
            f"{used() - began:.0f} s of CPU ({whole:.0f} unchanged), seed {options.seed}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
