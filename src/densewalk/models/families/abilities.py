"""What networks can give, known from their architecture's name alone. Free of torch.

family of names                        dense  pooled  levels  block_tokens  keys  attention  trainable
vit_..., timm/ and plain ViTs            x      x       x          x          x       x          x
huggingface/siglip                       x      x       x                     x
timm/ and any other network              x      x       x
python/ (the user's own code)            x      x

`motion_masks` is nothing that an architecture has: `method: cis` adds it.
"""

ABILITIES = {
    "dense": "a map of features",
    "pooled": "one vector for each image",
    "levels": "maps of several layers",
    "block_tokens": "CLS and patch tokens of its last blocks",
    "keys": "keys of a last block's attention",
    "attention": "the attention of a CLS token",
    "motion_masks": "a decoder of masks from image and optical flow (method: cis)",
}
"""Name of an ability -> in words, for messages."""
MAPS = frozenset({"dense", "pooled", "levels"})
WITH_KEYS = MAPS | {"keys"}
WITH_CLS = WITH_KEYS | {"block_tokens", "attention"}
OF_OWN_CODE = frozenset({"dense", "pooled"})  # at most: a network without vectors for images says so when it is built
WITHOUT_POSITION = frozenset({"dense", "pooled", "attention"})
"""Of a vision transformer whose map has position taken out: it is its patch tokens that are changed, not its layers or keys."""
WITH_MOTION = frozenset({"motion_masks"})
"""What a decoder of masks adds (motion.py)."""
