"""T13, `make soak`: one run of the real command line over a tiny model, for minutes, while everything happens to it.

It is killed every 30 to 120 s: SIGKILL mostly, at any moment; SIGTERM and SIGINT while it trains; and its disk fills (a
tmpfs of its own where this machine lets one mount it, else a limit of the file size). Rivals that resume it meanwhile
must exit 6. Then it may finish: its log, export and recipe must be those of the same run that nothing happened to, byte
for byte; and while it trained, the number of its open files must not change, and its memory may grow only by the records
of the log, which it keeps.

    python tests/helpers/soak.py --minutes 30 --seed 1        # exit 1 unless all of it held
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mode

import psutil

ROOT = Path(__file__).resolve().parents[2]
DISK = 16 << 20  # bytes of the run's tmpfs
WARM = 0.25  # of a lifetime's samples, and 10 at least, are before it is warm
RECORD = 1024  # bytes a step that memory may grow by: a Record and its floats are 450 to 600
ENOUGH = 200  # warm samples: with less, what loading gives back decides the slope
FILLED = 0.5  # of the minutes go to new steps: each child has to load and to replay first
WORDS = {
    "kill": "SIGKILL", "term": "SIGTERM", "int": "SIGINT", "full": "full disks", "resumed on a full disk": "resumed on them",
    "rivals refused": "rivals refused",
}  # fmt: skip
RECIPE = """version: 1
name: soak
model: {{source: model, quantization: none}}
data: {{train: rows.jsonl, valid: {{split: 10}}, max_length: 64}}
task: {{name: classify, prompt: "{{text}} It was", options: {{negative: " terrible", positive: " great"}}}}
space: {{name: lora, rank: 2, targets: [q_proj], layers: last 1}}
rule: {{name: momentum, lr: 1e-3}}
train: {{steps: {steps}, batch: 4}}
eval: {{every: {every}, calibrate: 4}}
log: {{hash_every: 100}}
output: {{dir: run}}
"""


def prepare(folder: Path) -> None:
    """model/ and rows.jsonl."""
    from helpers.models import byte_level, save
    from helpers.recipes import write_reviews
    from transformers import LlamaConfig

    tokenizer = byte_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    save(folder / "model", config, tokenizer)
    write_reviews(folder / "rows.jsonl")


def place(root: Path, name: str, steps: int) -> Path:
    """A folder with the recipe, in which the run lies at run/soak: the same relative paths everywhere, so the same log."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(steps=steps, every=max(1, steps // 10)))
    for what in ("model", "rows.jsonl"):
        (folder / what).symlink_to(root / what)
    return folder


@dataclass
class Child:
    """One process of the command line, its output in a file."""

    folder: Path
    number: int
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        self.said = self.folder / f"said-{self.number}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ZOEDGE_OFFLINE": "1"}
        argv = [sys.executable, "-m", "zoedge", *self.words, "--plain"]
        with self.said.open("w") as out:
            self.process = subprocess.Popen(argv, cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT)

    def trains(self) -> bool:
        """It holds the log: it has said what rows it has."""
        return "\nrows: " in self.said.read_text()

    def end(self, timeout: float) -> int:
        code = self.process.wait(timeout)
        if "Traceback" in self.said.read_text() and code >= 0:
            raise AssertionError(f"a traceback: {self.said.read_text()[-2000:]}")
        return code


def begin(folder: Path, number: int) -> Child:
    exists = (folder / "run" / "soak" / "run.zlog").exists()
    return Child(folder, number, ("resume", "run/soak") if exists else ("finetune", "recipe.yaml"))


@dataclass
class Samples:
    """Of each child's lifetime, while it takes new steps: (hours, steps, MiB, open files)."""

    lifetimes: list[list[tuple[float, int, float, int]]] = field(default_factory=list)

    def warm(self) -> list[list[tuple[float, int, float, int]]]:
        return [life[max(10, int(len(life) * WARM)) :] for life in self.lifetimes if len(life) >= 20]

    def slope(self, column: int) -> float:
        """MiB an hour (column 0) or a step (1), by least squares, each lifetime with a level of its own."""
        above = below = 0.0
        for life in self.warm():
            x, y = [s[column] for s in life], [s[2] for s in life]
            mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
            above += math.fsum((a - mx) * (b - my) for a, b in zip(x, y))
            below += math.fsum((a - mx) ** 2 for a in x)
        return above / below if below else 0.0

    def files(self) -> list[int]:
        """The usual number of open files of each lifetime."""
        return [mode(s[3] for s in life) for life in self.warm()]


@dataclass
class Soak:
    folder: Path
    chance: random.Random
    least: float
    most: float
    mounted: bool
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    number: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "run" / "soak" / "run.zlog"

    def size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def expect(self, what: str, found: object, *wanted: object) -> None:
        if found not in wanted:
            self.faults.append(f"{what}: {found}, not {' or '.join(map(str, wanted))}")
            print(f"FAULT {self.faults[-1]}", flush=True)

    def child(self, *words: str) -> Child:
        self.number += 1
        return Child(self.folder, self.number, words) if words else begin(self.folder, self.number)

    def watch(self, child: Child, seconds: float) -> bool:
        """Let it go on for so long, with a look at it every half a second. Whether it still runs."""
        began, known, last = time.monotonic(), None, None  # how far the log is; a look at it that is not yet kept
        life = self.samples.lifetimes[-1]
        process = psutil.Process(child.process.pid)
        while child.process.poll() is None and time.monotonic() - began < seconds:
            time.sleep(0.5)
            if child.trains():
                known = self.size() if known is None else known
                if (size := self.size()) > known:  # since the last look, so that it was still training then
                    life += [last] if last else []
                    known, last = size, None
                    with suppress(psutil.Error):
                        facts = process.memory_info().rss / 2**20, process.num_fds()
                        last = (time.monotonic() / 3600, size // 64, *facts)
        return child.process.poll() is None

    def life(self) -> bool:
        """One child, from its start to its end; whether the run is finished."""
        before = self.size() // 64
        child = self.child()
        self.samples.lifetimes.append([])
        if not self.watch(child, self.chance.uniform(self.least, self.most)):
            code = child.end(10)
            self.expect("a child that was left alone", code, 0)
            return code == 0
        what = self.chance.choices(("kill", "term", "int", "full"), (6, 2, 2, 2))[0]
        if what != "kill" and not self.ready(child):
            what = "kill" if child.process.poll() is None else "none"
        if what != "none" and child.trains() and self.chance.random() < 0.5:
            self.rival(child)
        getattr(self, what)(child)
        self.counts[what] += 1
        if self.size() // 64 < before:
            self.faults.append("the log became shorter")
        return child.process.returncode == 0

    def ready(self, child: Child) -> bool:
        while child.process.poll() is None and not child.trains():
            time.sleep(0.1)
        return child.process.poll() is None

    def rival(self, child: Child) -> None:
        code = self.child("resume", "run/soak").end(300)
        if child.process.poll() is None:  # else it may have got the run
            self.expect("a rival", code, 6)
            self.counts["rivals refused"] += code == 6

    def none(self, child: Child) -> None:
        self.expect("a child that was left alone", child.end(10), 0)

    def kill(self, child: Child) -> None:
        child.process.kill()
        self.expect("killed", child.end(60), -signal.SIGKILL, 0)

    def term(self, child: Child) -> None:
        child.process.terminate()
        self.expect("SIGTERM", child.end(120), 128 + signal.SIGTERM, 0)

    def int(self, child: Child) -> None:
        child.process.send_signal(signal.SIGINT)
        self.expect("SIGINT", child.end(120), 128 + signal.SIGINT, 0)

    def full(self, child: Child) -> None:
        """No room: it stops with exit code 74, and so does who would go on; then there is room again."""
        ballast = self.folder / "run" / "ballast"
        if self.mounted:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        else:
            limit = self.size() + self.chance.randrange(1, 4096)  # in the middle of a slot, and it cannot be lifted
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        try:
            self.expect("a full disk", child.end(300), 74, 0)
            if self.mounted and child.process.returncode == 74 and self.chance.random() < 0.5:
                self.expect("resumed on a full disk", self.child().end(300), 74)
                self.counts["resumed on a full disk"] += 1
        finally:
            ballast.unlink(missing_ok=True)


def rate(folder: Path) -> float:
    """New steps a second, of a process that has only to train: from slot 100 on."""
    child, log = begin(folder, 0), folder / "run" / "soak" / "run.zlog"
    marks: list[tuple[float, int]] = []
    while child.process.poll() is None:
        time.sleep(0.1)
        if log.exists() and (size := log.stat().st_size) > 64 * 120:
            marks.append((time.monotonic(), size // 64))
    if child.end(1) or len(marks) < 2:
        raise SystemExit(f"the run does not even work: {child.said.read_text()}")
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def contents(run: Path) -> dict[str, bytes]:
    """What must be the same: log, recipe and export; not metrics.jsonl, which has times in it."""
    found = [p for p in run.rglob("*") if p.is_file() and p.name not in ("metrics.jsonl", "run.torn")]
    return {str(p.relative_to(run)): p.read_bytes() for p in found}


def compare(whole: Path, run: Path) -> list[str]:
    a, b = contents(whole), contents(run)
    return [f"{name} differs" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def own_disk(folder: Path) -> None:
    """Start again with a small tmpfs on `folder`, where this machine lets us; else go on without."""
    folder.mkdir(parents=True)
    script = f'mount -t tmpfs -o size={DISK} none "$0" || exit 77; ZOEDGE_SOAK_DISK=1 exec "$@"'
    argv = ["unshare", "-rm", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") and not subprocess.run([*argv, "true"], capture_output=True, check=False).returncode:
        os.execvp("unshare", [*argv, sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="for how long things happen to the run")
    parser.add_argument("--every", type=float, nargs=2, default=(30, 120), help="seconds from one to the next")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("ZOEDGE_SEED", "20261122")))
    parser.add_argument("--steps", type=int, help="of the run; else what fills the minutes on this machine")
    options = parser.parse_args()
    if "ZOEDGE_SOAK" not in os.environ:
        os.environ["ZOEDGE_SOAK"] = tempfile.mkdtemp(prefix="zoedge-soak-")
        own_disk(Path(os.environ["ZOEDGE_SOAK"]) / "run" / "run")
    root, mounted = Path(os.environ["ZOEDGE_SOAK"]), "ZOEDGE_SOAK_DISK" in os.environ
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` and nohup have it ignored, and children would too
    prepare(root)
    steps = options.steps or max(200, int(rate(place(root, "rate", 600)) * 60 * options.minutes * FILLED))
    soak = Soak(place(root, "run", steps), random.Random(options.seed), *options.every, mounted)
    whole = begin(place(root, "whole", steps), 0)  # the same run, beside it: nothing happens to it
    print(f"soak: {steps:,} steps, seed {options.seed}, {'a tmpfs' if mounted else 'no tmpfs'}, {root}", flush=True)
    began = time.monotonic()
    done = False
    while not done and not soak.faults and time.monotonic() - began < 60 * options.minutes:
        done = soak.life()
        passed = (time.monotonic() - began) / 60
        print(f"{passed:5.1f} min  {soak.size() // 64:,} slots  {dict(soak.counts)}", flush=True)
    minutes = (time.monotonic() - began) / 60
    if not done and not soak.faults:
        soak.samples.lifetimes.append([])
        soak.watch(last := soak.child(), math.inf)
        soak.expect("the last child", last.end(10), 0)
    soak.expect("the run that nothing happened to", whole.end(3600 if not soak.faults else 0.1), 0)
    return judge(soak, root / "whole" / "run" / "soak", minutes, steps)


def judge(soak: Soak, whole: Path, minutes: float, steps: int) -> int:
    """Say what was found; 0 if all of it held."""
    faults, samples, counts = [*soak.faults], soak.samples, soak.counts
    if not faults:
        faults += compare(whole, soak.log.parent)
    if faults and soak.log.exists():
        shutil.copy(soak.log, whole.parents[2])  # the tmpfs goes with this process
    (whole.parents[2] / "samples.json").write_text(json.dumps(samples.lifetimes))
    files, growth = samples.files(), samples.slope(1) * 2**20
    if len(set(files)) > 1:
        faults.append(f"open files: {files} in the lifetimes")
    if growth > RECORD and sum(map(len, samples.warm())) >= ENOUGH:
        faults.append(f"memory grows by {growth:,.0f} bytes a step")
    happened = ", ".join(f"{counts[k]} {words}" for k, words in WORDS.items())
    print(
        f"\nT13 soak: {steps:,} steps, {minutes:.1f} minutes, {soak.number} processes: {happened}\n"
        f"open files {' '.join(map(str, sorted(set(files))))}; memory {samples.slope(0):+.2f} MiB/h, {growth:,.0f} bytes a "
        f"step, over {sum(map(len, samples.warm())):,} samples of {len(files)} lifetimes\n"
        + ("".join(f"FAULT {x}\n" for x in faults) or "log, recipe and export are those of the run left alone: ok")
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
