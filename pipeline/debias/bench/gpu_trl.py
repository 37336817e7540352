"""What a user would pick instead: TRL's SFTTrainer with plain QLoRA, on the same model and tokens."""

import itertools
import statistics
import tempfile
import time
from typing import Any

from torch import Tensor

from debias.errors import InputError


def seconds_of_a_step(model: Any, batch: dict[str, Tensor], steps: int) -> float:
    """The median seconds of an optimizer step of SFTTrainer, after one that is not counted; InputError without trl."""
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        raise InputError("bench gpu --what trl: trl is not installed; pip install trl") from None
    from datasets import Dataset
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        """Notes when each step ended."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    ids_BT, mask_BT = batch["input_ids"].cpu(), batch["answer_mask"].cpu().int()
    rows = {"input_ids": ids_BT.tolist(), "completion_mask": mask_BT.tolist()}
    data = Dataset.from_dict({key: value * (steps + 2) for key, value in rows.items()})
    size, length = ids_BT.shape
    on_gpu = batch["input_ids"].is_cuda
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=size,
            max_length=length,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=True,
            completion_only_loss=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=data, processing_class=_tokenizer(), callbacks=[Clock()]
        )
        trainer.train()
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(marks))


def _tokenizer() -> Any:
    """One that is never asked to tokenize; SFTTrainer wants its pad token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens = {"<pad>": 0, "</s>": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens)), pad_token="<pad>", eos_token="</s>"
    )
