"""The symmetric contrastive loss over the N x N similarities of a batch (paper section 2.3, figure 3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def contrastive_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The mean of two cross-entropies: find each picture's caption among the batch's, and each caption's picture.

    Features are L2-normalised. Similarities, softmax and loss are float32 whatever autocast says: at a logit scale of
    100 the steps between neighbouring bfloat16 logits would be as large as the differences that matter.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale.float() * image_features.float() @ text_features.float().T
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
