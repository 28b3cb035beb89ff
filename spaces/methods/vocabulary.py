"""A student's vocabulary, cut to what the task uses: most of a small encoder's weights are rows of other tokens."""

from typing import Literal

from pydantic import Field

from spaces.shape import Shape
from spaces.stages import Stage


class KeepVocabulary(Stage):
    """Keep a part of the model's tokens, numbered anew; from here on the model reads rows under these numbers."""

    carried_out_by = "trainers.vocabulary:cut"

    kind: Literal["keep_vocabulary"] = "keep_vocabulary"
    vocabulary: str = Field(min_length=1)
    """Fingerprint of the tokenizer, the texts whose tokens are kept, and the margin (``trainers.vocabulary``)."""
    num_tokens: int = Field(ge=1)
    """How many tokens that are."""

    @property
    def reader(self) -> str:
        return self.vocabulary

    def reshape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"vocab_size": self.num_tokens})

    def say(self) -> str:
        return f"keep {self.num_tokens:,} tokens"
