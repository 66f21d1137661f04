"""What explain says of each parameter: the cut, the live set, the cost, and what changes how."""

import copy
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoestim import BlackBox, FeatureReuseWarning, ZOClassifier, explain
from zoestim.models import SimpleCNN
from zoestim.propagation import RULES

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

HEADINGS = ["parameter", "shape", "ratio", "cut", "live set", "nodes", "MFLOP", "MB", "how"]
X = torch.linspace(-1, 1, 64).view(16, 4)


def mlp() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3))


def cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return SimpleCNN(2, width=4)


IMAGES = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)


# --- The table


def test_there_is_a_row_for_each_parameter_in_its_order():
    module = cnn()
    table = explain(module, IMAGES)
    named = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    assert [(layer.name, layer.shape) for layer in table.layers] == named
    lines = str(table).splitlines()
    assert all(heading in lines[0] for heading in HEADINGS)
    assert [line.split()[0] for line in lines[1:]] == [name for name, _ in named]
    assert repr(table) == str(table)


def test_frozen_parameters_have_no_row():
    module = mlp()
    module[0].requires_grad_(False)
    names = [layer.name for layer in explain(module, X).layers]
    assert names == ["2.weight", "2.bias", "3.weight", "3.bias"]


def test_cut_and_live_set_are_those_of_the_graph():
    found = {layer.name: layer for layer in explain(mlp(), X).layers}
    assert [found[f"{k}.weight"].cut for k in (0, 2, 3)] == ["0", "2", "3"]
    assert [found[f"{k}.weight"].live_set for k in (0, 2, 3)] == [("input_1",), ("1",), ("2",)]
    assert [found[f"{k}.bias"].nodes for k in (0, 2, 3)] == [5, 3, 2]


def test_a_shortcut_keeps_what_it_reads_alive():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = mlp()[0], nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return hidden + self.second(hidden)

    with torch.random.fork_rng(devices=[]):
        found = {layer.name: layer for layer in explain(Shortcut(), X).layers}
    assert found["second.bias"].live_set == ("first",)
    assert found["second.bias"].cut == "second"
    assert found["first.bias"].live_set == ("x",)


def test_costs_are_those_of_one_coordinate():
    found = {layer.name: layer for layer in explain(mlp(), X).layers}
    assert found["0.weight"].flops == 2 * 16 * 6 * 3  # only the last layer is multiplied
    assert found["2.weight"].flops == found["3.weight"].flops == 0
    assert found["0.weight"].bytes > found["2.weight"].bytes >= found["3.weight"].bytes > 0
    assert found["0.weight"].share > found["2.weight"].share >= found["3.weight"].share > 0


def test_a_row_says_what_changes_on_the_way():
    paths = {layer.name: layer.path for layer in explain(mlp(), X).layers}
    assert paths["0.weight"] == "0: 1 of 8 features > 2: all, rank one > 3: all"
    assert paths["2.bias"] == "2: 1 of 6 features > 3: all, rank one"
    assert paths["3.weight"] == "3: 1 of 3 features"


def test_channels_are_told_from_features():
    paths = {layer.name: layer.path for layer in explain(cnn(), IMAGES).layers}
    first = "blocks.0.0: 1 of 4 channels > blocks.1.0: all"
    assert paths["blocks.0.0.weight"] == first
    last = "blocks.1.0: 1 of 4 channels > flatten: 1 of 4 features > linear: all, rank one"
    assert paths["blocks.1.0.weight"] == last


def test_an_operation_without_a_rule_is_said_to_run_itself():
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(x, 1)[0]

    found = explain(nn.Sequential(mlp()[0], Largest()), X).layers[0]
    assert found.path == "0: 1 of 8 features > cummax: all, run itself > getitem: all"


def test_a_parameter_that_nothing_reads_costs_nothing():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = mlp(), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    found = {layer.name: layer for layer in explain(Holder(), X).layers}["unused"]
    assert found.cut == "never read"
    assert (found.nodes, found.flops, found.bytes, found.live_set) == (0, 0, 0, ())
    assert found.cells()[1] == "1"


def test_ratios_are_zero_but_where_they_are_given():
    table = explain(mlp(), X, layer_ratios={"0.weight": 0.1234, "3.bias": 1.0})
    ratios = {layer.name: layer.ratio for layer in table.layers}
    expected = {name: 0.0 for name, _ in mlp().named_parameters()}
    assert ratios == expected | {"0.weight": 0.1234, "3.bias": 1.0}
    rows = [line.split() for line in str(table).splitlines()[1:]]
    assert rows[0][:3] == ["0.weight", "8x4", "0.123"]
    assert rows[1][:3] == ["0.bias", "8", "0"]
    assert rows[-1][:3] == ["3.bias", "3", "1"]


def test_ratios_are_those_of_a_fitted_estimator():
    model = ZOClassifier(mlp, sparsity=0.5, max_epochs=1, random_state=0)
    model.fit(X.numpy(), torch.arange(16).numpy() % 3)
    table = explain(model.module_, X, layer_ratios=model.layer_ratios_)
    assert {layer.name: layer.ratio for layer in table.layers} == model.layer_ratios_
    assert sum(model.layer_ratios_.values()) > 0


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"0.wieght": 0.1}, r"layer_ratios names \['0.wieght'\], .* Those are \['0.weight', "),
        ({"0.weight": 1.5}, r"fractions in \[0, 1\]; got 1.5 for '0.weight'"),
        ({"0.weight": float("nan")}, r"got nan for '0.weight'"),
    ],
    ids=["name", "size", "nan"],
)
def test_wrong_ratios_are_refused(ratios: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        explain(mlp(), X, layer_ratios=ratios)


def test_the_cost_is_that_of_the_batch():
    one, two = (explain(mlp(), x).layers[0] for x in (X[:8], X))
    assert two.flops == 2 * one.flops > 0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_module_is_left_as_it_was(training: bool):
    module = cnn().train(training)
    before = copy.deepcopy(module.state_dict())
    explain(module, IMAGES)
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert module.training is training
    assert all(p.grad is None for p in module.parameters())


def test_arrays_are_taken_as_tensors_are():
    assert str(explain(mlp(), X.numpy())) == str(explain(mlp(), X))


# --- As HTML


class Table(HTMLParser):
    """Cells and paragraphs of a table; refuses tags that are not closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("table", "thead", "tbody", "tr", "th", "td", "p")
        assert attrs == []
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "p":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "p":
            self.notes[-1] += data
        else:
            assert self.open[-1] in ("th", "td")
            self.rows[-1][-1] += data


def test_html_holds_the_cells_of_the_text():
    table = explain(mlp(), X)
    found = Table(table._repr_html_())
    assert set(HEADINGS) < set(found.rows[0])
    assert found.rows[1:] == [list(layer.cells()) for layer in table.layers]
    assert found.notes == []


def test_html_escapes_names():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&amp", nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, "<b>&amp")(x)

    with torch.random.fork_rng(devices=[]):
        text = explain(Odd(), X)._repr_html_()
    assert "<b>" not in text
    assert [row[0] for row in Table(text).rows[1:]] == ["<b>&amp.weight", "<b>&amp.bias"]


# --- What has no graph


class Branching(nn.Module):
    """Its forward asks for a value, which a trace does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() < 1e9 else x


def test_a_module_that_cannot_be_traced_is_said_to_run_as_a_whole():
    with pytest.warns(FeatureReuseWarning):
        table = explain(Branching(), X)
    assert not table.reuse
    assert len(table.layers) == 6
    note = str(table).splitlines()[-1]
    assert note == f"Every query runs the whole forward pass: {table.reuse.reason}."
    assert Table(table._repr_html_()).notes == [note]
    assert all(layer.nodes == 2 and layer.path.endswith("run itself") for layer in table.layers)


def test_a_submodule_that_cannot_be_traced_is_one_node():
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(Branching(), nn.Linear(3, 2))
    with pytest.warns(FeatureReuseWarning):
        table = explain(module, X)
    assert table.reuse
    assert any(line.startswith("0 is one node: ") for line in str(table).splitlines())
    assert {layer.cut for layer in table.layers} == {"0", "1"}


class Asked:
    """A black box that counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        self.calls += 1
        return x @ params["w"]


def boxed(asked: Asked) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        box = BlackBox(asked, {"w": torch.ones(8, 6)})
        return nn.Sequential(nn.Linear(4, 8), box, nn.Linear(6, 3))


def test_a_black_box_is_asked_for_no_query():
    calls = []
    for n_frozen in (0, 4):
        module, asked = boxed(used := Asked()), used
        for parameter in list(module.parameters())[:n_frozen]:
            parameter.requires_grad_(False)
        explain(module, X)
        calls.append(asked.calls)
    assert calls[0] == calls[1]


def test_a_black_box_is_asked_for_the_one_pass_alone():
    explain(boxed(asked := Asked()), X)
    assert asked.calls == 1


def test_what_is_before_a_black_box_costs_the_rest_of_the_graph():
    found = {layer.name: layer for layer in explain(boxed(Asked()), X).layers}
    before, inside, behind = (found[n] for n in ("0.weight", "1.w", "2.weight"))
    assert (before.flops, inside.flops) == (0, 0)
    float32 = 4
    assert before.bytes == 3 * 16 * (8 + 6 + 3 + 3) * float32
    assert inside.bytes == 3 * 16 * (6 + 3 + 3) * float32
    assert before.path == inside.path == "the values themselves"
    assert behind.path == "2: 1 of 3 features"


class Remembers(nn.Linear):
    """Stores what it last gave."""

    last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


def test_what_modules_store_is_that_of_the_unperturbed_pass():
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.Linear(4, 3), Remembers(3, 2)).double()
    explain(module, X.double())
    last = module[1].last
    assert last is None or torch.equal(last, module(X.double()))


def test_an_operation_that_refuses_one_query_is_noted(monkeypatch):
    def refuses(*args: Any) -> None:
        raise RuntimeError("not today")

    monkeypatch.setitem(RULES, nn.functional.relu, refuses)
    table = explain(mlp(), X)
    assert "0.weight runs one by one: not today." in str(table)
    assert table.layers[0].path == "the values themselves"
    assert table.layers[2].path.startswith("2: 1 of 6 features")
