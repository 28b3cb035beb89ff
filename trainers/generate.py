"""Writing text: greedy decoding of many prompts at once, or drawing.

Prompts are padded on the left, so that all of them go on at the same place. What is in a batch with a prompt changes
its answer by rounding alone, and the batches are always the same.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.draws import drawn_classes

Pick = Callable[[Tensor, Tensor], Tensor]
"""From logits B × V, and which of the prompts each row goes on with, to the next token of each row."""


def likeliest(logits_BV: Tensor, _prompts_B: Tensor) -> Tensor:
    """The token with the largest logit."""
    return logits_BV.argmax(dim=-1)


def drawn(logits_BV: Tensor, _prompts_B: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """A token drawn from the softmax of the logits over ``temperature``; ``generator`` is on their device."""
    shares = (logits_BV.float() / temperature).softmax(dim=-1)
    return shares.multinomial(1, generator=generator).squeeze(-1)


def drawn_by_prompt(
    logits_BV: Tensor, prompts_B: Tensor, *, temperature: float, luck: Sequence[np.random.Generator]
) -> Tensor:
    """As ``drawn``, each prompt by luck of its own: what else is in the batch changes its text by rounding alone."""
    luck_B1 = torch.tensor([[luck[prompt].random()] for prompt in prompts_B.tolist()], dtype=torch.float64)
    return drawn_classes(logits_BV, luck_B1.to(logits_BV.device), temperature=temperature).squeeze(-1)


def greedy(
    model: Any, prompts: Sequence[np.ndarray], *, max_new_tokens: int, end_ids: Collection[int], pad_id: int
) -> list[np.ndarray]:
    """The likeliest next token again and again: the ids (int64) that follow each prompt, without the one that ends it.

    A prompt that has ended is not computed any further once half of those left have.
    """
    return written(model, prompts, max_new_tokens=max_new_tokens, end_ids=end_ids, pad_id=pad_id, pick=likeliest)


@torch.inference_mode()
def written(
    model: Any, prompts: Sequence[np.ndarray], *, max_new_tokens: int, end_ids: Collection[int], pad_id: int, pick: Pick
) -> list[np.ndarray]:
    """As ``greedy``, each token as ``pick`` says."""
    device = next(model.parameters()).device
    texts: list[list[int]] = [[] for _ in prompts]
    state, tokens_B = start(model, prompts, pad_id=pad_id, pick=pick)
    ends = torch.tensor(sorted(end_ids), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for left in range(max_new_tokens, 0, -1):
        ended |= torch.isin(tokens_B, ends)
        for row, token, over in zip(state.prompts_B.tolist(), tokens_B.tolist(), ended.tolist(), strict=True):
            if not over:
                texts[row].append(token)
        if left == 1 or bool(ended.all()):
            break
        if 2 * int(ended.sum()) >= len(ended):
            kept = (~ended).nonzero().flatten()
            state.keep(kept)
            tokens_B, ended = tokens_B[kept], ended[kept]
        tokens_B = step(model, state, tokens_B, pick=pick)
    return [np.asarray(ids, dtype=np.int64) for ids in texts]


class State:
    """Where decoding stands: keys and values of all tokens so far, which of those are not padding, and which of the
    prompts are left.
    """

    def __init__(self, cache: Any, mask_BL: Tensor) -> None:
        self.cache, self.mask_BL = cache, mask_BL
        self.prompts_B = torch.arange(len(mask_BL), device=mask_BL.device)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone."""
        self.cache.batch_select_indices(rows)
        self.mask_BL, self.prompts_B = self.mask_BL[rows], self.prompts_B[rows]


def start(model: Any, prompts: Sequence[np.ndarray], *, pad_id: int, pick: Pick = likeliest) -> tuple[State, Tensor]:
    """Read the prompts: the state after them, and the first token of each response."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids_BL, mask_BL = (torch.from_numpy(array).to(device) for array in _left_padded(prompts, pad_id))
    state = State(DynamicCache(config=model.config), mask_BL)
    logits_BV = _next(model, state, ids_BL, (mask_BL.cumsum(dim=-1) - 1).clamp(min=0))
    return state, pick(logits_BV, state.prompts_B)


def step(model: Any, state: State, tokens_B: Tensor, *, pick: Pick = likeliest) -> Tensor:
    """Append one token to every row; the next one of each."""
    positions_B1 = state.mask_BL.sum(dim=-1, keepdim=True)
    state.mask_BL = torch.cat([state.mask_BL, torch.ones_like(positions_B1)], dim=-1)
    return pick(_next(model, state, tokens_B[:, None], positions_B1), state.prompts_B)


def _next(model: Any, state: State, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
    found = model(
        input_ids=ids_BL,
        attention_mask=state.mask_BL,
        position_ids=positions_BL,
        past_key_values=state.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits_BV: Tensor = found.logits[:, -1]
    return logits_BV


def _left_padded(prompts: Sequence[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(prompts), max(map(len, prompts))), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, ids.shape[1] - len(prompt) :] = prompt
        mask[row, ids.shape[1] - len(prompt) :] = 1
    return ids, mask
