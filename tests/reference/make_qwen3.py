"""Writes what Hugging Face's PyTorch Qwen3 computes with random weights; the tests only read it.

Made with torch 2.13.0, transformers 5.23.0, safetensors 0.8.0, by
`python tests/reference/make_qwen3.py`.
qwen3.safetensors has the parameters, qwen3.npz tokens with their valid places, logits of one pass,
and logits of step-by-step decoding with the cache.
"""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

FOLDER = pathlib.Path(__file__).parent / "qwen3"


def network():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=40,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms near 1, everything else large enough to matter.
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


@torch.no_grad()
def main():
    FOLDER.mkdir(exist_ok=True)
    model = network()
    assert model.config.rope_parameters["rope_theta"] == 1e6
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, (3, 13))
    lengths = np.array([13, 9, 1])
    valid = np.arange(13) < lengths[:, None]
    # Right-padded rows: under the causal mask padding is after everything that counts.
    whole = model(torch.tensor(tokens)).logits.numpy()
    steps, past = [], None
    for place in range(tokens.shape[1]):
        out = model(
            torch.tensor(tokens[:, place : place + 1]), past_key_values=past, use_cache=True
        )
        past = out.past_key_values
        steps.append(out.logits[:, 0].numpy())
    save_file(dict(model.named_parameters()), FOLDER / "qwen3.safetensors")
    np.savez(
        FOLDER / "qwen3.npz",
        tokens=tokens.astype(np.int32),
        valid=valid,
        logits=whole,
        cached_logits=np.stack(steps, 1),
    )


if __name__ == "__main__":
    main()
