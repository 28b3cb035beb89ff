"""Training without this engine: ``transformers.Trainer``, its loss replaced where there is a teacher."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spaces.stages import Optimisation
from trainers.batches import collate
from trainers.compute import pad_id
from trainers.models import quiet_transformers
from trainers.tokens import Tokens

USUAL_DROPOUT = 0.1
"""What encoders come with, and so what ``Trainer`` would train with."""

Inputs = Mapping[str, Tensor]
Loss = Callable[[Tensor, Inputs], Tensor]
"""Of a batch's logits and inputs, ``row`` among them: the numbers of its rows."""


def train_plainly(
    model: Any,
    tokens: Tokens,
    *,
    optimisation: Optimisation,
    seed: int,
    loss: Loss | None = None,
    **arguments: Any,
) -> float:
    """Train ``model`` with ``Trainer`` at its defaults, but for rate, epochs, batch size and other ``arguments`` of
    it; returns the seconds. ``loss`` comes in the place of the model's own.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            if loss is None:
                inputs.pop("row")
                return super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
            answers = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            found = loss(answers.logits, inputs)
            return (found, answers) if return_outputs else found

    pad = pad_id(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Plain(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=optimisation.epochs,
                per_device_train_batch_size=optimisation.batch_size,
                learning_rate=optimisation.learning_rate,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                **arguments,
            ),
            train_dataset=[{"row": row, "input_ids": tokens.ids(row)} for row in range(len(tokens))],
            data_collator=lambda rows: _inputs(tokens, rows, pad),
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        with quiet_transformers():
            trainer.train()
        seconds = time.perf_counter() - started
    # In mixed precision the model's own forward has been wrapped, and would be exported so.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return seconds


def _inputs(tokens: Tokens, rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
    numbers = [row["row"] for row in rows]
    batch = collate(tokens, numbers, pad_id=pad)
    return {
        "row": torch.tensor(numbers),
        "input_ids": batch.input_ids_BL,
        "attention_mask": batch.attention_mask_BL,
        "labels": batch.labels_P,
    }
