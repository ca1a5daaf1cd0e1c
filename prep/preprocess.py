"""Constants that training, export and serving must share exactly; without torch.

These are the channel statistics of ImageNet, and a drawn test image. An exported model records its logits for that
image (`golden` in artifact.json), so that a program that loads the model can check what it computes.
"""

import numpy as np

Channels = tuple[float, float, float]  # of RGB in [0, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's and timm's defaults
PATTERN = "uint8 RGB of the model's size, neither resized nor cropped: (3 * row + 5 * column + 85 * channel) % 256"


def draw_pattern(size: int) -> np.ndarray:
    """Return the image that `PATTERN` describes, uint8 [size, size, 3]."""
    row, column, channel = np.ogrid[:size, :size, :3]
    return ((3 * row + 5 * column + 85 * channel) % 256).astype(np.uint8)
