"""Models that write, distilled from kept draws of a teacher's answers, against the same loop with the teacher online.

    python benchmarks/kept_draws.py [--vocab-size 32000] [--layers 12] [--student-layers 2] [--rounds 3] [--json FILE]

Teacher and student are random Llamas that differ in layers alone. The text is made from a seed: every second word
follows from the one before it, all others are drawn by Zipf's law, so that the teacher, fine-tuned first, answers with
distributions that are peaked as a language model's are. Both ways train the same student on the same batches, in turn,
``--rounds`` times. Ratios are of sums over the rounds, in wall-clock seconds and in processor seconds, without the time
that the draws took to write and with it: it is spent once for all epochs and all students of one temperature.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor

from spaces.methods.cut import SelectLayers, spread
from spaces.methods.distill import Distill
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Chain, Optimisation
from trainers.batches import Batch
from trainers.causal_models import inspect_causal, load_causal
from trainers.compute import autocast, pick_device, uses_bf16
from trainers.context import Context
from trainers.distill import against, distill, kept_form, soft_loss
from trainers.generation_rows import GenerationRows
from trainers.generation_tokens import tokenise_exchanges
from trainers.kinds import split_tokens
from trainers.loop import Job, fit
from trainers.models import select_layers
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.teacher import outputs_fingerprint, teacher_outputs
from trainers.trained import trained_teacher

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_NUM_DRAWS = 50


@dataclass(frozen=True)
class Setting:
    """What both ways are given."""

    context: Context
    plan: Plan
    """Ends in the distillation."""

    @property
    def teacher(self) -> Plan:
        """The trained teacher."""
        return self.plan.on_same_data(self.plan.stages[-1].teachers[0])

    @property
    def job(self) -> Job:
        """The distillation as the engine would carry it out; nobody listens, so nothing is evaluated."""
        return Job(plan=self.plan, context=self.context, ranks=solo(), report=silent, final=False)

    def student(self) -> Any:
        """The model to train, the same weights each time."""
        cut = self.plan.stages[0]
        assert isinstance(cut, SelectLayers)
        return select_layers(load_causal(self.context.base_folder(self.plan.base)), cut.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher")
    parser.add_argument("--student-layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--response-tokens", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways in turn, and what the draws cost."""
    setting = prepare(options, folder)
    run_plan(setting.teacher, setting.context, ranks=solo(), report=silent)
    form = kept_form(setting.plan.stages[-1], setting.plan)
    writing = timed(lambda: teacher_outputs(setting.teacher, setting.context, form=form))
    spent: dict[str, list[list[float]]] = {"kept": [], "online": []}
    for index in range(options.rounds):
        for name, way in (("kept", kept), ("online", online)):
            spent[name].append(timed(lambda way=way: way(setting)))
            print(f"round {index}  {name:>6}  {spent[name][-1]} s wall, processor", flush=True)
    return summary(options, setting, spent, writing)


def prepare(options: argparse.Namespace, folder: Path) -> Setting:
    """A base and rows in a store of its own."""
    save_base(folder / "base", options)
    base = inspect_causal(str(folder / "base"))
    plain = {"artifacts": str(folder / "artifacts"), "cache": str(folder / "cache")}
    settings = {"kind": "generation", "metric": "perplexity", "threads": options.threads, "checkpoint_every_s": 1e9}
    empty = Context(**plain, **settings, models={base.fingerprint: str(base.folder)}, tokens={}, labels=())
    lengths = {"max_tokens": options.prompt_tokens + options.response_tokens, "max_new_tokens": options.response_tokens}
    tokens = {
        split: tokenise_exchanges(rows(options, count=count), base, empty.store, **lengths).fingerprint
        for split, count in (("train", options.rows), ("validation", 8))
    }
    context = replace(empty, tokens={base.fingerprint: tokens})
    expert = Finetune(optimisation=Optimisation(learning_rate=1e-3, epochs=3, batch_size=options.batch_size))
    stage = Distill(
        optimisation=Optimisation(learning_rate=1e-3, epochs=options.epochs, batch_size=options.batch_size),
        teacher=Chain(base=base.fingerprint, stages=(expert,)),
        temperature=options.temperature,
        alpha=0.5,
        alpha_end=0.5,
        num_draws=_NUM_DRAWS,
    )
    cut = SelectLayers(layers=spread(options.layers, options.student_layers))
    return Setting(context, Plan(base=base.fingerprint, stages=(cut, stage), data="rows"))


def save_base(folder: Path, options: argparse.Namespace) -> None:
    """A random Llama, and a tokenizer of words."""
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    words = [*_SPECIAL, *(f"w{index}" for index in range(options.vocab_size - len(_SPECIAL)))]
    plain = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 32,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def rows(options: argparse.Namespace, *, count: int) -> GenerationRows:
    """Prompts and responses of like length."""
    rng, num_words = np.random.default_rng(0), options.vocab_size - len(_SPECIAL)
    shares = 1 / np.arange(1, num_words + 1)
    follower = rng.permutation(num_words)

    def text(length: int) -> str:
        drawn = rng.choice(num_words, size=-(-length // 2), p=shares / shares.sum())
        pairs: Iterator[int] = (word for first in drawn for word in (first, follower[first]))
        return " ".join(f"w{word}" for word in list(pairs)[:length])

    return GenerationRows(
        prompts=tuple(text(options.prompt_tokens) for _ in range(count)),
        responses=tuple(text(options.response_tokens - 1) for _ in range(count)),
        rationales=(None,) * count,
    )


def kept(setting: Setting) -> None:
    distill(setting.student(), setting.job)


def online(setting: Setting) -> None:
    teacher = trained_teacher(setting.teacher, setting.context)

    @torch.no_grad()
    def ask(batch: Batch) -> Tensor:
        with autocast(setting.context, batch.labels_P.device):
            found = teacher(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
        return batch.at_positions(found)

    stage = setting.plan.stages[-1]
    fit(setting.student(), against(ask, lambda *told: soft_loss(stage, *told)), setting.job)  # type: ignore[arg-type]


def timed(action: Callable[[], object]) -> list[float]:
    """Wall-clock and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return [time.perf_counter() - wall, time.process_time() - processor]


def silent(_: Progress) -> None:
    pass


def summary(
    options: argparse.Namespace, setting: Setting, spent: dict[str, list[list[float]]], writing: list[float]
) -> dict[str, Any]:
    """Ratios without and with the writing, and bytes."""
    form = kept_form(setting.plan.stages[-1], setting.plan)
    artifact = setting.context.store.find(outputs_fingerprint(setting.teacher, setting.context, form=form))
    assert artifact is not None
    size = sum(path.stat().st_size for path in artifact.folder.glob("*.arrow"))
    taught = teacher_outputs(setting.teacher, setting.context, form=form).kept
    distinct = (taught.read(range(len(taught))).counts_PN > 0).sum(-1).float().mean()  # type: ignore[union-attr]
    total = {way: np.sum(runs, axis=0) for way, runs in spent.items()}
    ratios = {
        "online / kept": total["online"] / total["kept"],
        "online / (kept + writing)": total["online"] / (total["kept"] + options.rounds * np.array(writing)),
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pick_device().type}, "
        f"{'bf16' if uses_bf16(setting.context, pick_device()) else 'fp32'}",
        "settings": {name: str(value) for name, value in vars(options).items() if name != "json"},
        "positions": split_tokens(setting.context, base=setting.plan.base, split="train").num_positions(),
        "bytes_per_token": size / taught.num_positions,
        "distinct_classes_per_token": float(distinct),
        "load_average": os.getloadavg()[0],
        "writing_s": dict(zip(("wall", "processor"), writing, strict=True)),
        "ratios": {name: dict(zip(("wall", "processor"), pair.tolist(), strict=True)) for name, pair in ratios.items()},
        "runs_s": spent,
    }


if __name__ == "__main__":
    main()
