"""Several workers, one run: the same log as one alone, only losses on the wire, and a lost worker loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.paths import HELPERS
from helpers.runs import replays
from helpers.wire import Wire

from zoedge.log.log import Log
from zoedge.run import folder as run_folder
from zoedge.run.workers import split_work

ZOEDGE, BOWLS = (sys.executable, "-m", "zoedge"), (sys.executable, str(HELPERS / "worker.py"))
QUIET = {"OMP_NUM_THREADS": "1"}


class Ended(NamedTuple):
    code: int
    out: list[str]
    err: str


def launch(
    count: int, command: Sequence[Any], address: str = "127.0.0.1", before: Any = None, more: Any = None
) -> list[Any]:
    """The workers, started as a launcher does. before, more: what a worker's command begins and ends with, by its rank."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(count):
        place = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANK": str(rank)}
        env = os.environ | QUIET | place | {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
        mine = [*(before(rank) if before else ()), *map(str, command), *(more(rank) if more else ())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(mine, env=env, **pipes))
    return started


def ended(started: list[Any]) -> list[Ended]:
    found = [(process, *process.communicate(timeout=200)) for process in started]
    return [Ended(process.returncode, out.splitlines(), err) for process, out, err in found]


def alone(folder: Path, *args: Any) -> bytes:
    subprocess.run([*BOWLS, str(folder), *map(str, args), "alone=1"], check=True, capture_output=True)
    return (folder / "run-0.zlog").read_bytes()


@pytest.mark.parametrize("points, workers, shape", [
    (2, 1, (1, 1)), (2, 2, (2, 1)), (2, 4, (2, 2)), (2, 3, (1, 3)), (3, 4, (2, 2)), (16, 4, (4, 1)), (1, 5, (1, 5)),
])  # fmt: skip
def test_points_are_shared_before_rows(points: int, workers: int, shape: tuple[int, int]) -> None:
    assert split_work(points, workers) == shape


@pytest.mark.parametrize("count, queries", [(3, 1), (4, 1)])
def test_workers_write_the_log_of_one_alone(tmp_path: Path, count: int, queries: int) -> None:
    """Rows shared, by three who do not divide them; points and rows shared: every worker's log, byte for byte."""
    one = alone(tmp_path, 12, queries)
    (many := tmp_path / "many").mkdir()
    found = ended(launch(count, [*BOWLS, many, 12, queries]))
    assert [x.code for x in found] == [0] * count, found
    assert [(many / f"run-{i}.zlog").read_bytes() == one for i in range(count)] == [True] * count
    sent = [json.loads(x.out[-1])["sent"] for x in found]
    assert max(sent) / 12 <= 1000 / count, "bytes a step, of all workers together"


def test_a_state_of_its_own_is_found(tmp_path: Path) -> None:
    found = ended(launch(2, [*BOWLS, tmp_path, 12, 1, "astray=3"]))
    assert [x.code for x in found] == [8, 8]
    assert all("another state than worker" in x.err for x in found)
    with Log.open(tmp_path / "run-0.zlog") as log:
        assert len(log) == 5, "at the first hash"


def test_a_killed_worker_ends_the_step_and_any_number_goes_on(tmp_path: Path) -> None:
    (many := tmp_path / "many").mkdir()
    started = launch(2, [*BOWLS, many, 40, 1, "pause=0.1"])
    assert list(itertools.islice(started[1].stdout, 6))[-1] == "6\n"
    started[1].kill()
    first, _ = ended(started)
    assert first.code == 74 and "Another worker is gone" in first.err and "zoedge resume" in first.err
    with Log.open(many / "run-0.zlog") as log:
        assert 5 <= len(log) < 40 and not log.torn
    for i in (1, 2, 3):
        shutil.copyfile(many / "run-0.zlog", many / f"run-{i}.zlog")
    more = ended(launch(4, [*BOWLS, many, 40, 1]))
    assert [x.code for x in more] == [0] * 4
    assert (many / "run-3.zlog").read_bytes() == alone(tmp_path, 40, 1)


# -- hosts of their own


@pytest.fixture
def wire() -> Iterator[Wire]:
    if not Wire.possible():
        pytest.skip("network namespaces need root, Linux and ip")
    with Wire() as made:
        yield made


def apart(wire: Wire, command: Sequence[Any]) -> list[Any]:
    return launch(2, [*BOWLS, *command], wire.addresses[0], wire.inside)


def test_hosts_far_apart_write_the_log_of_one_alone(tmp_path: Path, wire: Wire) -> None:
    """50 ms each way and 10 Mbit/s, then dead for two seconds: packets are sent again, and nobody notices."""
    wire.delay, wire.rate = 0.05, 10e6 / 8
    (many := tmp_path / "many").mkdir()
    started = apart(wire, [many, 30, 8])
    assert list(itertools.islice(started[1].stdout, 10))[-1] == "10\n"
    wire.up, before = False, wire.bytes
    time.sleep(2)
    wire.up = True
    found = ended(started)
    assert [x.code for x in found] == [0, 0], found
    assert (many / "run-1.zlog").read_bytes() == (many / "run-0.zlog").read_bytes() == alone(tmp_path, 30, 8)
    assert 0 < (wire.bytes - before) / 2 / 20 <= 1000, "bytes a step that a worker sends, with what TCP/IP adds"


def test_a_cut_link_ends_the_step_and_both_go_on_from_the_log(tmp_path: Path, wire: Wire) -> None:
    (many := tmp_path / "many").mkdir()
    started = apart(wire, [many, 60, 1, "timeout=5", "pause=0.1"])
    assert list(itertools.islice(started[1].stdout, 8))[-1] == "8\n"
    wire.up = False
    found = ended(started)
    assert [x.code for x in found] == [74, 74] and all("did not answer in time" in x.err for x in found)
    whole = alone(tmp_path, 60, 1)
    for i in range(2):
        said = (many / f"run-{i}.zlog").read_bytes()
        assert len(said) > 8 * 64 and whole.startswith(said), "nothing that one alone would not have logged"
    shutil.copyfile(many / "run-0.zlog", many / "run-1.zlog")
    wire.up = True
    assert [x.code for x in ended(apart(wire, [many, 60, 1]))] == [0, 0]
    assert (many / "run-1.zlog").read_bytes() == whole


# -- through the command line


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("run.zlog", "adapter/adapter_model.safetensors")]


def begun(process: Any, step: int) -> None:
    """Wait for a step of a run that tells them as JSON."""
    for line in process.stdout:
        if json.loads(line).get("step") == step:
            return
    raise AssertionError(process.stderr.read())


def test_the_command_line(recipe_file: Path, tmp_path: Path, zoedge: Callable[..., Any]) -> None:
    """A run of two workers, stopped by a signal to one of them, and finished by two; it is one that replays."""
    folder = tmp_path / "many"
    started = launch(2, [*ZOEDGE, "finetune", recipe_file, "train.steps=300", "--run-dir", folder, "--json"])
    begun(started[0], 20)
    started[0].send_signal(signal.SIGTERM)
    first, second = ended(started)
    assert (first.code, second.code) == (143, 143), "both stop after the same step"
    assert "nothing is lost" in first.err and "Stopped with worker 0" in second.err

    found = ended(launch(2, [*ZOEDGE, "resume", folder, "--quiet"]))
    assert [x.code for x in found] == [0, 0], found
    assert found[1].out == [], "worker 0 speaks"
    assert replays(folder)
    assert zoedge("verify", folder, "--replay", "--adapter", folder / "adapter").code == 0


@pytest.mark.slow
def test_one_is_killed_three_go_on_and_two_find_it_finished(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    recipe = [*ZOEDGE, "finetune", recipe_file, "train.steps=300", "--run-dir", folder]
    started = launch(2, [*recipe, "--json"])
    begun(started[0], 20)
    started[1].kill()
    first, _ = ended(started)
    assert first.code == 74 and "Another worker is gone" in first.err
    assert [x.code for x in ended(launch(3, [*ZOEDGE, "resume", folder, "--quiet"]))] == [0, 0, 0]
    assert replays(folder)
    assert [x.code for x in ended(launch(2, [*recipe, "--quiet"]))] == [0, 0], "finished already"


def test_workers_of_other_data_are_refused(recipe_file: Path, tmp_path: Path, reviews: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(reviews.read_text().replace("story", "plot"))
    command = [*ZOEDGE, "finetune", recipe_file, "train.timeout=60", "--run-dir", tmp_path / "many", "--quiet"]
    first, second = ended(launch(2, [*command], more=lambda rank: [f"data.train={other}"] * rank))
    assert first.code == 74 and "Another worker is gone" in first.err
    assert second.code == 4 and "data.train content" in second.err


@pytest.mark.slow
@pytest.mark.real
def test_two_workers_write_the_embedded_models_log(tmp_path: Path) -> None:
    """A share of the points leaves every bit of the real model's losses: the log is that of one worker."""
    recipe = [
        *ZOEDGE,
        "finetune",
        "quickstart",
        "train.steps=12",
        "data.limit=60",
        "data.valid.split=8",
        "data.test=null",
    ]
    for count, name in ((1, "one"), (2, "two")):
        found = ended(launch(count, [*recipe, "output.export=[]", "--run-dir", tmp_path / name, "--quiet"]))
        assert [x.code for x in found] == [0] * count, found
    assert (tmp_path / "two" / run_folder.LOG_FILE).read_bytes() == (
        tmp_path / "one" / run_folder.LOG_FILE
    ).read_bytes()
