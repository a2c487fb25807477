"""Operations over positions: pooling, resizing, unfolding and sampling keep batch and channels."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.rules.reduction import one_dim
from nfopt.symmetry.unify import Term


def _resampled(call: Call, value: Value, spatial: int, shape: tuple[int, ...]) -> Axes:
    axes: list[Term] = list(value.axes)
    for dim in range(len(axes) - spatial, len(axes)):
        # One output position that sees all inputs alike is a symmetric average; anything else mixes.
        symmetric = shape[dim] == 1 and call.name.startswith(
            ("aten.adaptive_avg", "aten._adaptive_avg", "aten.mean")
        )
        if not symmetric:
            call.fix_dim(value, dim, "positions are mixed")
        axes[dim] = call.fixed(shape[dim], "positions are mixed")
    return tuple(axes)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool2d_with_indices", "max_pool1d_with_indices", "max_pool3d_with_indices", "lp_pool1d",
    "lp_pool2d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "fractional_max_pool2d",
    "mkldnn_max_pool2d",
)  # fmt: skip
def resample(call: Call) -> list[Axes]:
    """Every channel is treated alike; positions are mixed."""
    value = call.tensor("input" if "input" in call.args else "self")
    short = call.name.removeprefix("aten.")
    spatial = next(int(digit) for digit in short if digit.isdigit())
    return [_resampled(call, value, spatial, shape) for shape in call.out_shapes]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call) -> list[Axes]:
    """Positions are read where the grid points."""
    value, grid = call.tensor("input"), call.tensor("grid")
    call.unifier.unify(value.axes[0], grid.axes[0])
    call.fix_dim(grid, -1, "coordinates of positions")
    for dim in range(2, len(value.axes)):
        call.fix_dim(value, dim, "positions are sampled")
    return [(value.axes[0], value.axes[1], *grid.axes[1:-1])]


@rule("unfold")
def unfold(call: Call) -> list[Axes]:
    """Sliding windows along one axis, appended as a new last axis."""
    value = call.tensor()
    dim = one_dim(value, call.args["dimension"])
    call.fix_dim(value, dim, "sliding windows")
    axes: list[Term] = list(value.axes)
    axes[dim] = call.fixed(call.out_shape[dim], "sliding windows")
    return [(*axes, call.fixed(call.out_shape[-1], "positions in a window"))]


@rule("im2col")
def im2col(call: Call) -> list[Axes]:
    """(N, C, H, W) to (N, C x window, windows)."""
    value = call.tensor()
    for dim in (-2, -1):
        call.fix_dim(value, dim, "sliding windows")
    lead = value.axes[:-3]
    window = call.fixed(call.out_shape[-2] // value.shape[-3], "positions in a window")
    return [(*lead, value.axes[-3] + window, call.fixed(call.out_shape[-1], "sliding windows"))]


@rule("col2im")
def col2im(call: Call) -> list[Axes]:
    """(N, C x window, windows) to (N, C, H, W)."""
    value = call.tensor()
    call.fix_dim(value, -1, "sliding windows")
    channels = call.out_shape[-3]
    own, window = call.unifier.factor(value.axes[-2], [channels, value.shape[-2] // channels])
    call.unifier.fix(window, f"positions in a window {call.where}")
    lead = value.axes[:-2]
    return [(*lead, own, *(call.fixed(size, "sliding windows") for size in call.out_shape[-2:]))]


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[Axes]:
    """(C x r x r, H, W) to (C, H x r, W x r)."""
    value, r = call.tensor(), call.args["upscale_factor"]
    channels, down, across = call.unifier.factor(value.axes[-3], [value.shape[-3] // (r * r), r, r])
    for window in (down, across):
        call.unifier.fix(window, f"positions in a window {call.where}")
    return [(*value.axes[:-3], channels, value.axes[-2] + down, value.axes[-1] + across)]


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> list[Axes]:
    """(C, H x r, W x r) to (C x r x r, H, W)."""
    value, r = call.tensor(), call.args["downscale_factor"]
    height, down = call.unifier.factor(value.axes[-2], [value.shape[-2] // r, r])
    width, across = call.unifier.factor(value.axes[-1], [value.shape[-1] // r, r])
    return [(*value.axes[:-3], value.axes[-3] + down + across, height, width)]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> list[Axes]:
    """Channels g x c read as c x g."""
    value, groups = call.tensor(), call.args["groups"]
    if value.shape[1] % groups:
        raise UnruledError("channels that the groups do not divide")
    outer, inner = call.unifier.factor(value.axes[1], [groups, value.shape[1] // groups])
    return [(value.axes[0], inner + outer, *value.axes[2:])]
