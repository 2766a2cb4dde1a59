"""Tokenizers: text into the token numbers that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from .store import BadModel, Model

# Characters looked at first, for each token that a text may have. English has about 4 a token.
_CHARACTERS = 16


class Tokenizer:
    """A model's tokenizer.json, cutting text at the model's longest."""

    def __init__(self, model: Model) -> None:
        """Read the tokenizer.

        Raises:
            BadModel: tokenizer.json is missing, or the `tokenizers` library cannot read it.
        """
        path = model.file("tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise BadModel(f"{path} cannot be read ({error}): get the model's directory again") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(model.max_tokens)
        self._characters = _CHARACTERS * model.max_tokens

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, the special tokens around them; an empty text is these alone."""
        long = {row: self._encode_long(text) for row, text in enumerate(texts) if len(text) > self._characters}
        found = self._tokenizer.encode_batch_fast(["" if row in long else text for row, text in enumerate(texts)])
        return [long.get(row) or one.ids for row, one in enumerate(found)]

    def _encode_long(self, text: str) -> list[int]:
        """The same for a text whose beginning nearly always decides what is kept: a megabyte takes 0.5 s in full."""
        found = self._tokenizer.encode(text[: self._characters])
        # The last word seen may have been cut in two; what is kept is settled if it ends before that word.
        if found.overflowing and _last_word(found) < _last_word(found.overflowing[-1]):
            return list(found.ids)
        return list(self._tokenizer.encode(text).ids)


def _last_word(encoding: tokenizers.Encoding) -> int:
    return max(word for word in encoding.word_ids if word is not None)
