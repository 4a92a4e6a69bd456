"""The demo model's shape: a small Qwen2, so that what works on it works on its big relatives."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

VOCAB_SIZE = 4096


def demo_config() -> Qwen2Config:
    """5.4 M parameters: grouped-query attention, q/k/v biases, tied head, FFN width 688 = 5·128 + 48."""
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=True,
    )


def new_model(seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised model in float32; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(demo_config())
    model.generation_config = GenerationConfig(
        eos_token_id=0, pad_token_id=0, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=128
    )
    return model


def optimizers(model: Qwen2ForCausalLM, *, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's matrices; AdamW for the tied embedding, the norms and the biases."""
    hidden: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    embedding: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        group = embedding if "embed_tokens" in name else hidden if parameter.ndim == 2 else vectors
        group.append(parameter)
    adam_groups = [
        {"params": embedding, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr=muon_lr, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(adam_groups, lr=adam_lr, betas=(0.9, 0.95), eps=1e-8),
    ]
