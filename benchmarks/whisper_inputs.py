"""Makes checkpoints of Whisper's shape with random weights: a base and experts around it.

    python benchmarks/whisper_inputs.py FOLDER [--experts 4] [--size small]

Every tensor is drawn from (seed, name, expert), so that any of them can be made again alone. The experts' changes are
15 % common and 45 % own low-rank directions and 40 % noise, of standard deviation 1e-3 around weights of 2e-2, which is
what fine-tuning leaves. The figures made with them are about speed and memory, never about recognition.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY, MELS = 51865, 80


@dataclass(frozen=True)
class Size:
    """Width, number of layers on each side, and the sizes that Whisper's models share."""

    width: int
    layers: int
    vocabulary: int = VOCABULARY
    mels: int = MELS


SIZES = {
    "start-up": Size(8, 12, 64, 8),  # as many tensors as small, with nothing in them
    "tiny": Size(384, 4),
    "base": Size(512, 6),
    "small": Size(768, 12),
    "medium": Size(1024, 24),
    "large": Size(1280, 32, 51866, 128),
}


def shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors (479 for ``small``), the tied output layer left out."""
    width, inner = size.width, 4 * size.width
    yield "model.encoder.conv1.weight", (width, size.mels, 3)
    yield "model.encoder.conv1.bias", (width,)
    yield "model.encoder.conv2.weight", (width, width, 3)
    yield "model.encoder.conv2.bias", (width,)
    yield "model.encoder.embed_positions.weight", (1500, width)
    yield "model.decoder.embed_tokens.weight", (size.vocabulary, width)
    yield "model.decoder.embed_positions.weight", (448, width)
    for side in ("encoder", "decoder"):
        for layer in range(size.layers):
            place = f"model.{side}.layers.{layer}"
            attentions = ["self_attn", "encoder_attn"] if side == "decoder" else ["self_attn"]
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{place}.{attention}.{part}.weight", (width, width)
                    if part != "k_proj":
                        yield f"{place}.{attention}.{part}.bias", (width,)
                yield from _norm(f"{place}.{attention}_layer_norm", width)
            yield f"{place}.fc1.weight", (inner, width)
            yield f"{place}.fc1.bias", (inner,)
            yield f"{place}.fc2.weight", (width, inner)
            yield f"{place}.fc2.bias", (width,)
            yield from _norm(f"{place}.final_layer_norm", width)
        yield from _norm(f"model.{side}.layer_norm", width)


def make(folder: Path, experts: int, size: str = "small", seed: int = 0) -> list[Path]:
    """Writes ``base`` and ``expert_0`` ... as Hugging Face folders; what is there already is kept."""
    made, chosen = [], SIZES[size]
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": chosen.width,
        "encoder_layers": chosen.layers,
        "decoder_layers": chosen.layers,
        "vocab_size": chosen.vocabulary,
    }
    for index in range(-1, experts):
        path = folder / ("base" if index < 0 else f"expert_{index}")
        made.append(path)
        if (path / "config.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: _tensor(name, shape, index, seed) for name, shape in shapes(chosen)}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
    return made


def _norm(place: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{place}.weight", (width,)
    yield f"{place}.bias", (width,)


def _tensor(name: str, shape: tuple[int, ...], expert: int, seed: int) -> torch.Tensor:
    base = torch.randn(shape, generator=_generator(seed, name, "base")) * 0.02
    if expert < 0 or name == "model.encoder.embed_positions.weight":  # Whisper's encoder positions are not trained
        return base
    noise = torch.randn(shape, generator=_generator(seed, name, f"noise {expert}"))
    if len(shape) == 1:
        common = torch.randn(shape, generator=_generator(seed, name, "common"))
        return base + 1e-3 * (0.15**0.5 * common + 0.85**0.5 * noise)
    common = _low_rank(shape, 8, _generator(seed, name, "common"))
    own = _low_rank(shape, 16, _generator(seed, name, f"own {expert}"))
    return base + 1e-3 * (0.15**0.5 * common + 0.45**0.5 * own + 0.40**0.5 * noise)


def _low_rank(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> torch.Tensor:
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    scale = torch.arange(1, rank + 1).rsqrt()
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    product = (left * scale) @ right
    return (product / product.std()).view(shape)


def _generator(seed: int, *parts: str) -> torch.Generator:
    digest = hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    for checkpoint in make(arguments.folder, arguments.experts, arguments.size):
        print(checkpoint)
