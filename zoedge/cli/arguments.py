"""The arguments and options that several commands share: each is declared here once, with its help and its tab key."""

from __future__ import annotations

from typing import Annotated

import typer

from .completing import complete_overrides, complete_recipes, complete_runs, complete_values

AT_HELP = (
    "Take the state after this step: last, best (the lowest validation loss) or a number. Else eval.select decides."
)
BASE_HELP = (
    "The base lies here, where the space moves its weights. Without it, the recipe says where. Of an optimiser's log, this is "
    "the .safetensors file of the values that it began with."
)
LOG_HELP = "It is a run's folder or name, a .zlog, a packed .zpack, or a shared .zoe."
OVERRIDES = "[KEY=VALUE]..."

RecipeArgument = Annotated[
    str, typer.Argument(help="It is a .yaml file, or the name of a shipped recipe.", autocompletion=complete_recipes)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Each sets a key of the recipe, such as rule.lr=1e-3.",
        metavar=OVERRIDES,
        autocompletion=complete_overrides,
    ),
]
RunArgument = Annotated[str, typer.Argument(help=LOG_HELP, autocompletion=complete_runs)]
RunFolderArgument = Annotated[str, typer.Argument(help="It is a run's folder or name.", autocompletion=complete_runs)]
RunsArgument = Annotated[
    list[str], typer.Argument(help="They are runs' folders or names.", autocompletion=complete_runs)
]
RawLogArgument = Annotated[
    str, typer.Argument(help="It is a run's folder or name, or a .zlog.", autocompletion=complete_runs)
]

AtOption = Annotated[str | None, typer.Option(help=AT_HELP, autocompletion=complete_values("last", "best"))]
BaseOption = Annotated[str | None, typer.Option(help=BASE_HELP)]
DeviceOption = Annotated[
    str, typer.Option(help="It is computed here: cpu or cuda.", autocompletion=complete_values("cpu", "cuda"))
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
PlainOption = Annotated[bool, typer.Option("--plain", help="Print lines instead of the live panel.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors alone.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run the Python reward that the log names, although another machine began the log."
    ),
]
