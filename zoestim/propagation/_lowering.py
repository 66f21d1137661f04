"""Modules of torch.nn as the functions that they call, so that one table of rules serves both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zoestim.propagation._change import Value


class Call(NamedTuple):
    """A function and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}


Lowering = Callable[[Any, Value, Mapping[str, Any]], Call | None]
_LOWERINGS: dict[type[nn.Module], Lowering] = {}


def lower(module: nn.Module, x: Value, tensors: Mapping[str, Value]) -> Call | None:
    """Return the call that is the whole of a module's forward, or None if none is known.

    Parameters
    ----------
    module : nn.Module
        The module: by its exact type, and without hooks or a forward of its own, which would
        do more.
    x : Value
        Its one input.
    tensors : dict from local name to Value
        Its parameters and buffers.
    """
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    lowering = None if own else _LOWERINGS.get(type(module))
    return lowering(module, x, tensors) if lowering else None


def draws_nothing(operation: Any) -> bool:
    """Return whether a module's type or a function is known to draw no random numbers."""
    random = "dropout" in getattr(operation, "__name__", str(operation)).lower()
    return operation in _LOWERINGS and not random


def _lowers(*kinds: type[nn.Module]) -> Callable[[Lowering], Lowering]:
    def enter(lowering: Lowering) -> Lowering:
        _LOWERINGS.update(dict.fromkeys(kinds, lowering))
        return lowering

    return enter


@_lowers(nn.Linear)
def _linear(m: nn.Linear, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.linear, (x, t["weight"], t.get("bias")))


@_lowers(nn.PReLU)
def _prelu(m: nn.PReLU, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.prelu, (x, t["weight"]))


@_lowers(nn.Unflatten)
def _unflatten(m: nn.Unflatten, x: Value, t: Mapping[str, Value]) -> Call | None:
    return Call(torch.unflatten, (x, m.dim, m.unflattened_size)) if isinstance(m.dim, int) else None


@_lowers(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
@_lowers(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def _constant_pad(m: Any, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.pad, (x, list(m.padding), "constant", m.value))


@_lowers(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def _circular_pad(m: Any, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.pad, (x, list(m.padding), "circular"))


@_lowers(nn.Embedding)
def _embedding(m: nn.Embedding, x: Value, t: Mapping[str, Value]) -> Call | None:
    return None if m.max_norm is not None else Call(F.embedding, (x, t["weight"]))


@_lowers(nn.EmbeddingBag)
def _embedding_bag(m: nn.EmbeddingBag, x: Value, t: Mapping[str, Value]) -> Call | None:
    if m.max_norm is not None:
        return None
    settings = {"mode": m.mode, "padding_idx": m.padding_idx}
    return Call(F.embedding_bag, (x, t["weight"]), settings)


_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_TRANSPOSED = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@_lowers(*_CONVOLUTIONS)
def _convolution(m: Any, x: Value, t: Mapping[str, Value]) -> Call | None:
    if m.padding_mode != "zeros":
        return None
    settings = m.stride, m.padding, m.dilation, m.groups
    return Call(_CONVOLUTIONS[type(m)], (x, t["weight"], t.get("bias"), *settings))


@_lowers(*_TRANSPOSED)
def _transposed_convolution(m: Any, x: Value, t: Mapping[str, Value]) -> Call:
    settings = m.stride, m.padding, m.output_padding, m.groups, m.dilation
    return Call(_TRANSPOSED[type(m)], (x, t["weight"], t.get("bias"), *settings))


@_lowers(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(m: Any, x: Value, t: Mapping[str, Value]) -> Call:
    weight, bias = t.get("weight"), t.get("bias")
    if m.training or m.running_mean is None:  # by the batch; queries keep no statistics
        return Call(F.batch_norm, (x, None, None, weight, bias, True, 0.0, m.eps))
    statistics = t["running_mean"], t["running_var"]
    return Call(F.batch_norm, (x, *statistics, weight, bias, False, 0.0, m.eps))


@_lowers(nn.LayerNorm)
def _layer_norm(m: nn.LayerNorm, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.layer_norm, (x, m.normalized_shape, t.get("weight"), t.get("bias"), m.eps))


@_lowers(nn.GroupNorm)
def _group_norm(m: nn.GroupNorm, x: Value, t: Mapping[str, Value]) -> Call:
    return Call(F.group_norm, (x, m.num_groups, t.get("weight"), t.get("bias"), m.eps))


@_lowers(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(m: Any, x: Value, t: Mapping[str, Value]) -> Call | None:
    if m.track_running_stats or x.base.ndim != m._get_no_batch_dim() + 1:
        return None
    affine = t.get("weight"), t.get("bias")
    return Call(F.instance_norm, (x, None, None, *affine, True, 0.0, m.eps))


def _maker(function: Callable[..., Any], *names: str) -> Lowering:
    """Return the lowering that passes some attributes of the module by their names."""
    return lambda m, x, t: Call(function, (x,), {name: getattr(m, name) for name in names})


_WINDOW = ("kernel_size", "stride", "padding")
_LOWERINGS |= {
    nn.ReLU: _maker(F.relu),
    nn.ReLU6: _maker(F.relu6),
    nn.Hardtanh: _maker(F.hardtanh, "min_val", "max_val"),
    nn.LeakyReLU: _maker(F.leaky_relu, "negative_slope"),
    nn.ELU: _maker(F.elu, "alpha"),
    nn.CELU: _maker(F.celu, "alpha"),
    nn.SELU: _maker(F.selu),
    nn.GELU: _maker(F.gelu, "approximate"),
    nn.SiLU: _maker(F.silu),
    nn.Mish: _maker(F.mish),
    nn.Softplus: _maker(F.softplus, "beta", "threshold"),
    nn.Softsign: _maker(F.softsign),
    nn.Tanhshrink: _maker(F.tanhshrink),
    nn.Hardswish: _maker(F.hardswish),
    nn.Hardsigmoid: _maker(F.hardsigmoid),
    nn.Hardshrink: _maker(F.hardshrink, "lambd"),
    nn.Softshrink: _maker(F.softshrink, "lambd"),
    nn.Threshold: _maker(F.threshold, "threshold", "value"),
    nn.LogSigmoid: _maker(F.logsigmoid),
    nn.Tanh: _maker(torch.tanh),
    nn.Sigmoid: _maker(torch.sigmoid),
    nn.Identity: lambda m, x, t: Call(torch.clone, (x,)),
    nn.Dropout: _maker(F.dropout, "p", "training"),
    nn.Dropout1d: _maker(F.dropout1d, "p", "training"),
    nn.Dropout2d: _maker(F.dropout2d, "p", "training"),
    nn.Dropout3d: _maker(F.dropout3d, "p", "training"),
    nn.AlphaDropout: _maker(F.alpha_dropout, "p", "training"),
    nn.Flatten: _maker(torch.flatten, "start_dim", "end_dim"),
    nn.MaxPool1d: _maker(F.max_pool1d, *_WINDOW, "dilation", "ceil_mode", "return_indices"),
    nn.MaxPool2d: _maker(F.max_pool2d, *_WINDOW, "dilation", "ceil_mode", "return_indices"),
    nn.MaxPool3d: _maker(F.max_pool3d, *_WINDOW, "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool1d: _maker(F.avg_pool1d, *_WINDOW, "ceil_mode", "count_include_pad"),
    nn.AvgPool2d: _maker(
        F.avg_pool2d, *_WINDOW, "ceil_mode", "count_include_pad", "divisor_override"
    ),
    nn.AvgPool3d: _maker(
        F.avg_pool3d, *_WINDOW, "ceil_mode", "count_include_pad", "divisor_override"
    ),
    nn.AdaptiveAvgPool1d: _maker(F.adaptive_avg_pool1d, "output_size"),
    nn.AdaptiveAvgPool2d: _maker(F.adaptive_avg_pool2d, "output_size"),
    nn.AdaptiveAvgPool3d: _maker(F.adaptive_avg_pool3d, "output_size"),
    nn.AdaptiveMaxPool1d: _maker(F.adaptive_max_pool1d, "output_size", "return_indices"),
    nn.AdaptiveMaxPool2d: _maker(F.adaptive_max_pool2d, "output_size", "return_indices"),
    nn.AdaptiveMaxPool3d: _maker(F.adaptive_max_pool3d, "output_size", "return_indices"),
    nn.Softmax: lambda m, x, t: None if m.dim is None else Call(torch.softmax, (x, m.dim)),
    nn.LogSoftmax: lambda m, x, t: None if m.dim is None else Call(torch.log_softmax, (x, m.dim)),
}
