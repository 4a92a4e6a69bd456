"""The committed demo model is what its card says, and its recorded figures can be had again."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress_core.text.stdlib import SEPARATOR, split_text
from demo import report

FOLDER = Path(report.__file__).parent / "model"
EVERY = 92
"""One window in so many of the report split: 8 of them, from all over it."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than they give where tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / report.RECORD).read_text())


def test_shape_exercises_what_big_models_have(model):
    config, attention = model.config, model.model.layers[0].self_attn
    assert config.model_type == "qwen2"
    assert config.num_key_value_heads < config.num_attention_heads
    assert all(p.bias is not None and p.bias.abs().max() > 0 for p in (attention.q_proj, attention.k_proj))
    assert attention.v_proj.bias is not None
    assert attention.o_proj.bias is None
    assert config.intermediate_size % 128 != 0
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_stored_size_and_type(model):
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size < 12_000_000
    assert AutoModelForCausalLM.from_pretrained(FOLDER).dtype == torch.bfloat16
    parameters = sum(p.numel() for p in model.parameters())
    assert 4.5e6 < parameters < 6e6


def test_tokenizer_reads_the_same_through_transformers_and_through_its_file(tokenizer):
    text = split_text("select")[:50_000]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < len(tokenizer) == 4096
    lengths = report.byte_lengths(tokenizer)
    assert sum(lengths[i] for i in ids) == len(text.encode())
    assert tokenizer(SEPARATOR).input_ids == [tokenizer.eos_token_id]


def test_it_continues_a_prompt(model, tokenizer):
    prompt = tokenizer("def __init__(self", return_tensors="pt")
    torch.manual_seed(0)
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("def __init__(self")


def test_rounding_hurts_as_recorded(model, tokenizer, record):
    ids_NT = report.windows(tokenizer, split_text("report"))[::EVERY]
    original = report.score(model, tokenizer, ids_NT)
    ratio = {
        bits: report.score(report.rounded(model, bits), tokenizer, ids_NT).perplexity / original.perplexity
        for bits in report.RTN_BITS
    }
    assert ratio[4] <= 1.1
    assert ratio[4] < ratio[3] < ratio[2]
    assert ratio[2] >= 2.0
    assert original.bits_per_byte == pytest.approx(record["heldout"]["bits_per_byte"], rel=0.25)
    assert ratio[4] == pytest.approx(record["heldout"]["rtn_ratio"]["4"], rel=0.05)


def test_record_meets_the_demo_s_needs_and_names_no_machine(record):
    heldout, training = record["heldout"], record["training"]
    assert heldout["rtn_ratio"]["4"] <= 1.1
    assert heldout["rtn_ratio"]["2"] >= 2.0
    assert heldout["bytes"] >= 300_000
    assert training["loss_curve"][-1]["heldout_loss"] < training["loss_curve"][0]["heldout_loss"]
    assert {"seed", "tokens", "minutes", "device", "versions", "corpus"} <= training.keys()
    for path in FOLDER.glob("*.json"):
        if path.name != "tokenizer.json":
            assert not any(root in path.read_text() for root in ("/root", "/home", "/tmp", "/work", "C:\\"))
