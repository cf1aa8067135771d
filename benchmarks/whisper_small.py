"""Makes checkpoints of Whisper small's shape (242 M parameters) with random weights: a base and experts around it.

    python benchmarks/whisper_small.py FOLDER [--experts 4]

Every tensor is drawn from (seed, name, expert), so that any of them can be made again alone. The experts' changes are
15 % common and 45 % own low-rank directions and 40 % noise, of standard deviation 1e-3 around weights of 2e-2, which is
what fine-tuning leaves. The figures made with them are about speed and memory, never about recognition.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, LAYERS, INNER, VOCABULARY, MELS = 768, 12, 3072, 51865, 80


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the 479 tensors, the tied output layer left out."""
    yield "model.encoder.conv1.weight", (WIDTH, MELS, 3)
    yield "model.encoder.conv1.bias", (WIDTH,)
    yield "model.encoder.conv2.weight", (WIDTH, WIDTH, 3)
    yield "model.encoder.conv2.bias", (WIDTH,)
    yield "model.encoder.embed_positions.weight", (1500, WIDTH)
    yield "model.decoder.embed_tokens.weight", (VOCABULARY, WIDTH)
    yield "model.decoder.embed_positions.weight", (448, WIDTH)
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            place = f"model.{side}.layers.{layer}"
            attentions = ["self_attn", "encoder_attn"] if side == "decoder" else ["self_attn"]
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{place}.{attention}.{part}.weight", (WIDTH, WIDTH)
                    if part != "k_proj":
                        yield f"{place}.{attention}.{part}.bias", (WIDTH,)
                yield from _norm(f"{place}.{attention}_layer_norm")
            yield f"{place}.fc1.weight", (INNER, WIDTH)
            yield f"{place}.fc1.bias", (INNER,)
            yield f"{place}.fc2.weight", (WIDTH, INNER)
            yield f"{place}.fc2.bias", (WIDTH,)
            yield from _norm(f"{place}.final_layer_norm")
        yield from _norm(f"model.{side}.layer_norm")


def make(folder: Path, experts: int, seed: int = 0) -> list[Path]:
    """Writes ``base`` and ``expert_0`` ... as Hugging Face folders; what is there already is kept."""
    made = []
    for index in range(-1, experts):
        path = folder / ("base" if index < 0 else f"expert_{index}")
        made.append(path)
        if (path / "config.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: _tensor(name, shape, index, seed) for name, shape in shapes()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        config = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": WIDTH}
        (path / "config.json").write_text(json.dumps(config))
    return made


def _norm(place: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{place}.weight", (WIDTH,)
    yield f"{place}.bias", (WIDTH,)


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
    arguments = parser.parse_args()
    for checkpoint in make(arguments.folder, arguments.experts):
        print(checkpoint)
