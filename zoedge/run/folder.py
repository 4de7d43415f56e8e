"""This module knows what lies in a run's folder, and which step of a run a user means.

runs/NAME/   run.zlog       the only checkpoint
             recipe.yaml    every setting, defaults included
             metrics.jsonl  for people and plots: training never reads it; the step `best` is chosen by its looks, each of
                            which has a checksum
             run.snapshot   of a run that is not finished: a state to resume from, which may be deleted
             adapter/       the export
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import storage
from ..core.canonical import null_nonfinite
from ..core.storage import open_file
from ..core.types import Record
from ..errors import DamagedError, StorageError, UsageError, make_printable, suggest_nearest
from ..log.log import Log
from ..recipe.recipe import Recipe
from ..scoring.sources.places import remember_place
from .identity import check_states_known, is_optimizer_log, section_from_header

if TYPE_CHECKING:
    from ..log.packed import AnyLog
    from ..recipe.sections import Eval

# names in a run's folder
LOG_FILE = "run.zlog"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
ADAPTER_FOLDER = "adapter"


def open_any_log(run: str) -> AnyLog:
    """Open the log of a run: raw, packed or shared. UsageError: there is none. DamagedError: it is not what was written."""
    from ..log.packed import MAGIC as PACKED  # here: it imports numpy, which `zoedge --help` does not need
    from ..log.packed import PackedLog
    from ..log.shared import MAGIC, SharedLog

    path = find_log(run)
    with os.fdopen(open_file(path), "rb") as file:  # a pipe would make us wait
        try:
            magic = file.read(len(MAGIC))
        except OSError as e:
            raise StorageError(f"{path}: cannot read the log: {e.strerror}.") from e
    log: AnyLog = {PACKED: PackedLog, MAGIC: SharedLog}.get(magic, Log).open(path)
    check_states_known(log)
    return log


# -- folders


def find_log(run: str) -> Path:
    """Return the path of the log that a user means by a run's folder, a log's path, or a run's name under runs/.

    The relative paths in its recipe are from now on looked for where the run began too.
    """
    for path in (Path(run), Path("runs") / run) if run else ():
        # a link or a pipe in a run's folder is a log that cannot be opened, of which `Log.open` tells
        is_run = os.path.lexists(path / LOG_FILE)
        path = path / LOG_FILE if is_run else path
        if is_run or path.is_file():
            for line in read_metrics(path.parent):
                if line.get("event") == "place" and isinstance(line.get("began_in"), str):
                    remember_place((path.parent / line["began_in"]).resolve())
            return path
    known = [path.parent.name for path in sorted(Path("runs").glob(f"*/{LOG_FILE}"))]
    way_out = suggest_nearest(run, known) or (f". Under runs/: {make_printable(', '.join(known))}." if known else ".")
    raise UsageError(f"No run '{make_printable(run)}': no such log, and no folder with a {LOG_FILE}{way_out}")


def run_folder(recipe: Recipe) -> Path:
    """Return the folder that a recipe's run goes to: output.dir, then its name."""
    return Path(recipe.output.dir) / recipe.name


def claim_folder(folder: Path) -> list[str]:
    """Make a run's folder, and prove that it and its log can be written, before anything slow begins.

    Returns:
        What the user should know of them, a sentence each.

    Raises:
        StorageError: the disk refuses. LockedError: another process writes the run. DamagedError: the log is damaged.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(storage.disk.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        storage.disk.unlink(probe)
        storage.disk.sync_directory(folder.parent)
    except OSError as e:
        raise StorageError(f"{folder}: cannot write there: {e.strerror}. Choose another output.dir.") from e
    messages = []
    if kind := storage.network_filesystem(folder):
        messages.append(
            f"{folder} is on a network file system ({kind}), where a lock may hold on one host alone: do not write one run "
            "from two hosts."
        )
    if os.path.lexists(folder / LOG_FILE):
        with Log.resume(folder / LOG_FILE) as log:
            if log.torn:
                messages.append(
                    f"the log ended in an unfinished write: its {log.torn:,} bytes were cut off and kept as "
                    f"{log.path.with_suffix('.torn')}; the run goes on from step {len(log):,}."
                )
    return messages


def append_metric(folder: Path, **fields: Any) -> None:
    """Append a line to metrics.jsonl, in which a number that is not finite is null. No state of the run is in it.

    StorageError: the disk refuses.
    """
    path, line = folder / METRICS_FILE, (json.dumps(null_nonfinite(fields), allow_nan=False) + "\n").encode()
    try:
        fd = storage.disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(fd, "rb") as file:
            # a last line that was cut by a kill or a full disk must not take the new one along
            if file.seek(0, os.SEEK_END) and os.pread(fd, 1, file.tell() - 1) != b"\n":
                line = b"\n" + line
            storage.write_all(fd, line, "")
    except OSError as e:
        raise StorageError(f"{path}: cannot write: {e.strerror}.") from e


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that can be read, as tables; none if there is no such file."""
    lines = []
    if (folder / METRICS_FILE).is_file():
        for line in (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line cut by a kill
            if isinstance(value, dict):
                lines.append(value)
    return lines


# -- which step


def append_look(folder: Path, log: AnyLog, **fields: Any) -> None:
    """Append a look at the validation rows to metrics.jsonl, with a checksum, because such lines choose the delivered step."""
    sums = [line["sum"] for line in read_metrics(folder) if line.get("event") == "valid" and "sum" in line]
    value = sum_look(log, sums[-1] if sums else "", json.loads(json.dumps(null_nonfinite(fields))))
    append_metric(folder, **fields, sum=value)


def append_place(folder: Path) -> None:
    """Append to metrics.jsonl where the run begins: the current folder, as seen from the run's, so that both may move."""
    append_metric(folder, event="place", began_in=os.path.relpath(Path.cwd(), folder))


def append_end(folder: Path, **fields: Any) -> None:
    """Append to metrics.jsonl that the run is finished, with the checksum of its newest look."""
    sums = [line["sum"] for line in read_metrics(folder) if line.get("event") == "valid" and "sum" in line]
    append_metric(folder, event="finished", **fields, **({"looks": sums[-1]} if sums else {}))


def sum_look(log: AnyLog, previous: str, fields: Mapping[str, Any]) -> str:
    """Return the checksum of a look's line: of the run, the checksum of the look before, and the line's other fields."""
    run = (log.header.run_id or log.header.identity()).hex()
    text = json.dumps([run, previous, {key: value for key, value in fields.items() if key != "sum"}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judge_looks(lines: Sequence[dict[str, Any]], log: AnyLog) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the lines of metrics.jsonl, and whether each is as it was written: looks, and the run's end, have checksums.

    A look that was removed shows in the next one, or in the end. Runs of earlier versions have no checksums.
    """
    previous = ""
    for line in lines:
        right = True
        if line.get("event") == "finished":
            right = line.get("looks", previous) == previous
        elif line.get("event") == "valid":
            own = str(line.get("sum", ""))
            right = own == (sum_look(log, previous, line) if own else previous)
            previous = own
        yield line, right


def check_looks(folder: Path, log: AnyLog) -> list[dict[str, Any]]:
    """Return the lines of the looks in metrics.jsonl. DamagedError: one was changed, added or removed by somebody else."""
    looks = []
    for line, right in judge_looks(read_metrics(folder), log):
        if not right:
            step = make_printable(str(line.get("step", line.get("at"))))
            raise DamagedError(
                f"{folder / METRICS_FILE}: the look after step {step}, or the one before it, is not as it was written: its "
                "checksum does not match, and the looks choose the step that is delivered. Name a step yourself (--at last, or "
                "a number), or `zoedge resume` the run, which looks again."
            )
        if line.get("event") == "valid":
            looks.append(line)
    return looks


def mend_looks(folder: Path, log: AnyLog) -> int:
    """Drop from metrics.jsonl what is not as it was written, so that a resumed run looks again; return how many lines."""
    judged = list(judge_looks(read_metrics(folder), log))
    kept, previous = [line for line, right in judged if right], ""
    if len(kept) < len(judged):
        for line in kept:
            if line.get("event") == "valid" and "sum" in line:
                line["sum"] = previous = sum_look(log, previous, line)
            elif line.get("event") == "finished":
                line["looks"] = previous
        storage.write_durably(folder / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return len(judged) - len(kept)


class Look(NamedTuple):
    """What was measured on the validation rows at a step.

    Attributes:
        loss: their loss, a finite number.
        drift: the KL from the base on their unscored tokens, nats a token; None: it was not measured.
    """

    loss: float
    drift: float | None

    def is_within(self, limit: float) -> bool:
        """Return whether the drift was measured, and is at most `limit`."""
        return self.drift is not None and self.drift <= limit


def validation_looks(folder: Path, log: AnyLog, rows: str | None = None) -> dict[int, Look]:
    """Return what each look at the validation rows measured, by step, as metrics.jsonl has it; the latest counts.

    An evaluation notes the slot of its step's record, so that those of steps that a rewind dropped do not count.

    rows: the digest of the rows whose looks count, as they note it; None: the rows of the newest look.
    DamagedError: one of them is not as it was written.
    """
    looks: dict[int, Look] = {}
    lines = check_looks(folder, log)
    for line in lines_of_rows(lines, rows or newest_rows(lines)):
        step, loss = line.get("step"), line.get("loss")
        if not isinstance(step, int) or not isinstance(loss, float):
            continue
        if 0 <= step <= len(log) and math.isfinite(loss) and (step == 0 or is_current(line, log[step - 1])):
            drift = line.get("drift")
            looks[step] = Look(loss, drift if isinstance(drift, float) and math.isfinite(drift) else None)
    return dict(sorted(looks.items()))


def newest_rows(lines: Sequence[dict[str, Any]]) -> str | None:
    """Return the digest of the rows of the newest look at validation rows; None: no look notes any."""
    noted = [str(line["rows_sha256"]) for line in lines if line.get("event") == "valid" and "rows_sha256" in line]
    return noted[-1] if noted else None


def lines_of_rows(lines: Iterable[dict[str, Any]], rows: str | None) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without those that were measured on other rows than these, by their digest.

    A line of an older version notes no digest, and stays.
    """
    return [line for line in lines if rows is None or line.get("rows_sha256") in (None, rows)]


def count_former_looks(folder: Path) -> int:
    """Return how many looks were at other validation rows than the newest one was."""
    lines = [line for line in read_metrics(folder) if line.get("event") == "valid"]
    return len(lines) - len(lines_of_rows(lines, newest_rows(lines)))


def is_current(line: dict[str, Any], record: Record) -> bool:
    """Return whether a line of metrics.jsonl is of this record of its step, not of one that a rewind dropped."""
    return bool(line.get("seq", record.seq) == record.seq)


def validation_losses(folder: Path, log: AnyLog) -> dict[int, float]:
    """Return the validation loss of each step that was looked at, as `validation_looks` reads it."""
    return {step: look.loss for step, look in validation_looks(folder, log).items()}


def choose_best(looks: Mapping[int, Look], limit: float | None) -> int:
    """Return the step of the lowest validation loss among those whose drift is within the limit.

    If none is, return the step of the least drift. limit: eval.drift, nats a token; None: every step is within.
    """
    within = [step for step, look in looks.items() if limit is None or look.is_within(limit)]
    if within:
        return min(within, key=lambda step: looks[step].loss)
    return min(looks, key=lambda step: math.inf if (drift := looks[step].drift) is None else drift)


def explain_choice(looks: Mapping[int, Look], step: int, limit: float | None) -> str:
    """Return why `choose_best` chose a step, as words that follow the step's number."""
    if step == 0 and (limit is None or (step in looks and looks[step].is_within(limit))):
        drifted = "" if limit is None else f" and drifted by at most {limit:g}"
        return f"the start: no step that was looked at{drifted} had a lower validation loss"
    if limit is None:
        return "of the lowest validation loss"
    if step not in looks or looks[step].is_within(limit):
        return f"of the lowest validation loss where the drift is at most {limit:g}"
    return f"of the least drift ({looks[step].drift:.3f}): no look was within eval.drift, which is {limit:g}"


def resolve_step(log: AnyLog, at: str | None, options: Eval | None = None) -> int:
    """Return how many steps of a log a user means.

    Args:
        at: a number; last; best (what `choose_best` chooses by the metrics.jsonl beside the log); None: as `options` say, or
            of a shared log what it delivers, or the last step where no step of the log was looked at (a log without its
            folder, or a run that was stopped early).
        options: the recipe's section eval; None: that of the log's own recipe.

    Raises:
        UsageError: the log has no such step, or no validation loss is noted, or under eval.drift no drift.
        DamagedError: the looks that choose it are not as they were written.
    """
    steps, shared = len(log), log.delivers
    if at is None and shared is not None:
        return int(shared)
    if options is None and not is_optimizer_log(log.header):
        options = section_from_header(log.header, str(log.path), "eval")
    if at is None:
        looked = options is not None and options.select == "best" and any(validation_losses(log.path.parent, log))
        at = "best" if looked else "last"
    if at == "best":
        looks, limit = validation_looks(log.path.parent, log), None if options is None else options.drift
        missing = "" if looks else "validation loss"
        if looks and limit is not None and all(look.drift is None for look in looks.values()):
            missing = "drift"
        if missing:
            raise UsageError(
                f"{log.path}: no {missing} is noted beside it ({METRICS_FILE}), so no step is the best. Train with "
                f"data.valid, or name a step: --at last, or a number up to {steps:,}."
            )
        return choose_best(looks, limit)
    if at == "last":
        return steps
    if at.isdecimal() and len(at) < 12 and int(at) <= steps:
        return int(at)
    raise UsageError(f"--at {make_printable(at)}: not last, best or a number of steps; the log has {steps:,}.")


def describe_delivery(log: AnyLog) -> str:
    """Return which step a log delivers, and why, as a sentence without its full stop; '' if it is an optimiser's log.

    DamagedError: the looks that choose it are not as they were written.
    """
    if is_optimizer_log(log.header):
        return ""
    step, options = resolve_step(log, None), section_from_header(log.header, str(log.path), "eval")
    looks = validation_looks(log.path.parent, log) if log.delivers is None else {}
    if step in looks and options.select == "best":
        return f"delivers step {step:,}, {explain_choice(looks, step, options.drift)} ({len(looks)} looks, checksums right)"
    return f"delivers step {step:,}" + (", the last" if step == len(log) else "")
