"""Tiny random encoders with a tokenizer, saved to a folder as a downloaded model would be: safetensors, no head."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

WORDS = ("red", "green", "blue", "big", "small", "cat", "dog", "sun", "moon", "the", "a")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 64
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
_PIECES = dict.fromkeys([*SPECIAL, *WORDS, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)])
VOCABULARY = {piece: index for index, piece in enumerate(_PIECES)}

_EXTRA: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {},
    "roberta": {"max_position_embeddings": MAX_TOKENS + 1, "type_vocab_size": 1},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
        "max_relative_positions": -1,
        "type_vocab_size": 0,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "modernbert": {"global_attn_every_n_layers": 3, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "electra": {"embedding_size": 16},
}
KINDS = tuple(_EXTRA)


def tiny_model(folder: Path, kind: str = "bert", *, num_layers: int = 4, hidden_size: int = 32, seed: int = 0) -> Path:
    """A random encoder of ``kind`` (one of ``KINDS``) and its tokenizer, saved to ``folder``, which is returned.

    Texts are lower-cased; every word of ``WORDS`` is one token, every other ASCII word its characters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(kind, **_settings(kind, num_layers, hidden_size))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(AutoModel.from_config(config).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, *, single: str = "[CLS] $A [SEP]", **special: str) -> None:
    """Write the tokenizer's files to ``folder``; ``single`` is what it makes of a text."""
    tokenizer = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        **{f"{name}_token": token for name, token in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _settings(kind: str, num_layers: int, hidden_size: int) -> dict[str, Any]:
    common = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": VOCABULARY["[PAD]"],
        "bos_token_id": VOCABULARY["[CLS]"],
        "eos_token_id": VOCABULARY["[SEP]"],
    }
    if kind == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        common = {names.get(name, name): value for name, value in common.items()} | {"hidden_dim": 2 * hidden_size}
        del common["intermediate_size"]
    return common | _EXTRA.get(kind, {})


_CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "smollm3": {"no_rope_layer_interval": 2},
}


def tiny_causal(
    folder: Path,
    kind: str = "llama",
    *,
    num_layers: int = 2,
    hidden_size: int = 32,
    tied: bool = True,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
) -> Path:
    """A random causal language model of ``kind`` and its tokenizer, which begins texts with [CLS] and ends them with
    [SEP], saved to ``folder``, which is returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings("llama", num_layers, hidden_size) | {"max_position_embeddings": max_tokens}
    settings |= {"num_key_value_heads": 2, "tie_word_embeddings": tied, "initializer_range": 0.2}
    if kind == "gpt2":
        settings = {name: value for name, value in settings.items() if name != "intermediate_size"}
    config = AutoConfig.for_model(kind, **settings | _CAUSAL.get(kind, {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, single="[CLS] $A", eos="[SEP]")
    return folder
