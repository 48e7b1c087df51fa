"""`python app.py`: parse the settings, load the model, open the assistant. `python app.py --help` lists everything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything of Hugging Face or Gradio is imported: no telemetry, no look-ups on the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from app.settings import SHIPPED_MODEL, Settings, parse


def main(settings: Settings) -> int:
    """Serve until interrupted; 2 if the model cannot be loaded."""
    import torch

    import most_core
    from app import page

    if settings.threads:
        torch.set_num_threads(settings.threads)
    trained = (Path(settings.model) / "config.json").is_file()
    try:
        if trained or Path(settings.model) != SHIPPED_MODEL:
            most = most_core.load(settings.model, settings.device, quantize=settings.quantize or None)
        elif settings.quantize or settings.device not in ("auto", "cpu"):
            raise ValueError(f"{SHIPPED_MODEL} has no decoder yet: --device and --quantize need a checkpoint (--model)")
        else:
            print(f"{SHIPPED_MODEL} has no decoder yet: opening an untrained model of the same shape")
            most = most_core.untrained("nano")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    blocks = page.build(most, trained)
    try:
        blocks.queue(default_concurrency_limit=1).launch(
            server_name=settings.host, server_port=settings.port, max_file_size="20mb", quiet=False
        )
    except OSError:
        print(f"error: port {settings.port} on {settings.host} is taken: choose another with --port", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(parse()))
