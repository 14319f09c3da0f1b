"""Write a small Whisper with random weights and the vocabulary of another model's tokenizer.

The Python of the engine's environment runs `make_tiny_whisper.py TOKENIZER_FOLDER FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

END, START = "<|endoftext|>", "<|startoftranscript|>"
SPECIAL = [END, START, "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
SIZE = 64
MEL_BINS = 80


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    words = json.loads((source / "tokenizer.json").read_text())["model"]
    merges = [each if isinstance(each, list) else each.split() for each in words["merges"]]
    tokenizer = WhisperTokenizerFast(
        vocab=words["vocab"],
        merges=[tuple(each) for each in merges],
        unk_token=END,
        bos_token=END,
        eos_token=END,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL})
    end, start = tokenizer.convert_tokens_to_ids([END, START])
    special = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=SIZE,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=SIZE,
            decoder_ffn_dim=SIZE,
            num_mel_bins=MEL_BINS,
            init_std=0.3,
            **special,
        )
    )
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(target)
    WhisperProcessor(WhisperFeatureExtractor(MEL_BINS), tokenizer).save_pretrained(target)


main()
