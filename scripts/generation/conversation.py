# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A document, and questions about it. The document is read once: what was read stays in the cache, and of the next question
only what is new is read. Where a cache cannot go back, as that of a sliding window, the document is read again, and that is
told.
"""

import sys
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from compatibility_sinkhorn import CACHE_NAME


class Conversation:
    """
    Args:
        document: text that the first message begins with; may be empty.
        chunk: tokens read at once, or `None` for all.
        options: for `generate()`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        document: str = "",
        chunk: int | None = None,
        **options: Any,
    ):
        self.model, self.tokenizer, self.document = model, tokenizer, document.strip()
        self.chunk, self.options = chunk, options
        self.messages: list[dict[str, str]] = []
        self.cache, self.read = DynamicCache(config=model.config), []  # `read`: the tokens in the cache

    def forget(self) -> None:
        """The next question is the first one about the document."""
        self.messages = []

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Their tokens, up to where an answer begins."""
        if self.tokenizer.chat_template is None:  # a model that continues texts
            text = "\n".join(message["content"] for message in messages) + "\n"
            return self.tokenizer(text, verbose=False)["input_ids"]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def ask(self, question: str, streamer: TextStreamer | None = None) -> str:
        """The answer; both become part of the conversation."""
        first = self.document and not self.messages
        asked = {"role": "user", "content": f"{self.document}\n\n{question}" if first else question}
        ids = self.prompt([*self.messages, asked])
        self._keep_what_is_the_same(ids)
        self._read_all_but_the_last(ids)
        tokens = torch.tensor([ids], device=self.model.device)
        written = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            streamer=streamer,
            pad_token_id=self.tokenizer.pad_token_id,
            **{CACHE_NAME: self.cache},
            **self.options,
        )[0].tolist()
        self.read = written[: self.cache.get_seq_length()]
        answer = self.tokenizer.decode(written[len(ids) :], skip_special_tokens=True).strip()
        self.messages += [asked, {"role": "assistant", "content": answer}]
        return answer

    def _keep_what_is_the_same(self, ids: list[int]) -> None:
        same = next((i for i, (a, b) in enumerate(zip(self.read, ids)) if a != b), min(len(self.read), len(ids)))
        same = min(same, len(ids) - 1)  # the last token is read by `generate`, which begins with its logits
        if same < len(self.read):
            try:
                self.cache.crop(same - len(self.read))
            except (RuntimeError, NotImplementedError, ValueError):  # sliding windows, layers that sort by block
                self.cache, same = DynamicCache(config=self.model.config), 0
                print("The cache of this model cannot go back so far: all is read again.", file=sys.stderr)
        self.read = self.read[:same]

    @torch.no_grad()  # not inference mode: `generate` changes some states in place
    def _read_all_but_the_last(self, ids: list[int]) -> None:
        start, end = len(self.read), len(ids) - 1
        chunk = self.chunk or max(1, end - start)
        with tqdm(total=end - start, unit=" tokens", desc="reading", disable=end - start <= chunk, leave=False) as bar:
            for begin in range(start, end, chunk):
                part = torch.tensor([ids[begin : min(begin + chunk, end)]], device=self.model.device)
                self.model(part, use_cache=True, logits_to_keep=1, **{CACHE_NAME: self.cache})
                bar.update(part.shape[1])
        self.read = ids[:end]
