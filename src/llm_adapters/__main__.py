"""``python -m llm_adapters``: what ``torchrun`` and ``accelerate launch`` start with ``-m llm_adapters``."""

from llm_adapters.cli import main

if __name__ == "__main__":
    main()
