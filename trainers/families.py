"""The architectures that are handled, and what differs between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What differs between architectures, for everything here that has to know."""

    layers: str
    """Where the list of transformer layers is, from the model without its head."""
    padded_positions: bool = False
    """Whether positions are counted from ``pad_token_id + 1``, so that as many embeddings are never used."""
    attention_output: str = "attention.output.dense"
    """From a layer, the linear map that attention ends in, before the skip connection is added."""
    ffn_output: str = "output.dense"
    """The same of the feed-forward block."""
    attention: str | None = "attention.self"
    """From a layer, the module that attends and can be given keys and values from before; None: it takes none."""


ENCODERS: dict[str, Family] = {
    "bert": Family("encoder.layer"),
    "camembert": Family("encoder.layer", padded_positions=True),
    "deberta": Family("encoder.layer", attention=None),
    "deberta-v2": Family("encoder.layer", attention=None),
    "distilbert": Family(
        "transformer.layer", attention_output="attention.out_lin", ffn_output="ffn.lin2", attention=None
    ),
    "electra": Family("encoder.layer"),
    "ernie": Family("encoder.layer"),
    "megatron-bert": Family("encoder.layer"),
    "modernbert": Family("layers", attention_output="attn.Wo", ffn_output="mlp.Wo", attention=None),
    "mpnet": Family("encoder.layer", padded_positions=True, attention_output="attention.attn.o", attention=None),
    "roberta": Family("encoder.layer", padded_positions=True),
    "xlm-roberta": Family("encoder.layer", padded_positions=True),
}


def _decoder(
    layers: str = "layers",
    *,
    attention_output: str = "self_attn.o_proj",
    ffn_output: str = "mlp.down_proj",
) -> Family:
    attention = attention_output.rpartition(".")[0]
    return Family(layers, attention_output=attention_output, ffn_output=ffn_output, attention=attention)


DECODERS: dict[str, Family] = {
    "gemma": _decoder(),
    "gemma2": _decoder(),
    "gemma3_text": _decoder(),
    "gpt2": _decoder("h", attention_output="attn.c_proj", ffn_output="mlp.c_proj"),
    "gpt_neox": _decoder(attention_output="attention.dense", ffn_output="mlp.dense_4h_to_h"),
    "granite": _decoder(),
    "llama": _decoder(),
    "mistral": _decoder(),
    "olmo2": _decoder(),
    "opt": _decoder("decoder.layers", attention_output="self_attn.out_proj", ffn_output="fc2"),
    "phi": _decoder(attention_output="self_attn.dense", ffn_output="mlp.fc2"),
    "phi3": _decoder(),
    "qwen2": _decoder(),
    "qwen3": _decoder(),
    "smollm3": _decoder(),
    "stablelm": _decoder(),
    "starcoder2": _decoder(ffn_output="mlp.c_proj"),
}
FAMILIES = ENCODERS | DECODERS
