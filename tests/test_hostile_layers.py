"""Layers driven through random lives: what they return is right by exact arithmetic, and their state is kept."""

import copy
import pathlib
import pickle
import tempfile
import threading

import exact
import hypothesis
import numpy as np
from guarded import attempt, call, refuse
from hostile_calls import Case, check_backward, check_forward, check_moving
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layer_cases import same_state
from strategies import FLOATS, Given, arrays
from wrong import WRONG_ARRAYS, wrong

import cbnorm

MAKE = {
    "batch": lambda **options: cbnorm.BatchNorm(3, **options),
    "layer": lambda **options: cbnorm.LayerNorm((2, 3), **options),
    "group": lambda **options: cbnorm.GroupNorm(2, 4, **options),
    "instance": lambda **options: cbnorm.InstanceNorm(3, **options),
    "rms": lambda **options: cbnorm.RMSNorm(5, **options),
}
SHAPES = {
    "batch": [(4, 3), (2, 3, 2), (1, 3), (0, 3), (3, 3, 1, 2), (7, 3)],
    "layer": [(2, 3), (4, 2, 3), (0, 2, 3), (2, 2, 2, 3)],
    "group": [(1, 4), (3, 4, 2), (0, 4), (2, 4, 0), (2, 4, 2, 2)],
    "instance": [(1, 3), (3, 3, 2), (2, 3, 0), (2, 3, 2, 2)],
    "rms": [(5,), (3, 5), (0, 5), (2, 2, 5)],
}
RECIPES = ["plain", "offset", "constant", "small integers", "of many scales", "first far away", "one NaN"]
OPTIONS = st.fixed_dictionaries(
    {
        "eps": st.sampled_from([1e-5, 0.0, 1.0]),
        "affine": st.booleans(),
        "dtype": st.sampled_from(FLOATS),
        "reuse_output": st.booleans(),
    }
)
BATCH_OPTIONS = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.9, 0.5, 1.0, 0.0, None]),
        "ddof": st.sampled_from([0, 1]),
        "axis": st.sampled_from([1, -1]),
    }
)
BAD_STATES = [
    "nothing",
    "a list",
    "a name is missing",
    "a name too many",
    "another shape",
    "another dtype",
    "text",
    "None",
]


class LayerLife(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(sorted(MAKE)), options=OPTIONS, of_batch=BATCH_OPTIONS)
    def is_made(self, kind, options, of_batch):
        self.kind = kind
        self.options = options | (of_batch if kind == "batch" else {})
        self.layer = MAKE[kind](**self.options)
        self.begins_anew()

    def begins_anew(self):
        """A layer that this thread has not called."""
        self.state = self.layer.state_dict()
        self.last = None  # the case of the last forward call, with its statistics and xhat
        self.called = self.stale = False  # stale: gamma changed after the call
        self.kept = None  # the last y, and a copy

    def meaning(self, x):
        """The forward call that the layer stands for, with what it holds now."""
        layer, shape, kind = self.layer, x.means.shape, self.kind
        held = {name: None if layer is None else getattr(layer, name, None) for name in ("gamma", "beta")}
        arguments = {name: Given(value, None if value is None else value.copy()) for name, value in held.items()}
        arguments |= {"x": x, "eps": layer.eps}
        if kind != "batch":
            where = {
                "layer": lambda: exact.rows(shape, -2),
                "rms": lambda: exact.rows(shape, -1, False),
                "group": lambda: exact.groups(shape, 2),
                "instance": lambda: exact.groups(shape, 3),
            }[kind]()
            return Case(kind, arguments, where)
        momentum = layer.momentum
        if momentum is None:
            momentum = layer.num_batches / (layer.num_batches + 1)
        for name in ("moving_mean", "moving_var"):
            arguments[name] = Given(None, getattr(layer, name).copy())
        arguments |= {"axis": layer.axis, "momentum": momentum, "ddof": layer.ddof}
        kind = "batch test" if layer.frozen or not layer.training else "batch"
        return Case(kind, arguments, exact.channels(shape, layer.axis))

    def shape(self, data):
        shape = data.draw(st.sampled_from(SHAPES[self.kind]), "shape")
        if self.kind == "batch" and self.layer.axis == -1:
            shape = (shape[0], *shape[2:], 3)
        return shape

    @rule(data=st.data())
    def goes_forward(self, data):
        self.forward(data, data.draw(arrays(self.shape(data), recipes=RECIPES), "x"))

    @precondition(lambda self: self.kept is not None and self.kept[0].size)
    @rule(data=st.data())
    def goes_forward_with_its_own_result(self, data):
        y = self.kept[0]
        self.forward(data, Given(y, y.copy()))

    def forward(self, data, x):
        case = self.meaning(x)
        if case.kind == "batch" and self.layer.ddof == 1 and x.means.size == 3:
            refuse(self.layer.forward, ("x", "ddof"), x=x.thing)
            return
        y = call(self.layer.forward, x=x.thing)
        found, xhat = check_forward(case, y, None)
        if case.kind == "batch":
            check_moving(case, self.layer.moving_mean, self.layer.moving_var, found)
            assert self.layer.num_batches == int(self.state["num_batches"]) + (x.means.size > 0)
            self.state = self.layer.state_dict()
        if self.kept is not None and not self.layer.reuse_output:
            assert self.kept[0].tobytes() == self.kept[1]
        self.last, self.called, self.stale = (case, found, xhat), True, False
        self.kept = y, y.tobytes()

    @precondition(lambda self: self.last is not None)
    @rule(data=st.data())
    def goes_backward(self, data):
        case, found, xhat = self.last
        dout = data.draw(arrays(case.x.shape, FLOATS, ["plain", "small integers", "one NaN"]), "dout")
        before = dict(self.layer.grads)
        outcome = attempt(self.layer.backward, dout=dout.thing)
        if (
            outcome.error is not None
        ):  # where that is right, the random lives in test_layers_records.py know to the call
            assert outcome.names == "cache"
            assert self.layer.grads == before
            return  # what is in doubt stays so
        if not self.stale:
            need = [True, self.layer.gamma is not None, getattr(self.layer, "beta", None) is not None]
            grads = self.layer.grads
            assert list(grads) == list(self.layer.parameters())
            need = need[:2] if self.kind == "rms" else need
            got = (outcome.result, grads.get("gamma"), grads.get("beta"))[: len(need)]
            check_backward(case, dout, got, need, found, xhat)

    @precondition(lambda self: self.last is None)
    @rule()
    def refuses_backward_before_forward(self):
        refuse(self.layer.backward, ("backward", "cache"), dout=np.ones((2, 3)))

    @rule(data=st.data())
    def refuses_a_wrong_x(self, data):
        shape = self.shape(data)
        table = wrong(WRONG_ARRAYS, np.ones(shape)) | st.just(Given(np.ones((2, 7)), None, "length 7"))
        refuse(self.layer.forward, ("x",), x=data.draw(table, "x").thing)

    @precondition(lambda self: self.last is not None)
    @rule(data=st.data())
    def refuses_a_wrong_dout(self, data):
        shape, before = self.last[0].x.shape, self.layer.grads
        table = wrong(WRONG_ARRAYS, np.ones(shape)) | st.just(Given(np.ones((*shape, 2)), None, "one axis more"))
        refuse(
            self.layer.backward,
            ("dout", "cache"),
            dout=data.draw(table, "dout").thing,
        )
        assert self.layer.grads is before or self.layer.grads == before

    @rule(way=st.sampled_from(["copy", "deepcopy", "pickle"]), protocol=st.integers(2, 5), stays=st.booleans())
    def is_copied(self, way, protocol, stays):
        ways = {
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda a: pickle.loads(pickle.dumps(a, protocol)),
        }
        new = ways[way](self.layer)
        assert type(new) is type(self.layer)
        assert same_state(new, self.state)
        assert new.grads == {}
        refuse(new.backward, ("backward", "cache"), dout=np.ones((2, 3)))
        plain = {name: value for name, value in vars(new).items() if isinstance(value, int | float | str | tuple)}
        assert plain == {name: vars(self.layer)[name] for name in plain}
        if not stays:
            self.layer = new
            self.begins_anew()

    @rule(data=st.data(), stays=st.booleans())
    def is_saved_and_loaded(self, data, stays):
        with tempfile.TemporaryDirectory() as folder:
            path = data.draw(st.sampled_from([pathlib.Path, str]), "path")(pathlib.Path(folder) / "layer")
            call(self.layer.save, path=path)
            new = MAKE[self.kind](**self.options)
            call(new.load, path=path)
            assert same_state(new, self.state)
            content = pathlib.Path(path).read_bytes()
            where = data.draw(st.integers(0, len(content) - 1), "where")
            damage = data.draw(st.sampled_from(["cut", "flip", "double"]), "damage")
            flipped = content[:where] + bytes([content[where] ^ 0x10]) + content[where + 1 :]
            damaged = {"cut": content[:where], "flip": flipped, "double": content + content}[damage]
            pathlib.Path(path).write_bytes(damaged)
            outcome = attempt(new.load, path=path)
            if outcome.error is not None:
                assert outcome.names == "path"
            assert same_state(new, self.state)  # nothing has changed, or a byte that says nothing
        if not stays:
            self.take_over(new)

    def take_over(self, new):
        for name in ("training", "frozen"):
            if hasattr(new, name):
                setattr(new, name, getattr(self.layer, name))
        self.layer = new
        self.begins_anew()

    @rule(data=st.data())
    def loads_a_state(self, data):
        state = {}
        for name, own in self.state.items():
            if name == "num_batches":
                state[name] = data.draw(st.integers(0, 2**40), name)
                continue
            value = data.draw(arrays(own.shape, (own.dtype.name,), ["plain", "small integers"]), name)
            means = np.abs(value.means) if name == "moving_var" else value.means
            state[name] = means.astype(own.dtype)  # lists have another dtype
        call(self.layer.load_state_dict, state_dict=state)
        assert same_state(self.layer, {name: np.array(value) for name, value in state.items()})
        self.state, self.stale = self.layer.state_dict(), self.called

    @rule(data=st.data(), problem=st.sampled_from(BAD_STATES))
    def refuses_a_wrong_state(self, data, problem):
        state = dict(self.state)
        name = data.draw(st.sampled_from(sorted(state)), "name") if state else None
        if problem == "nothing":
            state = None
        elif problem == "a list":
            state = list(state.items())
        elif problem == "a name too many" or name is None:
            state["delta"] = np.ones(3)
        elif problem == "a name is missing":
            del state[name]
        elif problem == "another shape":
            state[name] = np.ones((*state[name].shape, 2), state[name].dtype)
        elif problem == "another dtype":
            state[name] = np.ones(state[name].shape, "i2")
        else:
            state[name] = {"text": "text", "None": None}[problem]
        refuse(self.layer.load_state_dict, ("state_dict",), state_dict=state)

    @rule(training=st.booleans())
    def changes_its_mode(self, training):
        assert (self.layer.train if training else self.layer.eval)() is self.layer
        assert self.layer.training is training

    @rule(reuse=st.booleans())
    def reuses_output(self, reuse):
        self.layer.reuse_output = reuse
        self.options["reuse_output"] = reuse
        self.kept = None

    @rule(seed=st.integers(0, 99))
    def takes_a_step_of_an_optimizer(self, seed):
        for array in self.layer.parameters().values():
            array += np.random.default_rng(seed).normal(size=array.shape).astype(array.dtype)
        self.state, self.stale = self.layer.state_dict(), self.called

    @rule()
    def is_used_by_another_thread(self):
        """Which has a cache and gradients of its own."""
        errors, before = [], self.layer.grads
        shape = {"batch": (4, 3), "layer": (2, 3), "group": (1, 4), "instance": (1, 3), "rms": (5,)}[self.kind]

        def work():
            try:
                assert self.layer.grads == {}
                self.layer.backward(self.layer(np.ones(shape)))
            except BaseException as error:
                errors.append(error)

        other = threading.Thread(target=work)
        other.start()
        other.join()
        assert not errors
        assert self.layer.grads is before
        self.state = self.layer.state_dict()

    @invariant()
    def holds_what_it_held(self):
        if hasattr(self, "state"):
            assert same_state(self.layer, self.state)


TestLayerLife = LayerLife.TestCase
TestLayerLife.settings = hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)
