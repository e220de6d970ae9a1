"""Python imports this as it starts, in every process on the null device: PyTorch's own convolutions instead of cuDNN's.

cuDNN talks to the driver by itself, and there is none.
"""

import torch

torch.backends.cudnn.enabled = False
