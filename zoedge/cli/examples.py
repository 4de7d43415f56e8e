"""One whole example line for each command, which its --help ends with. tests/cli/test_help.py holds that each is right."""

from __future__ import annotations

import typer

FIRST_HOUR = ("init", "preview", "finetune", "eval", "generate")  # the commands that a bare `zoedge` shows first

EXAMPLES = {
    "init": "zoedge init mails.csv -o mails.yaml --look",
    "finetune": "zoedge finetune first-film train.steps=500",
    "resume": "zoedge resume runs/first-film",
    "preview": "zoedge preview first-film -n 5",
    "estimate": "zoedge estimate first-film --budget 8GB",
    "sweep": "zoedge sweep first-film lrs.yaml --dry-run",
    "report": "zoedge report runs/first-film",
    "replay": "zoedge replay runs/first-film --at best -o rebuilt",
    "verify": "zoedge verify runs/first-film --replay --adapter runs/first-film/adapter",
    "repair": "zoedge repair runs/first-film",
    "pack": "zoedge pack runs/first-film -o film.zoe",
    "apply": "zoedge apply film.zoe --base smollm2-135m-instruct -o applied",
    "export": "zoedge export runs/first-film --to merged --check",
    "eval": "zoedge eval runs/first-film --limit 200",
    "generate": 'zoedge generate runs/first-film -p "A film that made me smile. It was"',
    "chat": "zoedge chat runs/mine --compare-base",
    "quantize": "zoedge quantize smollm2-135m-instruct --to int8",
    "doctor": "zoedge doctor --fix-hints",
    "schema": "zoedge schema --field rule.lr",
    "validate": "zoedge validate first-film rule.lr=1e-3",
    "import-config": "zoedge import-config qlora.yml -o mine.yaml",
    "cache ls": "zoedge cache ls",
    "cache rm": "zoedge cache rm trunk --yes",
    "runs ls": "zoedge runs ls --json",
    "runs rm": "zoedge runs rm runs/first-film --yes",
    "log show": "zoedge log show runs/first-film -n 20",
    "log export": "zoedge log export runs/first-film -o steps.csv",
    "log diff": "zoedge log diff runs/first-film runs/other",
    "recipes ls": "zoedge recipes ls film",
    "recipes show": "zoedge recipes show first-film",
    "recipes cp": "zoedge recipes cp first-film mine.yaml",
    "lab ls": "zoedge lab ls",
    "lab run": "zoedge lab run testfunctions steps=1000",
}


def add_examples(app: typer.Typer, before: str = "") -> None:
    """Put the example of each command below its --help. before: the name of the group, with a space after it."""
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        command.epilog = f"Example: {EXAMPLES[before + name]}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{group.name} ")


def list_commands(app: typer.Typer) -> list[tuple[str, str]]:
    """Return the name and the first sentence of every command and group, as --help orders them."""
    listed = []
    for command in app.registered_commands:
        text = (command.callback.__doc__ or "") if command.callback else ""
        listed.append((command.name or (command.callback.__name__ if command.callback else ""), first_sentence(text)))
    for group in app.registered_groups:
        help_text = group.typer_instance.info.help if group.typer_instance is not None else ""
        listed.append((str(group.name), first_sentence(str(help_text or ""))))
    return listed


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, without its full stop."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")
