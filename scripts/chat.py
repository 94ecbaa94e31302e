# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Asks a causal language model about a long document. The document is read once; each question then costs its own tokens,
and the answer.

    python scripts/chat.py --model_name_or_path runs/smollm2 --document_file book.txt
    python scripts/chat.py --model_name_or_path runs/smollm2 --document_file book.txt --questions "Who is Ishmael?" "And Ahab?"

Without `--questions` it asks for them, one a line, and remembers what was said; an empty line ends it. Given questions are
each asked of the document alone. Models with a chat template get it; others continue the text. The model's positions must
be rotary or relative, to go beyond the length of its training.
"""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser, PreTrainedModel, TextStreamer, set_seed

from common.errors import UserError
from generation.conversation import Conversation
from generation.sampling import WriterArguments, open_writer, options, read_text


@dataclass
class ChatArguments(WriterArguments):
    document_file: str | None = field(default=None, metadata={"help": "UTF-8 file that the questions are about."})
    questions: list[str] | None = field(default=None, metadata={"help": "Each of the document alone; default: ask."})
    do_sample: bool = field(default=False, metadata={"help": "Sample tokens; otherwise the likeliest."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.questions is not None and not all(question.strip() for question in self.questions):
            raise UserError("--questions: one is empty.")


def tell_length(conversation: Conversation, model: PreTrainedModel) -> None:
    tokens = len(conversation.tokenizer(conversation.document, verbose=False)["input_ids"])
    trained = getattr(model.config, "max_position_embeddings", None)
    beyond = trained and tokens > trained
    told = f", more than the {trained:,} of its training: answers may be poor" if beyond else ""
    print(f"The document has {tokens:,} tokens{told}.", file=sys.stderr)


def lines():
    """What is typed, up to an empty line or the end of the input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def main() -> None:
    (args,) = HfArgumentParser(ChatArguments).parse_args_into_dataclasses()
    document = read_text(args.document_file) if args.document_file else ""
    if args.document_file and not document.strip():
        raise UserError(f"{args.document_file} is empty.")
    model, tokenizer = open_writer(args)
    set_seed(args.seed)
    conversation = Conversation(model, tokenizer, document, args.prefill_chunk_size, **options(args, model))
    if document:
        tell_length(conversation, model)
    if tokenizer.chat_template is None:
        print("The model has no chat template: it continues the text.", file=sys.stderr)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    for question in args.questions or lines():
        if args.questions:
            conversation.forget()
            print(f"> {question}")
        try:
            conversation.ask(question, streamer)
        except IndexError as error:  # past the end of a table of learned positions
            raise UserError(f"this model cannot read so many tokens: {error}") from None


if __name__ == "__main__":
    main()
