"""The optimizer's settings that suit a pretrained encoder's size, for configs with `optimizer.follow_encoder`."""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

# Below this hidden size an encoder is narrow. BERT-base has 768, MiniLM 384.
NARROW = 512

# Fine-tuning settings of narrow encoders, in place of the published ones, which are BERT-base's and BERT-large's
# (Devlin et al. 2018, appendix A.3). The narrower the encoder, the higher the rate it needs.
NARROW_ENCODER: dict[str, Any] = {"learning_rate": 1e-4, "warmup_fraction": 0.06}


def follow_encoder(config: ConfigDict, given: Collection[str]) -> str | None:
    """Resolves `optimizer.follow_encoder` in place, once the model's sizes are known -> a line for the user, or None.

    Sets NARROW_ENCODER's keys of the optimizer, except those in `given`, if the encoder is narrow. The resolved config
    has the key False, as nothing is left to follow.
    """
    section, hidden_size = config.optimizer, config.model.get("hidden_size")
    if not section.follow_encoder:
        return None
    section.follow_encoder = False
    changed = {key: value for key, value in NARROW_ENCODER.items() if f"optimizer.{key}" not in given}
    if hidden_size is None or hidden_size >= NARROW or not changed:
        return None
    section.update(changed)
    values = ", ".join(f"optimizer.{key}={value:g}" for key, value in changed.items())
    return f"encoder of hidden size {hidden_size}, below {NARROW}: {values}; set these keys for other values"
