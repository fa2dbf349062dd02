"""Writes what Hugging Face's PyTorch T5 computes with random weights; the tests only read it.

Made with torch 2.13.0, transformers 5.23.0, safetensors 0.8.0: `python tests/reference/make_t5.py`.
For each version: NAME.safetensors with the parameters' names, and NAME.npz with tokens, logits
of one pass, and logits of step-by-step decoding with the cache. buckets.npz: relative positions.
"""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

FOLDER = pathlib.Path(__file__).parent / "t5"
VERSIONS = {
    "t5_v1_0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_v1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def network(settings):
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=40,
            d_model=12,
            d_kv=5,
            d_ff=20,
            num_layers=2,
            num_heads=3,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            decoder_start_token_id=0,
            **settings,
        )
    ).eval()
    if not settings["tie_word_embeddings"]:
        # transformers 5 ties what it creates, whatever the setting; a loaded 1.1 is not tied.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms near 1, everything else large enough to matter.
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def tokens():
    rng = np.random.default_rng(0)
    inputs = rng.integers(1, 40, (3, 24))
    inputs[1, 17:] = 0
    inputs[2, 1:] = 0
    targets = rng.integers(1, 40, (3, 9))
    return inputs, np.concatenate([np.zeros((3, 1), int), targets[:, :-1]], 1), targets


@torch.no_grad()
def logits(model, inputs, shifted):
    given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(inputs > 0).long()}
    whole = model(**given, decoder_input_ids=torch.tensor(shifted)).logits.numpy()
    encoded = model.encoder(**given)
    steps, past = [], None
    for place in range(shifted.shape[1]):
        out = model(
            encoder_outputs=encoded,
            attention_mask=given["attention_mask"],
            decoder_input_ids=torch.tensor(shifted[:, place : place + 1]),
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        steps.append(out.logits[:, 0].numpy())
    return whole, np.stack(steps, 1)


def main():
    FOLDER.mkdir(exist_ok=True)
    inputs, shifted, targets = tokens()
    for name, settings in VERSIONS.items():
        model = network(settings)
        save_file(dict(model.named_parameters()), FOLDER / f"{name}.safetensors")
        whole, steps = logits(model, inputs, shifted)
        np.savez(
            FOLDER / f"{name}.npz",
            inputs=inputs.astype(np.int32),
            shifted=shifted.astype(np.int32),
            targets=targets.astype(np.int32),
            logits=whole,
            cached_logits=steps,
        )
    relative = torch.arange(-300, 301)
    buckets = {
        str(both): T5Attention._relative_position_bucket(relative, both, 32, 128).numpy()
        for both in (True, False)
    }
    np.savez_compressed(FOLDER / "buckets.npz", relative=relative.numpy(), **buckets)


if __name__ == "__main__":
    main()
