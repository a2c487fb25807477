"""Edits of images, as targets for edits of the nets that hold them: dilate, erode, raise the contrast."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nfopt.registry import Registry

Images = Float[Tensor, "images channels height width"]
ImageEdit = Callable[[Images], Images]

IMAGE_EDITS: Registry[ImageEdit] = Registry("image edit")
CONTRAST = 1.5


@IMAGE_EDITS.register("dilate")
def dilate(images: Images) -> Images:
    """Return the maximum over the 3 x 3 pixels around each pixel: bright strokes grow."""
    return F.max_pool2d(images, 3, stride=1, padding=1)


@IMAGE_EDITS.register("erode")
def erode(images: Images) -> Images:
    """Return the minimum over the 3 x 3 pixels around each pixel: bright strokes shrink."""
    return -F.max_pool2d(-images, 3, stride=1, padding=1)


@IMAGE_EDITS.register("contrast")
def contrast(images: Images) -> Images:
    """Return the images with the distance of each pixel to the image's mean times 1.5."""
    mean = images.mean((-3, -2, -1), keepdim=True)
    return mean + CONTRAST * (images - mean)
