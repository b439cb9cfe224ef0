"""A few steps of transformers.Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tiny import token_ids


def memorise(model: nn.Module, folder: Path, **options: Any) -> tuple[float, float]:
    """The loss before and after transformers.Trainer has had a few steps on one batch."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 8)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]
