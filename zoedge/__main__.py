"""`python -m zoedge`, for launchers: accelerate launch -m zoedge finetune recipe.yaml."""

from .cli import main
from .run.workers import launched, leave

if __name__ == "__main__":
    try:
        main()
    except SystemExit as e:
        if not launched():
            raise
        leave(e.code if isinstance(e.code, int) else int(bool(e.code)))
    if launched():
        leave(0)
