"""Where the recipe writes what it makes."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent.parent
SD_FOLDER = MODELS / "tiny-sd"
PROXY_FOLDER = MODELS / "tiny-clip-proxy"
GOLD_FOLDER = MODELS / "tiny-clip-gold"
PROMPTS_FOLDER = MODELS / "prompts"
