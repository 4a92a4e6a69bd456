"""AutoModelForCausalLM loads packed models: the same logits, biases, tied heads, half precision, saved again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import compress_core.pack
from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.matrix import MatrixKey
from compress_core.pack import CompressedLinear, PackedModel, write_packed_model
from compress_core.pack.layout import FILE_NAME, weight_files
from compress_core.pack.quantizer import BitbudgetConfig
from compress_core.text.tokens import TokenWindows

MENU = (
    CompressionConfig(b_q=2, rank=4, codebook="e8", iterations=1),
    CompressionConfig(b_q=3, rank=3, factor_bits=(16, 8), codebook="scalar", iterations=1),
    CompressionConfig(b_q=4, codebook="rtn"),
    CompressionConfig(b_q=3, codebook="e8", seed=7, iterations=1),
    CompressionConfig(b_q=6, codebook="scalar", iterations=1),
    CompressionConfig(b_q=3, rank=2, codebook="trellis", states=256, iterations=1),
)
_RTN = CompressionConfig(b_q=4, codebook="rtn")
#: for the six layers of a larger model: q, k, v, o, gate, up, down of the first, where only small matrices get what
#: takes long to compress; the others go quickly
QUICK_MENU = (
    _RTN,
    CompressionConfig(b_q=3, rank=4, codebook="trellis", states=256, iterations=1),
    CompressionConfig(b_q=2, codebook="e8"),
    CompressionConfig(b_q=3, codebook="gptq"),
    CompressionConfig(b_q=5, codebook="scalar"),
    _RTN,
    CompressionConfig(b_q=3, codebook="gptq"),
    *[_RTN] * 35,
)
FAMILIES = ("qwen2", "llama", "mistral")
#: in one process, which packs each model once
pytestmark = pytest.mark.xdist_group("transformers")
#: float32 rounding of logits of size ~10 through a few layers
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def _pack(path: Path, out: Path, menu: tuple[CompressionConfig, ...] = MENU) -> Path:
    checkpoint = open_checkpoint(path)
    items: dict[MatrixKey, CompressionConfig] = {
        spec.key: menu[n % len(menu)] for n, spec in enumerate(checkpoint.matrices())
    }
    assert write_packed_model(checkpoint, None, items, out).exact
    return out


@pytest.fixture(scope="module")
def packed(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packed")
    return {family: _pack(tiny_checkpoints[family], root / family) for family in FAMILIES}


def _dequantised(source: Path, packed_dir: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The original model with every compressed weight replaced by what it decodes to."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    read = PackedModel.open(packed_dir)
    with torch.no_grad():
        for spec in open_checkpoint(source).matrices():
            model.get_parameter(spec.tensor_name).copy_(read.weight(spec.key))
    return model


def _load(path: Path, **options: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **options})


def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def ids(random_windows: Callable[..., TokenWindows]) -> torch.Tensor:
    return torch.from_numpy(random_windows(3, 20).ids).long()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dequantised_model(
    packed: dict[str, Path], tiny_checkpoints: dict[str, Path], ids: torch.Tensor, family: str
) -> None:
    expected = _dequantised(tiny_checkpoints[family], packed[family])
    on_the_fly, info = _load(packed[family], output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    layers = [module for module in on_the_fly.modules() if isinstance(module, CompressedLinear)]
    assert len(layers) == 7 * 3
    torch.testing.assert_close(_logits(on_the_fly, ids), _logits(expected, ids), **TOLERANCE)
    once = _load(packed[family], dequantize=True)
    assert not any(isinstance(module, CompressedLinear) for module in once.modules())
    for name, weight in expected.state_dict().items():
        assert torch.equal(once.state_dict()[name], weight), name
    assert torch.equal(_logits(once, ids), _logits(expected, ids))


def test_biases_and_tied_heads_are_kept(packed: dict[str, Path], tiny_checkpoints: dict[str, Path]) -> None:
    source = AutoModelForCausalLM.from_pretrained(tiny_checkpoints["qwen2"], dtype=torch.float32)
    for options in ({}, {"dequantize": True}):
        model = _load(packed["qwen2"], **options)
        for layer, original in zip(model.model.layers, source.model.layers, strict=True):
            for name in ("q_proj", "k_proj", "v_proj"):
                bias = getattr(original.self_attn, name).bias
                assert bias.abs().max() > 0
                assert torch.equal(getattr(layer.self_attn, name).bias, bias)
            assert layer.self_attn.o_proj.bias is None
        assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = _load(packed["llama"])
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert isinstance(untied.lm_head, nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(
    packed: dict[str, Path], tiny_checkpoints: dict[str, Path], ids: torch.Tensor, family: str, dtype: torch.dtype
) -> None:
    model = _load(packed[family], dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    logits = _logits(model, ids)
    assert logits.dtype == dtype
    expected = _logits(_dequantised(tiny_checkpoints[family], packed[family]), ids)
    # half-precision activations are what is left of the difference: no worse than a dense model in that precision
    dense = _logits(_load(packed[family], dtype=dtype, dequantize=True), ids)
    error, dense_error = (logits - expected).norm(), (dense - expected).norm()
    assert error <= 1.5 * dense_error
    assert dense_error < 0.05 * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_stays_packed(packed: dict[str, Path], family: str) -> None:
    model = _load(packed[family])
    read = PackedModel.open(packed[family])
    packed_bytes = sum(b.nbytes for name, b in model.named_buffers() if name.endswith(".packed"))
    assert packed_bytes == sum(read.matrix(key).nbytes for key in read.keys())  # noqa: SIM118
    assert not any(name.endswith("_proj.weight") for name in model.state_dict())


@pytest.mark.parametrize("shard_size", ["50GB", "40kB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_again_it_loads_bit_equal(
    packed: dict[str, Path], ids: torch.Tensor, tmp_path: Path, family: str, shard_size: str
) -> None:
    model = _load(packed[family])
    model.save_pretrained(tmp_path / "again", max_shard_size=shard_size)
    again = _load(tmp_path / "again")
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert torch.equal(_logits(again, ids), _logits(model, ids))
    once = _load(tmp_path / "again", dequantize=True)
    assert torch.equal(_logits(once, ids), _logits(_load(packed[family], dequantize=True), ids))
    original, copied = PackedModel.open(packed[family]), PackedModel.open(tmp_path / "again")
    assert (len(weight_files(copied.path)) > 1) == (shard_size != "50GB")
    assert copied.keys() == original.keys()
    assert all(torch.equal(copied.weight(key), original.weight(key)) for key in original.keys())  # noqa: SIM118


def test_dequantised_models_are_ordinary_ones(packed: dict[str, Path], ids: torch.Tensor, tmp_path: Path) -> None:
    once = _load(packed["qwen2"], dequantize=True)
    later = _load(packed["qwen2"]).dequantize()
    assert torch.equal(_logits(later, ids), _logits(once, ids))
    for number, model in enumerate((once, later)):
        model.save_pretrained(tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert not {"quantization_config", "dequantize"} & config.keys()
        assert torch.equal(_logits(_load(tmp_path / str(number)), ids), _logits(once, ids))
        open_checkpoint(tmp_path / str(number))


def test_it_generates_what_the_dequantised_model_does(
    packed: dict[str, Path], tiny_checkpoints: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(packed["qwen2"])
    prompt = tokenizer("Number 7 is followed by", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = _dequantised(tiny_checkpoints["qwen2"], packed["qwen2"]).generate(**prompt, **options)
    for load in ({}, {"dequantize": True}):
        assert torch.equal(_load(packed["qwen2"], **load).generate(**prompt, **options), expected)
    half = _load(packed["qwen2"], dtype=torch.bfloat16).generate(**prompt, **options)
    assert half.shape[1] > prompt["input_ids"].shape[1]


def test_the_decoder_alone_loads_and_saves_too(packed: dict[str, Path], ids: torch.Tensor, tmp_path: Path) -> None:
    decoder = AutoModel.from_pretrained(packed["qwen2"], dtype=torch.float32)
    whole = _load(packed["qwen2"])
    with torch.no_grad():
        expected = whole.model(ids).last_hidden_state
        assert torch.equal(decoder(ids).last_hidden_state, expected)
        decoder.save_pretrained(tmp_path / "decoder")
        again = AutoModel.from_pretrained(tmp_path / "decoder", dtype=torch.float32)
        assert torch.equal(again(ids).last_hidden_state, expected)
        # Qwen2's head is the embedding, which the decoder has
        assert torch.equal(_logits(_load(tmp_path / "decoder"), ids), _logits(whole, ids))


def test_options_that_would_be_dropped_are_refused(packed: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="dequantize=True to from_pretrained itself"):
        BitbudgetConfig(dequantize=True)
    with pytest.raises(ConfigError, match="no 'bits'"):
        BitbudgetConfig(bits=4)


def _copy_with(packed_dir: Path, out: Path, **changes: object) -> Path:
    shutil.copytree(packed_dir, out)
    config = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_what_does_not_fit_is_named(packed: dict[str, Path], tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    newer = {"quant_method": "bitbudget", "version": "3"}
    with pytest.raises(PackedFormatError, match=r"format version '3', this release reads version '2'"):
        _load(_copy_with(packed["qwen2"], tmp_path / "newer", quantization_config=newer))
    with pytest.raises(PackedFormatError, match=r"gate_proj is packed as \(84, 48\), config.json makes it \(88, 48\)"):
        _load(_copy_with(packed["qwen2"], tmp_path / "wider", intermediate_size=88))
    with pytest.raises(PackedFormatError, match=r"layers\.2\.self_attn\.q_proj.packed has no place"):
        _load(_copy_with(packed["qwen2"], tmp_path / "shorter", num_hidden_layers=2, layer_types=None))
    with pytest.raises(PackedFormatError, match=r"3 layers are packed, config.json has 4"):
        _load(_copy_with(packed["qwen2"], tmp_path / "longer", num_hidden_layers=4, layer_types=None))
    with pytest.raises(ConfigError, match="dequantize must be true or false, not 'no'"):
        _load(packed["qwen2"], dequantize="no")
    dense = _copy_with(packed["qwen2"], tmp_path / "dense")
    shutil.copy(tiny_checkpoints["qwen2"] / "model.safetensors", dense / FILE_NAME)
    with pytest.raises(PackedFormatError, match="no packed model"):
        _load(dense)
    config = AutoConfig.from_pretrained(packed["qwen2"])
    model = _load(packed["qwen2"])
    with pytest.raises(PackedFormatError, match="loaded from its directory"):
        type(model).from_pretrained(None, config=config, state_dict=model.state_dict())


def _round_trip(path: Path, out: Path, prompt: str, menu: tuple[CompressionConfig, ...]) -> None:
    _pack(path, out, menu)
    assert compress_core.pack.PackedModel.open(out).nbytes == (out / FILE_NAME).stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer(prompt, return_tensors="pt").input_ids
    model, expected = _load(out), _dequantised(path, out)
    torch.testing.assert_close(_logits(model, text), _logits(expected, text), **TOLERANCE)
    assert torch.equal(_logits(_load(out, dequantize=True), text), _logits(expected, text))
    model.save_pretrained(out.with_name("again"))
    assert torch.equal(_logits(_load(out.with_name("again")), text), _logits(model, text))
    generated = model.generate(text, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, expected.generate(text, max_new_tokens=8, do_sample=False))


def test_the_demo_model_round_trips(repo: Path, tmp_path: Path) -> None:
    _round_trip(repo / "demo" / "model", tmp_path / "demo", "The file is opened for reading, and", QUICK_MENU)


def test_a_real_model_round_trips(shared_data: Path, tmp_path: Path) -> None:
    _round_trip(shared_data / "models" / "stories260K", tmp_path / "stories", "Once upon a time there was", MENU)
