"""Where the recipe writes what it makes."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent.parent
SD_NAME, FLOW_NAME, PROXY_NAME, GOLD_NAME = "tiny-sd", "tiny-sd3", "tiny-clip-proxy", "tiny-clip-gold"
SD_FOLDER = MODELS / SD_NAME
FLOW_FOLDER = MODELS / FLOW_NAME
PROXY_FOLDER = MODELS / PROXY_NAME
GOLD_FOLDER = MODELS / GOLD_NAME
PROMPTS_FOLDER = MODELS / "prompts"


def let_everyone_read(folder: Path) -> None:
    """Weights are written for their owner alone; give the files in ``folder`` the usual mode 0644."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
