"""`python -m zoedge`, for launchers: accelerate launch -m zoedge finetune recipe.yaml."""

from .cli import main
from .run.workers import exit_process, is_launched

if __name__ == "__main__":
    try:
        main()
    except SystemExit as e:
        if not is_launched():
            raise
        exit_process(e.code if isinstance(e.code, int) else int(bool(e.code)))
    if is_launched():
        exit_process(0)
