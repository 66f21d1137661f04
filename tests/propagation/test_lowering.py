"""Each module's lowered call gives what the module gives, in train and in eval mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import roughen
from propagation.strategies import normal
from zoestim.propagation import RULES, Value, lower
from zoestim.propagation._lowering import _LOWERINGS

# Shapes that a module may take, and modules that differ in all that they can be told.
VECTORS, SERIES, IMAGES, VOLUMES = (6, 4), (6, 4, 9), (6, 4, 9, 8), (2, 4, 7, 6, 5)
TOKENS = (6, 5)
Row = tuple[Callable[[], nn.Module], tuple[int, ...]]


def pointwise() -> list[Row]:
    plain = [nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Softsign, nn.Tanhshrink, nn.Tanh]
    plain += [nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Sigmoid, nn.Identity]
    told = [
        *(lambda: nn.Hardtanh(-0.3, 0.2), lambda: nn.LeakyReLU(0.3), lambda: nn.ELU(0.7)),
        *(lambda: nn.CELU(0.6), nn.GELU, lambda: nn.GELU("tanh"), lambda: nn.Softplus(2.0, 0.5)),
        *(lambda: nn.Hardshrink(0.2), lambda: nn.Softshrink(0.3), lambda: nn.Threshold(0.2, -3.0)),
        *(lambda: nn.Softmax(-1), lambda: nn.LogSoftmax(1), lambda: nn.Dropout(0.3)),
        *(lambda: nn.AlphaDropout(0.3), lambda: nn.Flatten(), lambda: nn.Flatten(0, 1)),
    ]
    return [(make, VECTORS) for make in (*plain, *told)] + [
        (lambda: nn.Flatten(2), VOLUMES),
        *((nn.PReLU, SERIES), (lambda: nn.PReLU(4), IMAGES), (lambda: nn.PReLU(4), VECTORS)),
        (lambda: nn.Unflatten(1, (2, 2)), SERIES),
        *((lambda: nn.ZeroPad1d(2), SERIES), (lambda: nn.ConstantPad1d((1, 0), 2.5), SERIES)),
        *((lambda: nn.ZeroPad2d(1), IMAGES), (lambda: nn.ConstantPad2d((1, 0, 2, 3), -1), IMAGES)),
        *((lambda: nn.ZeroPad3d(1), VOLUMES), (lambda: nn.ConstantPad3d(1, 0.5), VOLUMES)),
        *((lambda: nn.CircularPad1d(2), SERIES), (lambda: nn.CircularPad2d((1, 0, 2, 1)), IMAGES)),
        (lambda: nn.CircularPad3d(1), VOLUMES),
        (lambda: nn.Softmax(1), IMAGES),
        *((lambda: nn.Dropout1d(0.4), SERIES), (lambda: nn.Dropout2d(0.4), IMAGES)),
        (lambda: nn.Dropout3d(0.4), VOLUMES),
    ]


def layers() -> list[Row]:
    return [
        *((lambda: nn.Linear(4, 3), VECTORS), (lambda: nn.Linear(9, 3, bias=False), SERIES)),
        (lambda: nn.Embedding(5, 3, padding_idx=1), TOKENS),
        (lambda: nn.EmbeddingBag(5, 3), TOKENS),
        (lambda: nn.EmbeddingBag(5, 3, mode="sum", padding_idx=2), TOKENS),
        (lambda: nn.EmbeddingBag(5, 3, mode="max"), TOKENS),
        (lambda: nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2), SERIES),
        (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, bias=False), IMAGES),
        (lambda: nn.Conv2d(4, 6, 3, padding="same"), IMAGES),
        (lambda: nn.Conv3d(4, 2, 2, (1, 2, 1), (0, 1, 1)), VOLUMES),
        (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, dilation=2), SERIES),
        (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 0), 2, False), IMAGES),
        (lambda: nn.ConvTranspose3d(4, 2, 2, 2, 1), VOLUMES),
    ]


def normalisations() -> list[Row]:
    return [
        *((lambda: nn.BatchNorm1d(4, eps=0.1), VECTORS), (lambda: nn.BatchNorm1d(4), SERIES)),
        *((lambda: nn.BatchNorm2d(4, affine=False), IMAGES), (lambda: nn.BatchNorm3d(4), VOLUMES)),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
        *((lambda: nn.LayerNorm((9, 8), eps=0.1), IMAGES), (lambda: nn.LayerNorm(4), VECTORS)),
        (lambda: nn.LayerNorm(9, elementwise_affine=False), SERIES),
        *((lambda: nn.GroupNorm(2, 4, eps=0.1), IMAGES), (lambda: nn.GroupNorm(4, 4), SERIES)),
        (lambda: nn.InstanceNorm1d(4, eps=0.1), SERIES),
        *((lambda: nn.InstanceNorm2d(4, affine=True), IMAGES), (nn.InstanceNorm3d, VOLUMES)),
    ]


def poolings() -> list[Row]:
    rows: list[Row] = []
    for shape, n in [(SERIES, 1), (IMAGES, 2), (VOLUMES, 3)]:
        largest, mean = getattr(nn, f"MaxPool{n}d"), getattr(nn, f"AvgPool{n}d")
        adaptive = [getattr(nn, f"Adaptive{kind}Pool{n}d") for kind in ("Avg", "Max")]
        rows += [
            (lambda m=largest: m(2), shape),
            (lambda m=largest: m(3, 1, 1, dilation=2, ceil_mode=True), shape),
            (lambda m=largest: m(2, return_indices=True), shape),
            (lambda m=mean: m(3, 2, 1, count_include_pad=False), shape),
            (lambda m=mean: m(2, ceil_mode=True), shape),
            *((lambda m=m: m(2), shape) for m in adaptive),
            (lambda m=adaptive[1]: m(2, return_indices=True), shape),
        ]
    rows += [
        (lambda: nn.AvgPool2d((2, 3), divisor_override=5), IMAGES),
        (lambda: nn.AdaptiveAvgPool2d((None, 3)), IMAGES),
    ]
    return rows


ROWS = pointwise() + layers() + normalisations() + poolings()


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = (make(4) if make is nn.InstanceNorm3d else make()).double()
    roughen(module, torch.Generator().manual_seed(1))
    return module


def input_of(shape: tuple[int, ...]) -> Tensor:
    if shape is TOKENS:
        return torch.randint(5, shape, generator=torch.Generator().manual_seed(2))
    return normal(*shape)


def tensors_of(module: nn.Module) -> dict[str, Value]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: Value(tensor.detach()) for name, tensor in named}


def at_base(value: Any) -> Any:
    return pytree.tree_map_only(Value, lambda v: v.base, value)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("make", "shape"), ROWS, ids=lambda row: str(row) if isinstance(row, tuple) else build(row)
)
def test_the_lowered_call_is_the_module(make: Callable[[], nn.Module], shape, train: bool):
    module, x = build(make).train(train), input_of(shape)
    call = lower(module, Value(x), tensors_of(module))
    assert call is not None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        found = call.function(*at_base(list(call.args)), **at_base(call.kwargs))
        torch.manual_seed(3)
        expected = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_every_lowering_is_in_this_table():
    assert set(_LOWERINGS) == {type(build(make)) for make, _ in ROWS}


def test_a_module_is_lowered_to_what_has_a_rule():
    without = set()
    for make, shape in ROWS:
        module = build(make)
        call = lower(module, Value(input_of(shape)), tensors_of(module))
        if call.function not in RULES:
            without.add(type(module).__name__)
    assert without == set()


class Own(nn.Linear):
    """A subclass may compute anything."""


def hooked() -> nn.Module:
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda *_: None)
    return module


def patched() -> nn.Module:
    module = nn.Linear(4, 3)
    module.forward = lambda x: 2 * nn.Linear.forward(module, x)
    return module


def pre_hooked() -> nn.Module:
    module = nn.Linear(4, 3)
    module.register_forward_pre_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        *((Own(4, 3), VECTORS), (hooked(), VECTORS), (pre_hooked(), VECTORS)),
        (patched(), VECTORS),
        *((nn.Embedding(5, 2, max_norm=1.0), TOKENS), (nn.EmbeddingBag(5, 2, 1.0), TOKENS)),
        (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGES),
        (nn.InstanceNorm1d(4, track_running_stats=True), SERIES),
        (nn.InstanceNorm1d(6), VECTORS),
        *((nn.Softmax(), VECTORS), (nn.LogSoftmax(), VECTORS), (nn.GRU(4, 3), SERIES)),
    ],
    ids=str,
)
def test_what_is_more_than_its_function_is_not_lowered(module: nn.Module, shape: tuple[int, ...]):
    assert lower(module, Value(input_of(shape)), tensors_of(module)) is None
