"""What training, export and serving have to agree on to the bit, without torch.

The channel statistics of ImageNet, and the drawn image whose logits an exported model records (`golden` in
artifact.json), so that whoever loads the model can check what it computes.
"""

import numpy as np

Channels = tuple[float, float, float]  # of RGB in [0, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's and timm's defaults
PATTERN = "uint8 RGB of the model's size, neither resized nor cropped: (3 * row + 5 * column + 85 * channel) % 256"


def draw_pattern(size: int) -> np.ndarray:
    """Return the image that `PATTERN` describes, uint8 [size, size, 3]."""
    row, column, channel = np.ogrid[:size, :size, :3]
    return ((3 * row + 5 * column + 85 * channel) % 256).astype(np.uint8)
