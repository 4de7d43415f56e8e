"""The report: what its numbers are, that nothing in it can be made to run, and how a real browser shows it."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import browser

from zoedge.commands import report
from zoedge.commands.report import facts, figures
from zoedge.log.log import Log
from zoedge.run import folder as run_folder
from zoedge.run import replay

VOID = {"meta", "br", "link", "img"}
EVIL = "<script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)>"
SAMPLES = [{"text": f"a dull film {EVIL}", "right": "negative", "answer": "positive"}]


class Structure(HTMLParser):
    """Tags that are closed as they were opened, their attributes, and the text outside of style."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def checked(text: str) -> Structure:
    """The page's structure: whole, with nothing that asks for anything, ids that occur once, and SVG that is XML."""
    found = Structure(text)
    for tag, attributes in found.tags:
        assert tag not in ("script", "img", "link", "iframe", "object", "embed", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        links = [v for k, v in attributes.items() if k.endswith("href")]
        assert all(v is not None and v.startswith("#") for v in links)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not re.search(r"#0[123]0[0-9a-f]{3}\b", figure), "a stand-in of a colour is left"
        assert {c.lower() for c in re.findall(r"(?:fill|stroke): (#\w+)", figure)} <= set(), "a colour of its own"
        for place in re.findall(r'(?:url\(|href=")#([^)"]+)', figure):
            assert f'id="{place}"' in figure
    assert figures and not re.search(r"@import|url\((?!#)", text)
    return found


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in runs/tiny of the current folder's."""
    shutil.copytree(finished / "runs" / "tiny", tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def test_a_report_says_what_the_log_and_its_notes_say(run: Path, zoedge: Callable[..., Any]) -> None:
    done = zoedge("report", run)
    assert done.code == 0 and done.out.startswith(f"{run / report.REPORT_FILE}: ")
    page = checked((run / report.REPORT_FILE).read_text())
    notes = {line["event"]: line for line in run_folder.read_metrics(run)}
    with Log.open(run / run_folder.LOG_FILE) as log:
        found = facts.read_facts(run)
        assert np.array_equal(found.gamma, [r.g for r in log])
        assert np.allclose(found.loss, [sum(r.losses) / len(r.losses) for r in log])
        assert np.allclose(found.size, [r.lr * abs(r.g[0]) * log.header.elements**0.5 for r in log]) and found.exact
        assert found.passes == 2 * len(log) and found.state == "finished"
        assert log.fingerprint in page.words and f"{log.header.elements:,} trained parameters" in page.words
    for event in ("before", "after"):
        assert f"{100 * notes[event]['calibrated']:.1f} %" in page.words and f"{notes[event]['loss']:.4f}" in page.words
    assert f"on {notes['after']['count']} held-out rows" in page.words
    assert f"on {notes['rows']['train']} rows of rows.jsonl" in page.words
    assert notes["session"]["torch"] in page.words and "rule: name: sgd" in page.words
    assert [a["id"] for t, a in page.tags if t == "figure"] == [
        f"figure-{n}" for n in ("loss", "scores", "gamma", "size")
    ]
    assert "Memory by part, predicted" in page.words and "Time by part" in page.words
    kept = [
        x for x in (run / run_folder.METRICS_FILE).read_text().splitlines() if '"memory"' not in x and '"time"' not in x
    ]
    (run / run_folder.METRICS_FILE).write_text("\n".join(kept))
    page = checked(report.render_page([facts.read_facts(run)]))
    assert "Memory by part" not in page.words and "Time by part" not in page.words


def test_the_size_of_an_update_is_what_replay_moves_by(run: Path) -> None:
    from zoedge.core import engine

    with Log.open(run / run_folder.LOG_FILE) as log:
        made = replay.build_replay_run(log)
        leaf = made.space.leaves()[0]
        before = leaf.value.clone()
        next(iter(engine.play(made, 1)))
        moved = float((leaf.value - before).norm())
    assert moved > 0 and facts.read_facts(run).size[0] == pytest.approx(moved, rel=1e-4)


def test_samples_are_noted_before_and_after_and_leave_the_log_alone(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zoedge.commands.finetune import train
    from zoedge.recipe.reading import read_recipe
    from zoedge.run.display import make_display
    from zoedge.run.evaluation import SAMPLE_COUNT, Evaluator

    lines = [line for line in run_folder.read_metrics(run) if line["event"] == "samples"]
    assert [line["step"] for line in lines] == [0, 4] and all(len(line["samples"]) == SAMPLE_COUNT for line in lines)
    assert all(
        s["text"].endswith("It was") and {s["right"], s["answer"]} <= {"negative", "positive"}
        for s in lines[1]["samples"]
    )
    page = checked(report.render_page([facts.read_facts(run)]))
    assert all(s["text"] in page.text for s in lines[0]["samples"]) and "Samples, before and after" in page.words
    monkeypatch.chdir(finished)
    monkeypatch.setattr(Evaluator, "samples", lambda self, space, step: None)
    train(read_recipe("my.yaml"), tmp_path / "without", make_display("quiet"))
    assert (tmp_path / "without" / run_folder.LOG_FILE).read_bytes() == (run / run_folder.LOG_FILE).read_bytes()


def test_answers_agree_with_the_accuracy(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all validation rows, the share of samples that are right is the score that is noted."""
    from zoedge.run import evaluation

    monkeypatch.chdir(finished)
    monkeypatch.setattr(evaluation, "SAMPLE_COUNT", 1000)
    shutil.rmtree(run)
    from zoedge.cli import app

    app(["finetune", "my.yaml", "--quiet", "--run-dir", str(run)], standalone_mode=False)
    lines = {(line["event"], line.get("step")): line for line in run_folder.read_metrics(run)}
    some = lines["samples", 4]["samples"]
    assert sum(s["right"] == s["answer"] for s in some) / len(some) == pytest.approx(lines["after", 4]["accuracy"])


def test_nothing_that_a_note_says_is_trusted(run: Path) -> None:
    for line in (
        {"event": "samples", "step": 0, "samples": SAMPLES},
        {"event": "samples", "step": 4, "samples": SAMPLES},
        {"event": "session", "at": 1, EVIL: EVIL},
        {"event": "memory", "predicted": {EVIL: 5e9, "weights": 81e6, "odd": "x", "none": None}, "measured": 5.2e9},
        {"event": "time", "step": 4, "forward": 12.5, "parts": {EVIL: 3.0}},
        {"event": "before", "loss": "high", "count": 10},
        {"event": "after", "step": 4, "loss": float("nan"), "count": 10},
        {"event": "after", "step": 10**9, "loss": 1.0, "count": 10},
        {"event": "valid", "step": 2, "seq": 10**9, "loss": 1.0, "count": 10},
        {"event": "valid", "step": [], "loss": 1.0, "count": True},
        {"event": "after", "step": 4, "loss": 1.0, "count": 10, "accuracy": "all"},
        {"event": "samples", "step": 4.5, "samples": "x"},
        {"event": "curvature", "step": 2, "trace": [1]},
        {"event": "finished", "seconds": "long", "at": {}},
        {"event": ["x"]},
    ):
        run_folder.append_metric(run, **line)
    page = checked(report.render_page([facts.read_facts(run)]))
    assert page.words.count(EVIL) >= 4
    assert (
        "Memory by part, predicted" in page.words
        and "Predicted in all: 5.1 GB. Measured peak: 5.2 GB, +2 %." in page.words
    )
    assert "Time by part" in page.words and "12 s" in page.words and "odd" not in page.words
    assert facts.read_facts(run).valid == []


def test_a_log_without_notes_and_one_without_steps(run: Path, tmp_path: Path) -> None:
    with Log.open(run / run_folder.LOG_FILE) as log:
        length = log.header.length
    (run / run_folder.METRICS_FILE).unlink()
    page = checked(report.render_page([facts.read_facts(run)]))
    assert "Samples" not in page.words and "held-out" not in page.words and "Distribution of γ" in page.words
    (run / run_folder.LOG_FILE).write_bytes((run / run_folder.LOG_FILE).read_bytes()[:length])
    page = Structure(report.render_page([facts.read_facts(run)]))
    assert "Stopped after 0 of 4 steps." in page.words and "figure" not in [tag for tag, _ in page.tags]


def test_a_packed_log_has_no_losses_and_not_the_notes_beside_it(run: Path, zoedge: Callable[..., Any]) -> None:
    assert zoedge("log", "export", run, "--packed", "-o", run / "film.zpack").code == 0
    found = facts.read_facts(run / "film.zpack")
    assert found.steps == 4 and found.after is None and found.rows == {}
    assert [figure.name for figure in figures.draw_figures([found])] == ["gamma", "size"]


@pytest.fixture
def two(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]) -> tuple[Path, Path]:
    """The run, and another with half the lr and twice the steps."""
    monkeypatch.chdir(finished)
    other = run.with_name("other")
    assert (
        zoedge("finetune", "my.yaml", "name=other", "rule.lr=5e-3", "train.steps=8", "--run-dir", other, "--quiet").code
        == 0
    )
    return run, other


def test_two_runs_are_compared(two: tuple[Path, Path], tmp_path: Path, zoedge: Callable[..., Any]) -> None:
    out = tmp_path / "both.html"
    assert zoedge("report", *two, "-o", out).code == 0
    page = checked(out.read_text())
    assert "2 runs that differ in rule.lr, train.steps." in page.words
    assert facts.recipe_differences([facts.read_facts(x) for x in two]) == {
        "rule.lr": ["0.01", "0.005"],
        "train.steps": ["4", "8"],
    }
    for name, folder in (("tiny", two[0]), ("other", two[1])):
        found = facts.read_facts(folder)
        assert name in page.words and found.after and f"{found.after.loss:.4f}" in page.words
        assert found.fingerprint in page.words
    assert "alone gives" not in page.words


@pytest.mark.parametrize(
    "args,code,said",
    [
        (["report", "nowhere"], 2, "No run 'nowhere': no such log"),
        (["report", "runs/tiny", "runs/tiny"], 2, "The same run stands twice. Name each once."),
        (["report", "runs/tiny", "-o", "page.txt"], 2, "--out: 'page.txt' is not a .html file."),
        (["report", "runs/tiny", "-o", "no/folder/page.html"], 74, "no/folder/page.html: cannot write: No such file"),
        (["report"], 2, "Missing argument 'runs'"),
    ],
)
def test_mistakes(
    args: list[str], code: int, said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    zoedge: Callable[..., Any],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = zoedge(*args)
    assert (done.code, done.out) == (code, "") and done.err.startswith(f"zoedge: {said}")


def test_without_matplotlib_one_is_told(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    done = zoedge("report", run)
    assert done.code == 2 and "A report draws with matplotlib, which is not installed: pip install" in done.err
    done = zoedge("finetune", "my.yaml", "output.report=true", "--run-dir", run.with_name("x"), "--quiet")
    assert done.code == 2 and "output.report draws with matplotlib" in done.err and not run.with_name("x").exists()


def test_a_recipe_asks_for_it_and_where_not_its_text_is_as_before(
    finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch, zoedge: Callable[..., Any]
) -> None:
    from zoedge.recipe.reading import read_recipe

    monkeypatch.chdir(finished)
    assert "report" not in read_recipe("my.yaml").resolved()["output"]
    folder = run.with_name("reported")
    done = zoedge("finetune", "my.yaml", "output.report=true", "--run-dir", folder, "--plain")
    assert done.code == 0 and f"report   {folder / report.REPORT_FILE}" in done.out
    page = checked((folder / report.REPORT_FILE).read_text())
    assert (
        "Time" in page.words and read_recipe("my.yaml", ["output.report=true"]).resolved()["output"]["report"] is True
    )


# -- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    program = browser.found()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or set ZOEDGE_CHROMIUM")
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


LOOK = """(() => {
  const box = s => { const r = s.getBoundingClientRect(); return [Math.round(r.width), Math.round(r.height)] };
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255 };
  const colour = s => getComputedStyle(s);
  const high = s => s.getBoundingClientRect().height;
  return {
    title: document.title,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    figures: [...document.querySelectorAll('figure svg')].map(box),
    ground: light(colour(document.body).backgroundColor),
    ink: light(colour(document.body).color),
    ticks: [...document.querySelectorAll('figure svg text')].map(t => [light(colour(t).fill), high(t)]),
    curves: [...document.querySelectorAll('figure svg path')].filter(p => /var\\(--hue/.test(p.getAttribute('style') || ''))
      .map(p => colour(p)).map(c => light(c.stroke === 'none' ? c.fill : c.stroke)),
    scripts: window.pwned === undefined,
  }
})()"""


@pytest.mark.parametrize("width,dark", [(1200, False), (375, False), (375, True), (1200, True)])
def test_in_a_real_browser(
    chromium: browser.Browser, two: tuple[Path, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    evil = "<script>window.pwned = 1</script><img src=http://evil.example/x.png onerror='window.pwned = 2'>"
    for step in (0, 4):
        run_folder.append_metric(
            two[0], event="samples", step=step, samples=[{"text": evil + "x" * 400, "right": "a", "answer": evil}]
        )
    for name, some in (("one.html", two[:1]), ("both.html", two)):
        seen = chromium.see(report.write_report(some, tmp_path / name), width, 800, LOOK, dark)
        assert (seen.complaints, seen.requests) == ([], []), name
        v = seen.value
        assert v["scripts"] and v["overflow"] == 0 and v["title"].endswith("zoedge report")
        assert len(v["figures"]) == 4 and all(w > 300 and h > 150 for w, h in v["figures"]), v["figures"]
        assert v["ground"] < 0.2 and v["ink"] > 0.8 if dark else v["ground"] > 0.9 and v["ink"] < 0.25
        assert len(v["ticks"]) > 20 and len(v["curves"]) >= 4
        for light, height in v["ticks"]:
            assert abs(light - v["ground"]) > 0.4 and height >= 9, "a tick's label can be read"
        for light in v["curves"]:
            assert abs(light - v["ground"]) > 0.25, "a curve can be seen"
        assert seen.picture[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_browser_sees_faults(chromium: browser.Browser, tmp_path: Path) -> None:
    """What the test above finds none of is found where it is."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<title>x</title><script>console.error('no'); nothing()</script><img src='http://127.0.0.1:9/x.png'>"
    )
    seen = chromium.see(page, 375, 800, "document.title")
    assert seen.value == "x" and len(seen.complaints) >= 2 and seen.requests == ["http://127.0.0.1:9/x.png"]


def test_the_wheel_has_the_page() -> None:
    """hatchling takes whatever git does not ignore in the package: the template and the style must stay there."""
    folder = Path(report.__file__).parent
    assert {p.name for p in folder.iterdir() if p.suffix in (".css", ".jinja")} == {"page.html.jinja", "style.css"}
