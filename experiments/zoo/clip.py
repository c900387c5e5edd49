"""Train a small CLIP on the captions and pictures of the emoji set.

    python experiments/zoo/clip.py                          # text encoder of emoji_unet
    python experiments/zoo/clip.py --name judge --seed 1    # judge of the CLIP score

They are written to store/zoo/clip/ and store/zoo/judge/. Pictures with the same caption in another
style are negatives like any other.

References:
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
        section 2.3: the symmetric contrastive loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F
from training import arguments, emoji_set, fit, halved, to_tensor

if TYPE_CHECKING:
    import argparse

    from tokenizers import Regex
    from transformers import CLIPModel, CLIPTokenizer

MAX_LENGTH = 24  # tokens; the longest caption (a subdivision flag) is cut


def tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer with a vocabulary of our captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=word_pattern(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2046,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = dict(model["vocab"])
    for symbol in alphabet:  # CLIPTokenizer looks every last byte of a word up with its suffix
        vocab.setdefault(f"{symbol}</w>", len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    trained = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    trained.save_pretrained(folder)
    return trained


def word_pattern() -> Regex:
    """The word pattern of CLIP's tokenizer."""
    from tokenizers import Regex

    return Regex(
        r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    )


def model(vocab: CLIPTokenizer, args: argparse.Namespace) -> CLIPModel:
    """A CLIP with random weights."""
    from transformers import CLIPConfig, CLIPModel

    ids = {
        "bos_token_id": vocab.bos_token_id,
        "eos_token_id": vocab.eos_token_id,
        "pad_token_id": vocab.pad_token_id,
    }
    text = {
        "vocab_size": len(vocab),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        **ids,
    }
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    torch.manual_seed(args.seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def main() -> None:
    parser = arguments(__doc__, steps=2400, batch=192, lr=1e-3, ema=0.99)
    parser.add_argument("--name", default="clip", help="folder under --store")
    args = parser.parse_args()
    from transformers import CLIPImageProcessorPil

    images, rows = emoji_set(args.store)
    folder = args.store / args.name
    words = [row["caption"] for row in rows] + [", ".join(row["tags"]) for row in rows]
    vocab = tokenizer(words, folder)
    pixels = F.pad(to_tensor(images), (2, 2, 2, 2), value=1.0)
    clip = model(vocab, args)
    print(f"{sum(p.numel() for p in clip.parameters()):,} parameters, {len(vocab)} tokens")

    rng = np.random.default_rng(args.seed)
    mean, std = 0.5, 0.5

    def caption_of(row: dict) -> str:
        """The caption; one time in three another of the emoji's names, so that words of held-out
        captions are seen.
        """
        if row["tags"] and rng.random() < 1 / 3:
            chosen = rng.choice(row["tags"], size=min(2, len(row["tags"])), replace=False)
            return f"{' '.join(chosen)}, {row['style']}"
        return row["caption"]

    def loss_of(batch: np.ndarray) -> torch.Tensor:
        tokens = vocab(
            [caption_of(rows[i]) for i in batch],
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        dy, dx = rng.integers(0, 5, size=2)
        pictures = pixels[batch][:, :, dy : dy + 32, dx : dx + 32]
        with halved():
            out = clip(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                pixel_values=pictures,
            )
            logits = out.logits_per_text.float()
        # Two styles of one emoji share most words: a soft target would be no wrong answer, but
        # captions name the style.
        target = torch.arange(len(batch))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    train = np.flatnonzero([not row["held_out"] for row in rows])
    fit(clip, loss_of, train, args.store / f"{args.name}.safetensors", args)
    clip.half().save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**processor, image_mean=[mean] * 3, image_std=[std] * 3).save_pretrained(
        folder
    )


if __name__ == "__main__":
    main()
