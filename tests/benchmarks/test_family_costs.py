"""What is counted of a family's costs, on a small shape that is counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import T5Config, T5EncoderModel

from benchmarks.family_costs import SHAPES, SOLVER, Shape, count, row
from common.config.load import load_config
from common.model.families.pixart_sigma import PixArtSigmaFamily

CONFIG = load_config(Path("configs/pixart_sigma_lora.yaml"), ["sampling.height=64", "sampling.width=32"])
WIDTH, LAYERS, TEXT = 32, 2, 24
SHAPE = Shape(
    PixArtSigmaFamily,
    lambda: T5EncoderModel(T5Config(vocab_size=10, d_model=TEXT, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    8,
    4,
    False,
    (SOLVER, {"beta_schedule": "linear"}),
    {
        "num_layers": LAYERS,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": WIDTH,
        "caption_channels": TEXT,
        "sample_size": 8,
    },
)


def test_a_small_transformer_is_counted_as_by_hand() -> None:
    cost = count(SHAPE.loaded(CONFIG), SHAPE.text, CONFIG)
    rank, tokens, words = 32, (8 // 2) * (4 // 2), CONFIG.model.prompt_tokens
    # Two attentions a block, four projections each.
    assert cost.lora_parameters == LAYERS * 8 * 2 * rank * WIDTH
    assert (cost.latent, cost.condition) == (4 * 4 * 8 * 4, 4 * words * (TEXT + 1))
    projections = 2 * WIDTH**2 * (4 * tokens + 2 * tokens + 2 * words)
    attention = 4 * WIDTH * tokens * (tokens + words)
    mlp = 2 * tokens * 2 * 4 * WIDTH**2
    captions = 2 * words * (TEXT * WIDTH + WIDTH**2)
    counted = LAYERS * (projections + attention + mlp) + captions
    # Beside these: patches and time.
    assert counted < cost.forward < 1.1 * counted
    assert cost.step > 2 * cost.forward


def test_a_row_multiplies_passes_of_sampling_and_of_an_update() -> None:
    cost = count(SHAPE.loaded(CONFIG), SHAPE.text, CONFIG)
    cells = [cell.strip() for cell in row("x", CONFIG, cost, 18, 2).split("|")][1:-1]
    images, steps = CONFIG.sampling.images_per_prompt, CONFIG.sampling.steps
    assert cells[0] == "x"
    assert float(cells[6]) == pytest.approx(2 * images * (steps + 18) * cost.forward / 1e12, abs=0.5)
    assert float(cells[8]) == pytest.approx(
        (images * (steps + 1) * cost.latent + 2 * cost.condition) / 1e6, abs=0.05
    )


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_has_a_configuration_whose_steps_it_has(name: str) -> None:
    config = load_config(Path(f"configs/{name}_lora.yaml"), [])
    assert config.sampling.height % SHAPES[name].side == 0
    # Others count all of the example's tokens.
    assert config.model.prompt_tokens or name in ("sd35", "flux")
