"""What methods of compression use besides the network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from research.compress.calibration import Calibration

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Context:
    """What methods use besides the network and their value.

    Attributes:
      calibration: examples of the training split.
      pieces: int [V], how often each token of the run's tokenizer occurs in the training split.
      tokenizer: its definition; None for other inputs than texts.
      assets: the folder of the run's encoder.
      student: the config of the network that learns from the run's predictions.
      say: shows a line.
      trains: whether the network is trained again.
    """

    calibration: Callable[[], Calibration]
    pieces: Callable[[], np.ndarray]
    tokenizer: str | None
    assets: Path
    student: ConfigDict | None
    say: Say
    trains: bool = False
