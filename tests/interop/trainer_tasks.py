"""The worker's use of transformers' Trainer over rings."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from training_tasks import IGNORED, parameters_off, sharder_of, small_model, whole_loss

from baracuda_kernels.errors import BaracudaError

_BATCH = 2
_ACCUMULATED = 2
_CLIP = 0.2


class TrainerTasks:
    rank: int

    def trainer_steps(self, task: dict) -> dict:
        """Parameters and losses after Trainer's steps on a mesh, and after the same on one rank."""
        model, sharder, mesh = sharder_of(task)
        steps, in_a_step = task["steps"], _BATCH * _ACCUMULATED * mesh.size(0)
        examples = _examples(steps * in_a_step)
        trainer = _trainer(model, examples, task)
        sharder.attach(trainer)
        trainer.train()
        logged = [line for line in trainer.state.log_history if "loss" in line]
        evaluated = trainer.evaluate(examples[:in_a_step])["eval_loss"]

        alone = small_model(task["model"])
        optimizer = torch.optim.SGD(alone.parameters(), 0.5)
        losses, norms = [], []
        for step in range(steps):
            loss = _loss_alone(alone, examples[step * in_a_step : (step + 1) * in_a_step])
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(alone.parameters(), _CLIP).item())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        with torch.no_grad():  # Trainer takes the mean over batches here
            size = _BATCH * mesh.size(0)
            batches = [examples[start : start + size] for start in range(0, in_a_step, size)]
            exact = sum(_loss_alone(alone, one).item() for one in batches) / len(batches)
        return {
            "losses": [(line["loss"], exact) for line, exact in zip(logged, losses, strict=True)],
            "norms": [
                (line["grad_norm"], exact) for line, exact in zip(logged, norms, strict=True)
            ],
            "evaluated": [evaluated, exact],
            "off": parameters_off(model, alone),
        }

    def evaluated(self, task: dict) -> dict:
        """The evaluation by Trainer over a ring, and on one rank: the last batch is smaller."""
        model, sharder, mesh = sharder_of(task)
        size = _BATCH * mesh.size(0)
        examples = _examples(2 * size - 1)
        trainer = _trainer(model, None, task)
        sharder.attach(trainer)
        found = trainer.evaluate(examples)["eval_loss"]
        alone = small_model(task["model"])
        with torch.no_grad():
            exact = sum(
                len(one) * _loss_alone(alone, one).item()
                for one in (examples[:size], examples[size:])
            )
        return {"evaluated": [found, exact / len(examples)]}

    def refused_trainer(self, task: dict) -> dict:
        """The typed error of a Trainer that cannot train over a ring."""
        model, sharder, _ = sharder_of(task)
        options: dict[str, Any] = {}
        match task["what"]:
            case "metrics":
                options["compute_metrics"] = lambda prediction: {}
            case "a loss":
                options["compute_loss_func"] = lambda *_, **__: 0
            case "smoothing":
                options["arguments"] = {"label_smoothing_factor": 0.1}
            case "noise":
                options["arguments"] = {"neftune_noise_alpha": 5.0}
            case "uneven batches":
                options["arguments"] = {"accelerator_config": {"even_batches": False}}
        if task["what"] == "another model":
            model = small_model("llama")
        trainer: Any = object()
        if task["what"] != "no trainer":
            trainer = _trainer(model, None, task, **options)
        if task["what"] == "a method":
            trainer.compute_loss = lambda model, inputs, **_: model(**inputs).logits.sum()
        try:
            sharder.attach(trainer)
            trainer.predict(_examples(4))
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}


def _trainer(model: Any, examples: Any, task: dict, **options: Any) -> Any:
    import transformers
    from torch.utils.data import SequentialSampler

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    # As torchrun does it. The process group exists already.
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size()),
                   "LOCAL_RANK": str(dist.get_rank()), "MASTER_ADDR": "localhost",
                   "MASTER_PORT": "1"}  # fmt: skip
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(dir=task["folder"]),
        use_cpu=True,
        per_device_train_batch_size=_BATCH,
        per_device_eval_batch_size=_BATCH,
        gradient_accumulation_steps=_ACCUMULATED,
        max_grad_norm=_CLIP,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options.pop("arguments", {}),
    )
    return InOrder(model, arguments, _collate, train_dataset=examples, **options)


def _examples(count: int) -> list[dict]:
    draw = torch.Generator().manual_seed(11)
    lengths = torch.randint(20, 45, (count,), generator=draw).tolist()
    return [{"input_ids": torch.randint(61, (rows,), generator=draw)} for rows in lengths]


def _collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Padded on the right, as by transformers' collators."""
    rows = max(len(example["input_ids"]) for example in examples)
    lengths = torch.tensor([[len(example["input_ids"])] for example in examples])
    ids = torch.zeros(len(examples), rows, dtype=torch.long)
    for row, example in zip(ids, examples, strict=True):
        row[: len(example["input_ids"])] = example["input_ids"]
    mask = (torch.arange(rows) < lengths).long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _loss_alone(model: Any, examples: list[dict]) -> torch.Tensor:
    return whole_loss(model, [[_collate(examples)]], 1)[0]
