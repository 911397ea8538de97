"""CLIP's encoder against open_clip's own forward pass, preprocessing and checkpoints."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import image_transform
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from macaw_lit.encoders.clip import ClipEncoder, ClipTransform, zorder
from macaw_lit.errors import ConfigError, WeightsError

SIZES = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "heads": 3, "output_dim": 12}


def reference(quick_gelu: bool = True) -> CLIP:
    """A whole CLIP of the same size, built by open_clip from a config as its model files have it."""
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1}
    model = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu).eval()
    torch.nn.init.normal_(model.visual.positional_embedding)  # large enough to see a patch in the wrong place
    return model


def patch_tokens(model: CLIP, values: torch.Tensor) -> torch.Tensor:
    model.visual.output_tokens = True
    _, tokens = model.visual(values)
    return tokens


UNUSED = {"tokens": {"proj"}, "projected": {"ln_post.weight", "ln_post.bias"}, "pooled": set()}


def encoder_of(model: CLIP, **settings: Any) -> ClipEncoder:
    encoder = ClipEncoder(**SIZES, **settings).eval()
    left_out = UNUSED[settings.get("form", "tokens")]
    encoder.visual.load_state_dict({k: v for k, v in model.visual.state_dict().items() if k not in left_out})
    return encoder


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_features_are_open_clips_patch_tokens(quick_gelu):
    model, values = reference(quick_gelu), torch.randn(3, 3, 32, 32)
    encoder = encoder_of(model, quick_gelu=quick_gelu)
    assert (encoder.dim, encoder.seq_len, encoder.input_shape) == (24, 16, (3, 32, 32))
    # The same operations in the same order on the same machine: no tolerance.
    assert torch.equal(encoder(values), patch_tokens(model, values))
    other = encoder_of(model, quick_gelu=not quick_gelu)
    assert not torch.allclose(other(values), encoder(values), atol=1e-3), "the activation makes no difference"


def test_gradients_are_open_clips():
    model, values, weighting = reference(), torch.randn(2, 3, 32, 32), torch.randn(2, 16, 24)
    encoder = encoder_of(model)
    (encoder(values) * weighting).sum().backward()
    (patch_tokens(model, values) * weighting).sum().backward()
    for name, parameter in encoder.visual.named_parameters():
        wanted = dict(model.visual.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, wanted, msg=name)


SHAPES = {"tokens": (16, 24), "projected": (16, 12), "pooled": (1, 12)}


@pytest.mark.parametrize("form", SHAPES)
def test_a_form_has_no_weights_that_it_does_not_use(form):
    encoder = ClipEncoder(**SIZES, form=form)
    assert encoder.visual.state_dict().keys() == reference().visual.state_dict().keys() - UNUSED[form]
    assert (encoder.seq_len, encoder.dim) == SHAPES[form]
    features = encoder(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, *SHAPES[form])
    (features * torch.randn_like(features)).sum().backward()
    assert all(parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("form", SHAPES)
def test_no_pictures_give_no_features_and_zero_gradients(form):
    encoder = ClipEncoder(**SIZES, form=form)
    features = encoder(torch.zeros(0, 3, 32, 32))
    assert features.shape == (0, *SHAPES[form])
    features.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_pooled_is_open_clips_embedding_and_projected_is_the_originals_pipeline():
    model, values = reference(), torch.randn(3, 3, 32, 32)
    # The same operations in the same order, but the product is taken of a slice: a few ulp.
    torch.testing.assert_close(encoder_of(model, form="pooled")(values)[:, 0], model.encode_image(values))
    # The original takes the last hidden state as it is, projects every position, and drops the class token.
    hidden = model.visual.transformer(model.visual._embeds(values))
    torch.testing.assert_close(encoder_of(model, form="projected")(values), (hidden @ model.visual.proj)[:, 1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_stays_close(dtype):
    encoder = encoder_of(reference())
    values = torch.randn(2, 3, 32, 32)
    expected = encoder(values)
    half = copy.deepcopy(encoder).to(dtype)(values.to(dtype))
    assert half.dtype == dtype
    # bf16 keeps 8 bits: 2⁻⁸ of values up to 4, through a dozen operations.
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_zorder_walks_through_squares(side):
    order = zorder(side)
    assert sorted(order.tolist()) == list(range(side**2))
    block = 1
    while block <= side:
        for run in order.split(block**2):  # 1, 4, 16 … patches in a row of positions
            rows, columns = run // side, run % side
            assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == block - 1
        block *= 2


def test_zorder_goes_left_before_down():
    assert zorder(4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_patch_order_reorders_features_and_is_no_weight():
    model, values = reference(), torch.randn(2, 3, 32, 32)
    raster, walked = encoder_of(model), encoder_of(model, patch_order="zorder")
    assert torch.equal(walked(values), raster(values)[:, zorder(4)])
    assert walked.state_dict().keys() == raster.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "image_size 32 is no multiple of patch_size 5"),
        ({"form": "token"}, "CLIP form 'token': expected one of tokens, projected, pooled"),
        ({"patch_order": "spiral"}, "CLIP patch_order 'spiral': expected one of raster, zorder"),
        ({"heads": 5}, "width 24 is no multiple of heads 5"),
        ({"image_size": 48, "patch_order": "zorder"}, "power of two.*not 6.*raster"),
    ],
)
def test_sizes_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ClipEncoder(**SIZES | settings)


def test_the_papers_size_has_open_clips_number_of_weights():
    with torch.device("meta"):
        encoder = ClipEncoder(form="pooled")
    assert (encoder.dim, encoder.seq_len) == (512, 1)
    block = 4 * 768**2 + 4 * 768 + 8 * 768**2 + 5 * 768 + 4 * 768  # attention, MLP, two norms
    others = 3 * 16**2 * 768 + 768 + 197 * 768 + 4 * 768 + 768 * 512  # patches, class, positions, two norms, projection
    assert sum(p.numel() for p in encoder.parameters()) == 12 * block + others == 86_192_640


@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (32, 32), (1, 1), (300, 20)])
def test_transform_is_clips_own(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = ClipTransform(32)(pixels)
    published = image_transform(32, is_train=False)  # open_clip's defaults are OpenAI's mean and deviation
    assert torch.equal(found, published(Image.fromarray(pixels)))
    assert found.shape == (3, 32, 32)


def test_transform_longhand():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    scaled = np.asarray(Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40] / 255
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = ((scaled - mean) / deviation).transpose(2, 0, 1)
    np.testing.assert_allclose(ClipTransform(32)(pixels).numpy(), expected, atol=1e-5)  # float32 against float64


def test_the_transform_travels_to_workers_without_weights():
    found = copy.deepcopy(ClipTransform(32))  # by the same protocol as between processes
    assert found(np.zeros((32, 32, 3), np.uint8)).shape == (3, 32, 32)
    assert not isinstance(found, torch.nn.Module)


@pytest.mark.parametrize("form", ["safetensors", "pt", "training"])
def test_open_clips_checkpoints_load(tmp_path, form):
    model, values = reference(), torch.randn(2, 3, 32, 32)
    path = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    state = model.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "pt":
        torch.save(state, path)
    else:  # as open_clip's trainer leaves it behind, under DistributedDataParallel
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}, path)
    encoder = ClipEncoder(**SIZES).eval()
    assert not torch.allclose(encoder(values), patch_tokens(model, values), atol=1e-2)
    encoder.load_pretrained(str(path))
    assert torch.equal(encoder(values), patch_tokens(model, values))


def failure(encoder: ClipEncoder, path: Path) -> str:
    """The message of a refused load, after which the weights must be as they were."""
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(WeightsError) as caught:
        encoder.load_pretrained(str(path))
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path):
    state = reference().state_dict()
    del state["visual.conv1.weight"]
    state["visual.head.weight"] = torch.zeros(2)
    state["visual.ln_post.bias"] = torch.zeros(23)
    save_file(state, tmp_path / "clip.safetensors")
    message = failure(ClipEncoder(**SIZES), tmp_path / "clip.safetensors")
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: head.weight" in message
    assert "1 of another shape: ln_post.bias [23], wanted [24]" in message


def test_weights_of_another_size_or_model_are_refused(tmp_path):
    save_file(reference().state_dict(), tmp_path / "clip.safetensors")
    message = failure(ClipEncoder(**SIZES | {"image_size": 64}), tmp_path / "clip.safetensors")
    assert "positional_embedding [17, 24], wanted [65, 24]" in message
    deeper = failure(ClipEncoder(**SIZES | {"layers": 3}), tmp_path / "clip.safetensors")
    assert "12 missing: transformer.resblocks.2" in deeper
    assert ", …" in deeper
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert "other.pt holds no CLIP: expected visual.*" in failure(ClipEncoder(**SIZES), tmp_path / "other.pt")
