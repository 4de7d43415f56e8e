"""`python -m zoedge`, for launchers: accelerate launch -m zoedge finetune recipe.yaml."""

from .cli import main

if __name__ == "__main__":
    main()
