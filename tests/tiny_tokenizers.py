"""Tokenizers of a few hundred tokens, of the kinds that causal models have. No network, no files."""

from typing import Any

CORPUS = ["The cat sat on a mat.", "Is it so? Answer: right, wrong or neither.", "It is so, it is not so."] * 5
CHAT = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def byte_level(before: str, behind: str) -> Any:
    """As GPT-2's kin, with special tokens around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {behind}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(inner)


def sentence_piece() -> Any:
    """As Llama-2's: a text that stands alone gets a space before it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>", "<s>", "</s>"])
    inner.train_from_iterator(" ".join([*CORPUS, "right wrong"]).split(), trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(inner)


def wrapped(inner: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    words.pad_token, words.padding_side, words.chat_template = "</s>", "left", CHAT
    return words


KINDS = {
    "as it is": lambda: byte_level("", ""),
    "begin": lambda: byte_level("<s>", ""),
    "end": lambda: byte_level("", "</s>"),
    "begin and end": lambda: byte_level("<s>", "</s>"),
    "sentence piece": sentence_piece,
}
