"""The arguments and options that several commands share: each is declared here once, with its help and its tab key."""

from __future__ import annotations

from typing import Annotated

import typer

from .completing import complete_overrides, complete_recipes, complete_runs

AT_HELP = "after how many steps: last, best (the lowest validation loss) or a number; default: as eval.select says"
BASE_HELP = (
    "where the base is, for a space that moves its weights (default: as the recipe says); of an optimiser's log, "
    "the .safetensors file of the values it began with"
)
LOG_HELP = "a run's folder or name, a .zlog, a packed .zpack, or a shared .zoe"
OVERRIDES = "[KEY=VALUE]..."

RecipeArgument = Annotated[
    str, typer.Argument(help="a .yaml file, or the name of a shipped recipe", autocompletion=complete_recipes)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, such as rule.lr=1e-3", metavar=OVERRIDES, autocompletion=complete_overrides),
]
RunArgument = Annotated[str, typer.Argument(help=LOG_HELP, autocompletion=complete_runs)]
RunFolderArgument = Annotated[str, typer.Argument(help="a run's folder or name", autocompletion=complete_runs)]
RunsArgument = Annotated[list[str], typer.Argument(help="runs' folders or names", autocompletion=complete_runs)]
RawLogArgument = Annotated[str, typer.Argument(help="a run's folder or name, or a .zlog", autocompletion=complete_runs)]

AtOption = Annotated[str | None, typer.Option(help=AT_HELP)]
BaseOption = Annotated[str | None, typer.Option(help=BASE_HELP)]
DeviceOption = Annotated[str, typer.Option(help="cpu | cuda")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object a line")]
PlainOption = Annotated[bool, typer.Option("--plain", help="lines instead of the live panel")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="errors alone")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="run the Python reward that the log names, although another machine began the log"
    ),
]
