"""Which operations a recording trusts: an explicit list, by kind. What is not on it is not shared.

An operation is trusted if running it on generic rows, in another order and number, shows whether it keeps rows apart
(`rows`): along which dimensions it works does not follow values. Operations whose result's shape follows values
(`nonzero`, `unique`) or that read memory (`as_strided`) are not on it; boolean indices, and dropout where it draws, are
caught where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._graph.linearity import functions
from noisykernels.injection.kinds import KINDS

__all__ = ["INDEXING", "METADATA", "POSITIONS", "SIZES", "SPLITS", "UNIFORM", "is_trusted", "name_of"]

# Element by element, after broadcasting.
_ELEMENTWISE = (
    "abs absolute neg negative positive sign sgn add sub subtract rsub mul multiply div divide true_divide "
    "floor_divide remainder fmod pow float_power exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal "
    "sin cos tan asin acos atan atan2 arcsin arccos arctan arctan2 sinh cosh tanh asinh acosh atanh sigmoid erf erfc "
    "erfinv lgamma digamma ceil floor round trunc fix frac clamp clamp_min clamp_max clip maximum "
    "minimum fmax fmin where "
    "masked_fill lerp addcmul addcdiv eq ne lt le gt ge greater greater_equal less less_equal not_equal "
    "logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor "
    "bitwise_left_shift bitwise_right_shift isnan isinf isfinite isclose nan_to_num heaviside hypot copysign logaddexp "
    "logaddexp2 logit sinc xlogy xlog1py i0 entr expit log_ndtr ndtr ndtri real imag conj angle complex polar "
    "conj_physical resolve_conj resolve_neg view_as_real view_as_complex deg2rad rad2deg bucketize searchsorted "
    "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine gelu swish"
)
_CONVERSIONS = (
    "to type type_as float half double bfloat16 int long bool short byte char cfloat cdouble cpu cuda contiguous clone "
    "detach alias lift_fresh requires_grad fill zero copy"
)
_BINARY = "add sub mul truediv floordiv div mod pow and or xor matmul lshift rshift"
_PYTHON = " ".join(f"__{name}__ __r{name}__ __i{name}__" for name in _BINARY.split()) + (
    " __neg__ __pos__ __abs__ __invert__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
)
_VIEWS = (
    "view reshape view_as reshape_as flatten unflatten ravel permute transpose t adjoint swapaxes swapdims moveaxis "
    "movedim squeeze unsqueeze narrow select select_copy slice diagonal expand expand_as broadcast_to "
    "broadcast_tensors atleast_1d atleast_2d atleast_3d meshgrid pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle "
    "unfold fold"
)
_SPLITS = "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind hsplit vsplit dsplit"
_MOVES = (
    "cat concat concatenate stack hstack vstack dstack column_stack row_stack pad constant_pad_nd roll flip fliplr "
    "flipud rot90 tril triu repeat tile repeat_interleave interpolate upsample upsample_nearest upsample_bilinear "
    "upsample_nearest2d upsample_bilinear2d grid_sample grid_sampler affine_grid embedding one_hot gather "
    "take_along_dim scatter scatter_add scatter_reduce index_select index_add index_copy index_fill "
    "select_scatter slice_scatter diagonal_scatter diag_embed diag block_diag"
)

_REDUCTIONS = (
    "sum mean prod var std var_mean std_mean amax amin aminmax max min argmax argmin logsumexp norm vector_norm "
    "matrix_norm all any cumsum cumprod cummax cummin logcumsumexp sort argsort msort topk kthvalue median nanmedian "
    "nanmean nansum quantile nanquantile mode count_nonzero softmax log_softmax softmin _softmax "
    "_log_softmax _safe_softmax normalize "
    "cosine_similarity pairwise_distance cdist diff trace cross linalg_norm linalg_vector_norm histc"
)
_CONTRACTIONS = (
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear matmul mm bmm mv dot vdot "
    "inner outer ger kron baddbmm addmm addbmm addmv addr einsum tensordot chain_matmul multi_dot vecdot inv det "
    "cholesky solve matrix_power matrix_exp fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn stft "
    "istft scaled_dot_product_attention grouped_mm _grouped_mm"
)
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"
_UNIFORM = (  # makes values that are the same for all rows, if it is not given any that are not
    "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full new_tensor tensor as_tensor "
    "scalar_tensor expand expand_as broadcast_to repeat tile"
)
_POSITIONS = "arange range linspace logspace eye tril_indices triu_indices cartesian_prod combinations"


def _attributes(names: str) -> frozenset[Any]:
    """The functions behind attributes such as ``x.T``."""
    return frozenset(getattr(Tensor, name).__get__ for name in names.split())


def _methods(names: str) -> frozenset[Any]:
    """The methods behind operators such as ``x + y``."""
    return frozenset(method for name in names.split() if (method := getattr(Tensor, name, None)) is not None)


def _everywhere(names: str) -> frozenset[Any]:
    """All functions of these names, those of torch's families too, and what writes in place under these names."""
    families = (torch.special, torch.linalg, torch.fft)
    more = {f for name in names.split() for place in families if (f := getattr(place, name, None)) is not None}
    return functions(names) | functions(" ".join(f"{name}_" for name in names.split())) | more


SPLITS = functions(_SPLITS)
INDEXING = _methods("__getitem__ __setitem__") | functions("index_put index_put_ index_select")
UNIFORM = functions(_UNIFORM)
POSITIONS = functions(_POSITIONS)
_TRUSTED: frozenset[Any] = (
    _everywhere(" ".join((_ELEMENTWISE, _CONVERSIONS, _VIEWS, _MOVES, _REDUCTIONS, _CONTRACTIONS, _DROPOUTS)))
    | _methods(_PYTHON) | _attributes("T mT H mH data real imag")
    | SPLITS | INDEXING | UNIFORM | POSITIONS | frozenset(KINDS)
    | frozenset([F.one_hot, torch.ops.noisykernels.quantize.default])
)  # fmt: skip

# What a function says of a tensor that does not follow its values. Others that give no tensor turn values into numbers.
SIZES = frozenset("shape size __len__ numel nelement nbytes".split())  # those of them that follow a shape
METADATA = frozenset(
    "shape size dim ndim ndimension dtype device layout numel nelement __len__ stride is_contiguous storage_offset "
    "element_size itemsize nbytes requires_grad is_leaf grad grad_fn is_floating_point is_complex is_signed is_cuda "
    "is_cpu is_meta is_sparse is_quantized is_nested is_mkldnn is_inference is_conj is_neg is_same_size is_shared "
    "is_pinned get_device type names has_names _version _is_view output_nr result_type can_cast promote_types __hash__ "
    "_nested_tensor_from_mask_left_aligned "  # asked for a short cut that no injected model takes
    "is_tensor dense_dim sparse_dim is_xla is_xpu is_mps is_ipu is_vulkan is_hpu is_mtia is_maia "
    "__class__ name retains_grad _backward_hooks is_sparse_csr".split()
)


def name_of(function: Any) -> str:
    """What a function is called; that of an attribute by its name."""
    name = getattr(function, "__name__", str(function))
    return getattr(function.__self__, "__name__", name) if name in ("__get__", "__set__") else name


def is_trusted(used: Iterable[Any]) -> bool:
    """Whether all functions that a step calls are on the list."""
    return all(function in _TRUSTED for function in used)
