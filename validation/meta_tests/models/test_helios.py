import dataclasses
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from diffusers.models.transformers.transformer_helios import HeliosTransformerBlock
from safetensors.torch import load_file, save_file
from torch import Tensor

from validation.errors import UsageError
from validation.files import FIXTURES
from validation.meta_tests.model_op_sets import reference
from validation.meta_tests.sampled_models import TINY
from validation.models.helios import loading, sampling, sites
from validation.models.mount import SiteCall, SiteError
from validation.models.prompts import PROMPT_TOKENS, Prompt, embed_prompt
from validation.ops import OpSet
from validation.verdict import Status

SITE_SETS = [*((name,) for name in sites.SITE_NAMES), sites.SITE_NAMES]

PROMPT = Prompt("ball", "a red ball", seed=0, height=32, width=48, frames=33, steps=2, guidance_scale=3.0)


def transformer(dtype: torch.dtype = torch.float32, **settings: Any) -> HeliosTransformer3DModel:
    """A transformer of two small layers in which every parameter matters."""
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "rope_dim": (8, 4, 4),
        "num_layers": 2,
        "ffn_dim": 48,
        "freq_dim": 16,
        "text_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
    }
    model = HeliosTransformer3DModel(**{**sizes, **settings}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    sites.cast_parameters(model, dtype)
    for block in model.blocks:
        if model.config.is_amplify_history:
            # In float32 it would make the keys float32, which diffusers 0.42's attention refuses.
            block.attn1.history_key_scale.data = block.attn1.history_key_scale.data.to(dtype)
    return model


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline() -> HeliosPipeline:
    return loading.load(TINY, torch.bfloat16, "cpu")


def frames_of(pipeline: HeliosPipeline, prompt: Prompt) -> sampling.Frames:
    return sampling.decode(pipeline, sampling.sample(pipeline, prompt).latents, prompt.frames)


# Mounting


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("guidance", [True, False], ids=["guidance_cross_attn", "no_guidance"])
@pytest.mark.parametrize("amplify", [True, False], ids=["is_amplify_history", "no_amplify"])
def test_mounted_reference_ops_are_bit_identical(dtype: torch.dtype, guidance: bool, amplify: bool) -> None:
    model = transformer(dtype, guidance_cross_attn=guidance, is_amplify_history=amplify)
    for batch in (1, 2):
        for history in (False, True):
            inputs = sites.random_inputs(model, batch=batch, history=history, seed=2)
            untouched = model(**inputs, return_dict=False)[0]
            assert untouched.isfinite().all()
            for names in SITE_SETS:
                with sites.mount(model, reference(), names) as mounted:
                    output = model(**inputs, return_dict=False)[0]
                assert torch.equal(output, untouched), (batch, history, names)
                assert output.dtype == untouched.dtype == dtype
                assert mounted.calls == {site.name: site.calls for site in mounted.sites.values()}
            assert torch.equal(model(**inputs, return_dict=False)[0], untouched)


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_attn_norm": False},
        {"zero_history_timestep": False},
        {"is_amplify_history": True, "history_scale_mode": "scalar"},
        {"eps": 1e-2},
        {"num_layers": 1, "patch_size": (1, 1, 1)},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_other_configurations_are_bit_identical_too(settings: dict[str, Any]) -> None:
    model = transformer(torch.bfloat16, **settings)
    inputs = sites.random_inputs(model, batch=2, history=settings.get("patch_size") is None, seed=3)
    untouched = model(**inputs, return_dict=False)[0]
    with sites.mount(model, reference()) as mounted:
        assert torch.equal(model(**inputs, return_dict=False)[0], untouched)
    assert ("norm2" in mounted.sites) == settings.get("cross_attn_norm", True)


def test_modulation_of_one_row_an_item_is_bit_identical() -> None:
    model = transformer(torch.bfloat16, guidance_cross_attn=False)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(2, 6, 32, generator=generator).bfloat16()
    text = torch.randn(2, 3, 32, generator=generator).bfloat16()
    modulation = torch.randn(2, 6, 32, generator=generator).bfloat16()
    rotary = torch.randn(2, 6, 32, generator=generator)
    untouched = model.blocks[0](hidden, text, modulation, rotary, 6)
    with sites.mount(model, reference()):
        assert torch.equal(model.blocks[0](hidden, text, modulation, rotary, 6), untouched)


def test_each_site_matters_to_the_output() -> None:
    """Otherwise bit identity would show nothing."""
    model = transformer(guidance_cross_attn=True)
    inputs = sites.random_inputs(model, batch=1, history=True, seed=2)
    untouched = model(**inputs, return_dict=False)[0]
    for site in sites.sites_of(model.config):
        exact = reference()[site.op]
        ops = reference(**{site.op: lambda x, *a, exact=exact, **o: 1.5 * exact(x, *a, **o)})
        with sites.mount(model, ops, [site.name]):
            assert not torch.allclose(model(**inputs, return_dict=False)[0], untouched, rtol=1e-2), site.name


def test_modulation_and_rotary_reach_the_ops_as_views() -> None:
    model = transformer(torch.bfloat16)
    seen: dict[str, list[tuple[Tensor, ...]]] = {"norm": [], "gate": [], "rope": []}

    def spy(kind: str, name: str) -> Any:
        def op(*arguments: Tensor, **options: Any) -> Any:
            seen[kind].append(arguments)
            return reference()[name](*arguments, **options)

        return op

    ops = reference(
        layer_norm_scale_shift=spy("norm", "layer_norm_scale_shift"),
        residual_gate_add=spy("gate", "residual_gate_add"),
        rotary_embedding=spy("rope", "rotary_embedding"),
    )
    with sites.mount(model, ops):
        model(**sites.random_inputs(model, batch=2, history=True, seed=5), return_dict=False)
    width = 32
    *blocks, norm_out = seen["norm"]
    tokens = blocks[0][0].shape[1]
    for _x, shift, scale in blocks:
        assert shift.dtype == scale.dtype == torch.float32
        assert shift.shape == scale.shape == (2, tokens, width)
        assert shift.untyped_storage().data_ptr() == scale.untyped_storage().data_ptr()
        assert {shift.stride(1), scale.stride(1)} <= {width, 6 * width}
        assert scale.untyped_storage().nbytes() == 4 * 2 * tokens * 6 * width
    gates = {gate.untyped_storage().data_ptr() for _residual, _x, gate in seen["gate"]}
    assert len(gates) == len({shift.untyped_storage().data_ptr() for _x, shift, _scale in blocks})
    assert norm_out[0].shape == norm_out[1].shape == (2, 2 * 2 * 3, width)
    assert norm_out[0].untyped_storage().nbytes() == 2 * 2 * tokens * width  # a slice of all tokens, in bfloat16
    for x, cos, sin in seen["rope"]:
        assert x.shape == (2, tokens, 2, 16)
        assert cos.shape == sin.shape == (tokens, 8)
        assert cos.stride() == sin.stride() == (32, 2)


def test_sites_that_the_set_lacks_run_diffusers_code() -> None:
    model = transformer()
    norm = {"layer_norm_scale_shift": reference()["layer_norm_scale_shift"]}
    with sites.mount(model, OpSet("norm", norm, "norm.py")) as mounted:
        assert tuple(mounted.sites) == ("norm1", "norm3", "norm_out")
        assert all("forward" not in vars(block.attn1.norm_q) for block in model.blocks)
    with sites.mount(model, reference(), ["qk_norm"]):
        assert all("forward" not in vars(block) for block in model.blocks)


def test_unmount_restores_exactly() -> None:
    model = transformer()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with sites.mount(model, reference()):
        assert {name: dict(vars(module)) for name, module in model.named_modules()} != before
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_second_mount_is_refused_and_leaves_the_first() -> None:
    model = transformer()
    inputs = sites.random_inputs(model, batch=1, history=False, seed=0)
    with sites.mount(model, reference(), ["norm_out", "qk_norm"]) as first:
        with pytest.raises(UsageError, match="replaced already"):
            sites.mount(model, reference(), ["norm_out", "gate"])
        model(**inputs, return_dict=False)
        assert first.forwards == 1
    assert "forward" not in vars(model.blocks[0])


def test_a_site_that_is_not_reached_is_an_error() -> None:
    model = transformer()
    with sites.mount(model, reference(), ["norm1", "norm_out"]):
        vars(model.norm_out).pop("forward")
        with pytest.raises(SiteError, match="norm_out was called 0 times in forward 1, expected 1") as caught:
            model(**sites.random_inputs(model, batch=1, history=False, seed=0), return_dict=False)
    assert caught.value.status is Status.SITE_NOT_REACHED


@pytest.mark.usefixtures("forget_proofs")
def test_a_diffusers_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = HeliosTransformerBlock.forward

    def moved(block: Any, hidden: Tensor, *arguments: Any) -> Any:
        return known(block, hidden * 1.01, *arguments)

    model = transformer()
    monkeypatch.setattr(HeliosTransformerBlock, "forward", moved)
    with pytest.raises(UsageError, match=r"diffusers .* does not compute what is replaced at norm1.*values differ"):
        sites.mount(model, reference(), ["norm1"])
    assert "forward" not in vars(model.blocks[0])


@pytest.mark.usefixtures("forget_proofs")
def test_a_diffusers_that_renamed_something_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformer()
    known = HeliosTransformerBlock.forward

    def renamed(block: Any, *arguments: Any) -> Any:
        norm3 = block._modules.pop("norm3", None) or block.norm_of_feed_forward
        block.norm_of_feed_forward = norm3
        try:
            return known(SimpleNamespace(**vars(block), **block._modules, **block._parameters, norm3=norm3), *arguments)
        finally:
            assert not hasattr(block, "norm3")

    monkeypatch.setattr(HeliosTransformerBlock, "forward", renamed)
    with pytest.raises(UsageError, match=r"diffusers .* does not compute what is replaced.*AttributeError.*norm3"):
        sites.mount(model, reference(), ["gate"])


def test_a_model_that_diffusers_itself_cannot_run_is_refused() -> None:
    model = transformer(torch.bfloat16, is_amplify_history=True)
    model.blocks[0].attn1.history_key_scale.data = torch.ones(2)
    with pytest.raises(UsageError, match=r"diffusers .* itself cannot run .*same dtype"):
        sites.mount(model, reference())


def test_other_models_and_dtypes_are_refused() -> None:
    class Own(HeliosTransformer3DModel):  # type: ignore[misc]
        pass

    model = transformer()
    own = Own(**{key: value for key, value in model.config.items() if not key.startswith("_")})
    with pytest.raises(UsageError, match="transformer is a Own, expected HeliosTransformer3DModel"):
        sites.mount(own, reference())
    with pytest.raises(UsageError, match="scale_shift_table has dtype bfloat16, expected float32"):
        sites.mount(model.to(torch.bfloat16), reference())


# Loading


def test_the_fixture_loads_as_in_production(pipeline: HeliosPipeline) -> None:
    dtypes = {name: parameter.dtype for name, parameter in pipeline.transformer.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == dtypes["proj_out.weight"] == torch.bfloat16
    for name in ("blocks.0.scale_shift_table", "norm_out.scale_shift_table", "blocks.2.norm2.weight"):
        assert dtypes[name] == torch.float32
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    assert not pipeline.transformer.training
    assert loading.load(TINY, torch.float32, "cpu").transformer.dtype == torch.float32


def test_the_recipe_makes_the_fixture(tmp_path: Path) -> None:
    runpy.run_path(str(FIXTURES / "recipes" / "helios_tiny.py"))["main"](tmp_path)
    files = sorted(path.relative_to(TINY) for path in TINY.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for name in files:
        if name.suffix == ".json":
            made, kept = (json.loads((root / name).read_text()) for root in (tmp_path, TINY))
            del made["_diffusers_version"], kept["_diffusers_version"]
            assert made == kept
            continue
        weights, expected = load_file(tmp_path / name), load_file(TINY / name)
        assert weights.keys() == expected.keys()
        for key, value in weights.items():
            # torch's normal numbers may differ in the last bits between kinds of processors.
            torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("transformer/config.json", "lacks transformer/config.json,"),
        ("transformer", "lacks transformer/config.json, transformer/diffusion_pytorch_model.safetensors "),
        ("vae/diffusion_pytorch_model.safetensors", "lacks vae/diffusion_pytorch_model.safetensors "),
        ("scheduler", "lacks scheduler/scheduler_config.json"),
        (".", "no folder .*, expected a Helios checkpoint in diffusers' format"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str, reason: str) -> None:
    folder = shutil.copytree(TINY, tmp_path / "copy")
    gone = folder / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UsageError, match=reason) as caught:
        loading.load(folder, torch.bfloat16, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "copy")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    names = sorted(tensors)
    shards = {"diffusion_pytorch_model-1.safetensors": names[::2], "diffusion_pytorch_model-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, weights.with_name(shard), {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    weights.with_name(weights.name + ".index.json").write_text(json.dumps(index))
    loaded = loading.load(folder, torch.bfloat16, "cpu").transformer.state_dict()
    assert torch.equal(loaded[names[1]], tensors[names[1]])
    weights.with_name("diffusion_pytorch_model-2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks transformer/diffusion_pytorch_model-2\.safetensors,"):
        loading.load(folder, torch.bfloat16, "cpu")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", ["truncated", "missing_key", "other_shape", "no_json", "class", "stages", "z_dim"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(TINY, tmp_path / "copy")
    weights, config = folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae" / "config.json"
    tensors = load_file(weights)
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
            reason = "cannot load .*vae"
        case "missing_key":
            del tensors["decoder.conv_out.bias"]
            save_file(tensors, weights, {"format": "pt"})
            reason = r"has 1 missing keys \(decoder\.conv_out\.bias\)"
        case "other_shape":
            tensors["decoder.conv_out.bias"] = torch.zeros(5)
            save_file(tensors, weights, {"format": "pt"})
            reason = "cannot load .*vae"
        case "no_json":
            config.write_text("{")
            reason = "cannot read .*config.json.*expected JSON"
        case "class":
            edit_json(config, _class_name="AutoencoderKL")
            reason = "is of class AutoencoderKL, expected AutoencoderKLWan"
        case "stages":
            (folder / "model_index.json").write_text('{"_class_name": "HeliosPipeline"}')
            edit_json(folder / "scheduler" / "scheduler_config.json", stages=3, stage_range=[0, 1 / 3, 2 / 3, 1])
            reason = "_class_name is HeliosPipeline, expected HeliosPyramidPipeline, as the scheduler .* of 3 stages"
        case "z_dim":
            transformer(torch.bfloat16).save_pretrained(folder / "transformer")
            reason = "VAE has z_dim 16, expected 4"
    with pytest.raises(UsageError, match=reason) as caught:
        loading.load(folder, torch.bfloat16, "cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_a_text_encoder_encodes_with_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = shutil.copytree(TINY, tmp_path / "copy")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "blue"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    with pytest.raises(UsageError, match="lacks text_encoder/,"):
        loading.load(folder, torch.bfloat16, "cpu")
    config = UMT5Config(vocab_size=7, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")

    loaded = loading.load(folder, torch.bfloat16, "cpu")
    assert loaded.text_encoder.dtype == torch.bfloat16
    red, blue = (
        sampling.sample(loaded, Prompt("p", text, 0, 32, 48, 33, 1, 1.0)) for text in ("a red ball", "a blue ball")
    )
    assert sampling.decode(loaded, red.latents, 33).shape == (33, 32, 48, 3)
    assert not torch.equal(red.latents[-1], blue.latents[-1])
    layer_wise = loading.load(folder, torch.bfloat16, "cpu", free_bytes=0)
    again = sampling.sample(layer_wise, Prompt("p", "a red ball", 0, 32, 48, 33, 1, 1.0))
    assert torch.equal(red.latents[-1], again.latents[-1])

    config.d_model = 16
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(UsageError, match="text encoder is 16 wide, expected 32"):
        loading.load(folder, torch.bfloat16, "cpu")


def test_blocks_that_visit_the_device_one_by_one_give_the_same_bits(
    pipeline: HeliosPipeline,
) -> None:
    layer_wise = loading.load(TINY, torch.bfloat16, "cpu", free_bytes=0)
    home = {p.data_ptr() for p in layer_wise.transformer.blocks.parameters()}
    there: list[list[bool]] = []

    def look(block: Any, _arguments: Any) -> None:
        of_block = {id(p) for p in block.parameters()}
        others = [p for p in layer_wise.transformer.blocks.parameters() if id(p) not in of_block]
        there.append([p.data_ptr() in home for p in block.parameters()] + [p.data_ptr() not in home for p in others])

    for block in layer_wise.transformer.blocks:
        block.register_forward_pre_hook(look)
    arms = []
    for loaded in (pipeline, layer_wise):
        with sites.mount(loaded.transformer, reference()) as mounted:
            arms.append(sampling.sample(loaded, PROMPT, mounted))
    assert all(torch.equal(a, b) for a, b in zip(arms[0].latents, arms[1].latents, strict=True))
    assert len(there) == 3 * mounted.forwards
    assert not any(map(any, there))  # the block is a copy, and the others are at home

    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise ValueError("no kernel")

    with sites.mount(layer_wise.transformer, reference(rms_norm=fails)) as mounted, pytest.raises(SiteError):
        sampling.sample(layer_wise, PROMPT, mounted)
    assert {p.data_ptr() for p in layer_wise.transformer.blocks.parameters()} == home


# Prompts


def test_embeddings_depend_on_words_and_their_order_alone() -> None:
    rows = embed_prompt("a Red  ball", 32)
    assert rows.shape == (1, PROMPT_TOKENS, 32)
    assert torch.equal(rows, embed_prompt("a red ball", 32))
    assert not rows[:, :4].eq(0).all(dim=-1).any()
    assert rows[:, 4:].eq(0).all()
    assert not torch.equal(rows, embed_prompt("ball red a", 32))
    assert 0.7 < rows[:, :4].std() < 1.3
    # Pinned: checkpoints trained on these embeddings must meet them again.
    torch.testing.assert_close(rows[0, 1, :2], embed_prompt("the red square", 32)[0, 1, :2])
    torch.testing.assert_close(rows[0, 0, :3], torch.tensor(PINNED), rtol=1e-4, atol=1e-5)


PINNED = [-1.513755, -0.225248, 0.216119]


def test_long_prompts_are_refused() -> None:
    embed_prompt("word " * (PROMPT_TOKENS - 1), 8)
    with pytest.raises(UsageError, match="has 16 words, expected at most 15"):
        embed_prompt("word " * PROMPT_TOKENS, 8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": []}, "has no list of prompts"),
        ({"prompts": [{"name": "x", "text": "x"}]}, "missing 1 required positional argument: 'seed'"),
        ({"colour": "red"}, "unexpected keyword argument 'colour', expected the fields name, text, seed"),
        ({"height": 60}, "height is 60, expected a multiple of 16"),
        ({"width": "96"}, "width is '96', expected int"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"guidance_scale": True}, "guidance_scale is True, expected float"),
        ({"prompts": [{"name": "../x", "text": "x", "seed": 0}]}, "name is '../x', expected lower-case letters"),
        ({"prompts": [{"name": "x", "text": "x", "seed": 0}] * 2}, "two prompts of one name and seed"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "prompts.json"
    shutil.copy(FIXTURES / "prompts" / "helios-tiny.json", path)
    if "seed" in changes:
        changes = {"prompts": [{"name": "x", "text": "x", **changes}]}
    edit_json(path, **changes)
    with pytest.raises(UsageError, match=reason):
        Prompt.read(path)


def test_every_prompt_fixture_reads() -> None:
    paths = sorted((FIXTURES / "prompts").glob("helios-*.json"))
    assert paths
    for path in paths:
        assert Prompt.read(path)


# Sampling


def test_sampling_is_what_the_bare_pipeline_gives(pipeline: HeliosPipeline) -> None:
    """Neither the callback nor the clock nor a mount of reference ops changes a bit."""
    frames = pipeline(
        prompt_embeds=embed_prompt(PROMPT.text, 32),
        negative_prompt_embeds=embed_prompt(PROMPT.negative_text, 32),
        height=PROMPT.height,
        width=PROMPT.width,
        num_frames=66,
        num_inference_steps=PROMPT.steps,
        guidance_scale=PROMPT.guidance_scale,
        generator=torch.Generator().manual_seed(PROMPT.seed),
        output_type="np",
    ).frames[0]
    prompt = Prompt(**{**vars(PROMPT), "frames": 66})
    told: list[str] = []
    bare = sampling.sample(pipeline, prompt, progress=told.append)
    assert sampling.decode(pipeline, bare.latents, 66).tobytes() == frames.tobytes()
    assert told == [f"step {n} of 4" for n in (1, 2, 3, 4)]
    with sites.mount(pipeline.transformer, reference()) as mounted:
        trajectory = sampling.sample(pipeline, prompt, mounted)
    assert all(torch.equal(a, b) for a, b in zip(trajectory.latents, bare.latents, strict=True))

    assert frames.shape == (65, 32, 48, 3)
    assert [latents.shape for latents in trajectory.latents] == [(1, 16, 9, 4, 6)] * 4
    assert mounted.forwards == 8  # two chunks of two steps, with and without the text
    assert mounted.calls["qk_norm"] == 8 * 12
    assert trajectory.seconds.keys() == {"encode", "denoise"}
    assert min(trajectory.seconds.values()) > 0


def test_the_seed_decides_everything(pipeline: HeliosPipeline) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = frames_of(pipeline, PROMPT)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(2)
    torch.manual_seed(2)
    again = frames_of(pipeline, PROMPT)
    assert torch.get_num_threads() == 2
    assert again.tobytes() == first.tobytes()
    other = frames_of(pipeline, Prompt(**{**vars(PROMPT), "seed": 1}))
    text = frames_of(pipeline, Prompt(**{**vars(PROMPT), "text": "a blue square"}))
    for another in (other, text):
        assert abs(another - first).mean() > 0.01


def test_noise_from_either_random_state_is_repeated(pipeline: HeliosPipeline) -> None:
    """The pipeline draws from its generator, and other code from torch's own state."""
    prompt = Prompt(**{**vars(PROMPT), "frames": 66})
    bare = frames_of(pipeline, prompt)

    def draw(_module: Any, _arguments: Any, output: tuple[Tensor]) -> tuple[Tensor]:
        return (output[0] + strength * torch.randn(output[0].shape).to(output[0].dtype),)

    hook = pipeline.transformer.register_forward_hook(draw)
    try:
        strength = 0.0
        assert frames_of(pipeline, prompt).tobytes() == bare.tobytes()
        strength = 0.1
        first = frames_of(pipeline, prompt)
        torch.manual_seed(99)
        second = frames_of(pipeline, prompt)
        assert first.tobytes() == second.tobytes() != bare.tobytes()
    finally:
        hook.remove()


def test_videos_have_contrast_and_motion() -> None:
    loaded = loading.load(TINY, torch.bfloat16, "cpu")
    for prompt in Prompt.read(FIXTURES / "prompts" / "helios-tiny.json"):
        frames = frames_of(loaded, prompt)
        assert 0.1 < frames.std() < 0.3
        assert frames.std(axis=(1, 2)).max() > 0.1
        assert abs(frames[1:] - frames[:-1]).mean() > 0.005
        assert ((frames <= 0) | (frames >= 1)).mean() < 0.03


def test_a_forward_past_the_mount_fails_the_sample(pipeline: HeliosPipeline) -> None:
    with sites.mount(pipeline.transformer, reference(), ["norm_out"]) as mounted:
        mounted.forwards = 1
        with pytest.raises(SiteError, match="5 forwards ran through the mounted model, expected 4"):
            sampling.sample(pipeline, PROMPT, mounted)


# The pyramid


def pyramid(folder: Path, scheduler: Any, **index: Any) -> Path:
    """A copy of the tiny checkpoint with another scheduler."""
    copy = shutil.copytree(TINY, folder / type(scheduler).__name__)
    shutil.rmtree(copy / "scheduler")
    scheduler.save_pretrained(copy / "scheduler")
    if index:
        (copy / "model_index.json").write_text(json.dumps({"_class_name": "HeliosPyramidPipeline", **index}))
    return copy


def bare_pyramid(pipeline: Any, prompt: Prompt) -> tuple[list[Tensor], Any]:
    """Latents after each step and frames, as diffusers' pipeline itself gives them."""
    latents: list[Tensor] = []

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].float())
        return {}

    torch.manual_seed(prompt.seed)
    guided = prompt.guidance_scale > 1
    frames = pipeline(
        prompt_embeds=embed_prompt(prompt.text, 32),
        negative_prompt_embeds=embed_prompt(prompt.negative_text, 32) if guided else None,
        height=prompt.height,
        width=prompt.width,
        num_frames=prompt.frames,
        pyramid_num_inference_steps_list=[prompt.steps] * pipeline.scheduler.config.stages,
        guidance_scale=prompt.guidance_scale,
        generator=torch.Generator().manual_seed(prompt.seed),
        output_type="np",
        callback_on_step_end=after_step,
    ).frames[0]
    return latents, frames


@pytest.mark.parametrize(
    ("scheduler", "guidance", "forwards"), [(HeliosDMDScheduler(), 1.0, 12), (HeliosScheduler(), 3.0, 24)]
)
def test_the_pyramid_is_sampled_like_the_other_pipeline(
    tmp_path: Path, scheduler: Any, guidance: float, forwards: int
) -> None:
    distilled = guidance == 1
    folder = pyramid(tmp_path, scheduler, is_distilled=distilled, is_cfg_zero_star=False)
    loaded = loading.load(folder, torch.bfloat16, "cpu")
    assert isinstance(loaded, HeliosPyramidPipeline)
    assert (loaded.config.is_distilled, type(loaded.scheduler)) == (distilled, type(scheduler))
    prompt = dataclasses.replace(PROMPT, height=64, width=64, frames=66, guidance_scale=guidance)
    loading.check_prompts(folder, [prompt])
    with sites.mount(loaded.transformer, reference()) as mounted:
        first = sampling.sample(loaded, prompt, mounted)
    second, frames = bare_pyramid(loaded, prompt)
    assert all(torch.equal(a, b) for a, b in zip(first.latents, second, strict=True))
    assert [t.shape[-1] for t in first.latents] == [2, 2, 4, 4, 8, 8] * 2
    assert len(first.latents) == sampling.steps_of(loaded, prompt) == 12
    assert mounted.forwards == forwards == len(first.latents) * sampling.forwards_per_step(prompt)
    assert mounted.calls["norm1"] == 3 * forwards
    assert frames.shape == (65, 64, 64, 3)
    assert sampling.decode(loaded, first.latents, prompt.frames).tobytes() == frames.tobytes()
    assert set(first.seconds) == {"encode", "denoise"}
    # The upsampling's noise is drawn from the prompt's generator.
    other = sampling.sample(loaded, dataclasses.replace(prompt, seed=1))
    assert not torch.equal(other.latents[2], first.latents[2])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ({"height": 48}, "height is 48, expected a multiple of 64: .* a pyramid of 3 stages"),
        ({"guidance_scale": 5.0}, "guidance_scale is 5, expected 1: .* is distilled"),
    ],
)
def test_what_a_distilled_pyramid_cannot_sample_is_refused(tmp_path: Path, prompt: dict[str, Any], reason: str) -> None:
    folder = pyramid(tmp_path, HeliosDMDScheduler())
    asked = dataclasses.replace(PROMPT, **({"height": 64, "width": 64, "guidance_scale": 1.0} | prompt))
    with pytest.raises(UsageError, match=reason):
        loading.check_prompts(folder, [asked])


@pytest.mark.parametrize("gamma", [1 / 3, 0.1])
def test_block_noise_has_the_published_covariance(tmp_path: Path, gamma: float) -> None:
    loaded: Any = loading.load(pyramid(tmp_path, HeliosDMDScheduler(gamma=gamma)), torch.bfloat16, "cpu")
    generator = torch.Generator().manual_seed(0)
    noise = loaded.sample_block_noise(2, 16, 9, 16, 32, (1, 2, 2), torch.device("cpu"), generator)
    assert noise.shape == (2, 16, 9, 16, 32)
    blocks = noise.reshape(2, 16, 9, 8, 2, 16, 2).permute(0, 1, 2, 3, 5, 4, 6).reshape(-1, 4)
    expected = (1 + gamma) * torch.eye(4) - gamma * torch.ones(4, 4)
    assert (torch.cov(blocks.T) - expected).abs().max() < 0.02
    # gamma = 1/3 removes a block's mean: the matrix is singular, and has no Cholesky factor in float32.
    assert (blocks.sum(-1).abs().max() < 1e-5) == (gamma == 1 / 3)


def test_places_name_every_call_of_a_forward() -> None:
    for site in sites.sites_of({"num_layers": 3}):
        places = [sites.place_of(SiteCall(site.name, index, 0, site.calls)) for index in range(site.calls)]
        assert len(set(places)) == site.calls
    assert sites.place_of(SiteCall("qk_norm", 6, 0, 12)) == "block 1 cross-attention q"
    assert sites.place_of(SiteCall("norm2", 2, 0, 3)) == "block 2"
    assert sites.place_of(SiteCall("norm_out", 0, 0, 1)) == "output"
