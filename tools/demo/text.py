"""The demo models' tokenizer, learned from their captions, and their text encoders, of transformers' CLIP and T5 classes."""

import json
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

LENGTH = 24  # prompts are padded to this number of tokens


def tokenizer(captions: Iterable[str], size: int = 1024) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level pairs, so that it can spell any prompt) to which the captions' words are single tokens."""
    pairs = Tokenizer(BPE(end_of_word_suffix="</w>"))
    pairs.normalizer = Lowercase()
    pairs.pre_tokenizer = Sequence([WhitespaceSplit(), ByteLevel(add_prefix_space=False, use_regex=False)])
    bytes_ = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False)
    pairs.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(pairs.to_str())["model"]["merges"]]
    pieces = [*bytes_, *(b + "</w>" for b in bytes_), *dict.fromkeys("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=LENGTH)


def text_encoder(words: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """An untrained CLIP text encoder over `words`.

    Word vectors start with unit variance, not CLIP's 0.0004: from there, without CLIP's own objective, all sentences stayed
    alike after 50,000 samples.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder


def t5_encoder(words: CLIPTokenizer, width: int, layers: int) -> T5EncoderModel:
    """An untrained T5 encoder over `words`. Its positions are relative, so a prompt may be padded to any length."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words), d_model=width, d_kv=16, d_ff=4 * width, num_layers=layers, num_heads=width // 16,
            dropout_rate=0.0, feed_forward_proj="gated-gelu", pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
        )
    )  # fmt: skip
