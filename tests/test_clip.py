"""The towers compute what their description says, and what another library makes of their weights."""

import gzip
import importlib.util
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crm_cli.models import clip, denoiser
from crm_cli.models.clip import (
    MINI_TEXT,
    MINI_VISION,
    RELEASE_TEXT,
    RELEASE_VISION,
    Contexts,
    TextTower,
    TowerConfig,
    VisionTower,
)

KEYS = Path(__file__).parent / "published_keys"
"""Name, shape and type of every published tensor."""

CONFIG = TowerConfig(width=24, blocks=3, head_dim=8)
"""Three heads, of a width that is not theirs."""


def random_(tower: nn.Module) -> None:
    """Random in every parameter: norms that start as the identity would hide themselves."""
    generator = torch.Generator().manual_seed(0)
    for parameter in tower.requires_grad_(False).parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values * (0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))


def vision_tower(dtype: torch.dtype = torch.float64) -> VisionTower:
    tower = VisionTower(CONFIG)
    random_(tower)
    return tower.to(dtype)


def text_tower(dtype: torch.dtype = torch.float64) -> TextTower:
    tower = TextTower(CONFIG)
    random_(tower)
    return tower.to(dtype)


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(dtype)


def texts() -> Tensor:
    return torch.randint(clip.VOCABULARY, (2, 77), generator=torch.Generator().manual_seed(1))


def listed_as(tensor: Tensor) -> str:
    """A tensor's shape as the published key lists give it."""
    return "x".join(map(str, tensor.shape))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("tower", "config", "parameters", "one_block", "beyond"),
    [
        (VisionTower, RELEASE_VISION, 632_076_800, 19_677_440, 2 * 1280 + 1280 * 1024),
        (TextTower, RELEASE_TEXT, 354_032_641, 12_596_224, 1024 * 1024 + 1),
    ],
    ids=["vision", "text"],
)
def test_the_published_towers_have_the_published_number_of_parameters(
    tower: type[nn.Module], config: TowerConfig, parameters: int, one_block: int, beyond: int
) -> None:
    width = config.width
    # Two norms; queries, keys, values and their output; two layers four times as wide.
    assert one_block == 4 * width + 4 * (width * width + width) + 8 * width * width + 5 * width
    with torch.device("meta"):
        ours = tower(config)
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters - one_block - beyond


@pytest.mark.parametrize("stage", ["pixel", "ccm"])
def test_the_published_state_dict_has_our_names_and_shapes_and_the_unused(stage: str) -> None:
    prefix = "clip_model.model."
    listed = (KEYS / f"{stage}-diffusion.txt").read_text().splitlines()
    published = {
        name.removeprefix(prefix): shape
        for name, shape, _ in map(str.split, listed)
        if name.startswith(prefix)
    }
    with torch.device("meta"):
        vision, text = VisionTower(RELEASE_VISION), TextTower(RELEASE_TEXT)
    ours = {f"visual.{key}": listed_as(tensor) for key, tensor in vision.state_dict().items()}
    ours |= {key: listed_as(tensor) for key, tensor in text.state_dict().items()}
    unused = clip.unused(RELEASE_VISION, RELEASE_TEXT)
    assert ours == {key: shape for key, shape in published.items() if not key.startswith(unused)}
    # The mask is derived, and only some files hold it.
    assert all(any(key.startswith(name) for key in published) for name in unused if name != "attn_mask")


def test_the_miniature_towers_give_what_the_miniature_networks_take() -> None:
    vision, text = VisionTower(MINI_VISION), TextTower(MINI_TEXT)
    with torch.no_grad():
        assert vision(pictures(torch.float32)).shape == (2, 257, denoiser.MINI_RGB.image_width)
        assert text(texts()).shape == (2, 77, denoiser.MINI_RGB.context_width)


# The same towers written down once more, straight from the description of the published ones.


def plain_vision(tower: VisionTower, pictures: Tensor) -> Tensor:
    p = dict(tower.state_dict())
    weight = p["conv1.weight"].flatten(1)
    patches = [
        pictures[:, :, row : row + 14, column : column + 14].flatten(1) @ weight.T
        for row in range(0, 224, 14)
        for column in range(0, 224, 14)
    ]
    first = p["class_embedding"].repeat(len(pictures), 1)
    x = torch.stack([first, *patches], dim=1) + p["positional_embedding"]
    return plain_blocks(p, plain_layer_norm(p, "ln_pre", x), seen=torch.ones(257, 257))


def plain_text(tower: TextTower, tokens: Tensor) -> Tensor:
    p = dict(tower.state_dict())
    x = p["token_embedding.weight"][tokens] + p["positional_embedding"]
    return plain_layer_norm(p, "ln_final", plain_blocks(p, x, seen=torch.ones(77, 77).tril()))


def plain_blocks(p: dict[str, Tensor], x: Tensor, *, seen: Tensor) -> Tensor:
    """seen: [N N], row by row whom a token looks at."""
    width, head_dim = CONFIG.width, CONFIG.head_dim
    for block in range(CONFIG.blocks):
        name = f"transformer.resblocks.{block}"
        normed = plain_layer_norm(p, f"{name}.ln_1", x)
        weights, biases = p[f"{name}.attn.in_proj_weight"], p[f"{name}.attn.in_proj_bias"]
        q, k, v = (
            normed @ weights[part * width : (part + 1) * width].T + biases[part * width : (part + 1) * width]
            for part in range(3)
        )
        heads = []
        for start in range(0, width, head_dim):
            part = slice(start, start + head_dim)
            scores = (q[..., part] @ k[..., part].mT / head_dim**0.5).exp() * seen
            heads.append(scores / scores.sum(-1, keepdim=True) @ v[..., part])
        x = x + plain_linear(p, f"{name}.attn.out_proj", torch.cat(heads, dim=-1))
        hidden = plain_linear(p, f"{name}.mlp.c_fc", plain_layer_norm(p, f"{name}.ln_2", x))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + plain_linear(p, f"{name}.mlp.c_proj", hidden)
    return x


def plain_linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def plain_layer_norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def test_pictures_become_tokens_as_described() -> None:
    tower = vision_tower()
    assert error(tower(pictures()), plain_vision(tower, pictures())) < 1e-12


def test_texts_become_tokens_as_described() -> None:
    tower = text_tower()
    assert error(tower(texts()), plain_text(tower, texts())) < 1e-12


def test_no_token_of_a_text_sees_a_later_one() -> None:
    tower, tokens = text_tower(), texts()
    before = tower(tokens)
    tokens[:, 40] += 1
    change = (tower(tokens % clip.VOCABULARY) - before).abs().amax(dim=(0, 2))
    assert (change[:40] == 0).all()
    assert (change[40:] > 1e-3).all()


def test_every_token_of_a_picture_sees_all_of_it() -> None:
    tower, changed = vision_tower(), pictures()
    before = tower(changed)
    changed[0, :, -14:, -14:] += 1
    change = (tower(changed) - before).abs().amax(dim=2)
    assert (change[0] > 1e-6).all()
    assert (change[1] == 0).all()


def test_pictures_of_another_size_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"VisionTower.pictures: got \[1, 3, 256, 256\]"):
        vision_tower()(torch.zeros(1, 3, 256, 256))


def test_contexts_are_what_the_tower_reads_in_the_prompts_and_are_stored() -> None:
    tower = text_tower()
    contexts = Contexts.of(tower)
    positive, negative = clip.prompt_tokens()
    # Two texts at once may be added up in another order than each alone: that is for the processor to say.
    torch.testing.assert_close(contexts.tokens[0], tower(positive[None])[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(contexts.tokens[1], tower(negative[None])[0], rtol=0, atol=1e-12)
    assert list(contexts.state_dict()) == ["tokens"]
    empty = Contexts(CONFIG.width).double()
    empty.load_state_dict(contexts.state_dict(), strict=True)
    assert torch.equal(empty.tokens, contexts.tokens)


def words(text: str) -> list[str]:
    """What byte-pair codes are made of: words, single digits and punctuation, in lower case."""
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())


def test_the_prompts_have_a_token_for_each_sign_and_their_padding_is_zeros() -> None:
    positive, negative = clip.prompt_tokens().tolist()
    assert positive == [49406, 274, 323, 13170, 49407] + [0] * 72
    assert len(positive) == len(negative) == 77
    text = negative[1 : negative.index(49407)]
    assert negative[: len(text) + 2] == [49406, *text, 49407]
    assert not any(negative[len(text) + 2 :])
    assert text.count(267) == clip.NEGATIVE_PROMPT.count(",")
    assert text[-1] == 269


def test_the_tokens_are_those_of_the_byte_pair_code() -> None:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        pytest.skip("the vocabulary comes with open_clip, which is not installed")
    vocabulary = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    # Numbers: every byte, every byte that ends a word, every merge, start, end.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    pieces = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(pair) for pair in merges)]
    numbers = {piece: number for number, piece in enumerate(pieces)}

    def encode(word: str) -> list[int]:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), n) for n, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        return [numbers[part] for part in parts]

    for text, tokens in zip((clip.PROMPT, clip.NEGATIVE_PROMPT), clip.prompt_tokens().tolist(), strict=True):
        ids = [number for word in words(text) for number in encode(word)]
        assert tokens == [len(pieces), *ids, len(pieces) + 1] + [0] * (75 - len(ids))


def transformers_state(tower: nn.Module) -> dict[str, Tensor]:
    """Our parameters under the names of transformers, which keeps queries, keys and values apart."""
    state = {}
    for name, tensor in tower.state_dict().items():
        for ours, theirs in (
            ("transformer.resblocks.", "encoder.layers."),
            (".attn.", ".self_attn."),
            (".ln_1.", ".layer_norm1."),
            (".ln_2.", ".layer_norm2."),
            (".mlp.c_fc.", ".mlp.fc1."),
            (".mlp.c_proj.", ".mlp.fc2."),
            ("ln_pre.", "pre_layrnorm."),
            ("ln_final.", "final_layer_norm."),
            ("class_embedding", "embeddings.class_embedding"),
            ("token_embedding", "embeddings.token_embedding"),
            ("conv1.", "embeddings.patch_embedding."),
        ):
            name = name.replace(ours, theirs)
        if name == "positional_embedding":
            name = "embeddings.position_embedding.weight"
        if "in_proj_" in name:
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{part}_proj.")] = values
        else:
            state[name] = tensor
    return state


def transformers_settings() -> dict[str, object]:
    """Of a tower with one block more than ours, as a published one has."""
    return {
        "hidden_size": CONFIG.width,
        "intermediate_size": 4 * CONFIG.width,
        "num_hidden_layers": CONFIG.blocks + 1,
        "num_attention_heads": CONFIG.width // CONFIG.head_dim,
        "hidden_act": "gelu",
    }


def load_but_the_last_block(theirs: nn.Module, state: dict[str, Tensor], *beyond: str) -> None:
    missing, unexpected = theirs.requires_grad_(False).load_state_dict(state, strict=False)
    last = f"encoder.layers.{CONFIG.blocks}."
    assert all(name.startswith((last, *beyond)) for name in missing)
    assert not unexpected


@pytest.mark.filterwarnings("default")
def test_transformers_agrees_on_pictures() -> None:
    transformers = pytest.importorskip("transformers")
    ours = vision_tower(torch.float32)
    config = transformers.CLIPVisionConfig(image_size=224, patch_size=14, **transformers_settings())
    theirs = transformers.CLIPVisionModel(config)
    load_but_the_last_block(theirs, transformers_state(ours), "post_layernorm.")
    seen = theirs(pictures(torch.float32), output_hidden_states=True).hidden_states[-2]
    assert error(ours(pictures(torch.float32)), seen) <= 1e-5


@pytest.mark.filterwarnings("default")
def test_transformers_agrees_on_texts() -> None:
    transformers = pytest.importorskip("transformers")
    ours = text_tower(torch.float32)
    config = transformers.CLIPTextConfig(vocab_size=clip.VOCABULARY, **transformers_settings())
    theirs = transformers.CLIPTextModel(config)
    load_but_the_last_block(theirs, transformers_state(ours))
    read = theirs(texts(), output_hidden_states=True).hidden_states[-2]
    assert error(ours(texts()), theirs.final_layer_norm(read)) <= 1e-5
