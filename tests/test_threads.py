"""How many threads calls use: what the user says; one after a fork, and in a library built without OpenMP."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import assert_same_bits, batch, make_case, results
from processes import needs_openmp, run_python

import cbnorm
from cbnorm import _threads

# More numbers than eight threads need for a share each.
CASE = batch(), *make_case(batch(), (2_003, 151), np.float32)


@pytest.fixture(autouse=True)
def number_is_restored():
    before = _threads._global
    yield
    _threads._global = before


@needs_openmp
@pytest.mark.parametrize("number", [1, 2, 1024, np.int64(3)])
def test_set_and_get(number):
    cbnorm.set_num_threads(number)
    assert cbnorm.get_num_threads() == number
    assert type(cbnorm.get_num_threads()) is int


@needs_openmp
@pytest.mark.parametrize(
    ("number", "error"),
    [
        *((number, ValueError) for number in (0, -1, 1025, 10**30)),
        *((number, TypeError) for number in (None, "2", 2.0, float("nan"), [2], True)),
    ],
)
def test_bad_numbers(number, error):
    cbnorm.set_num_threads(5)
    with pytest.raises(error, match=r"^num_threads: expected .*, got "):
        cbnorm.set_num_threads(number)
    with pytest.raises(error, match=r"^num_threads: expected .*, got "), cbnorm.threads(number):
        pytest.fail("the block was entered")
    assert cbnorm.get_num_threads() == 5


@needs_openmp
def test_blocks_nest_and_end_with_exceptions():
    def fail():
        with cbnorm.threads(7):
            raise KeyError(cbnorm.get_num_threads())

    cbnorm.set_num_threads(5)
    with cbnorm.threads(2):
        assert cbnorm.get_num_threads() == 2
        with pytest.raises(KeyError, match="7"):
            fail()
        assert cbnorm.get_num_threads() == 2
        cbnorm.set_num_threads(4)
        assert cbnorm.get_num_threads() == 2
    assert cbnorm.get_num_threads() == 4


@needs_openmp
def test_a_block_decorates_a_function():
    @cbnorm.threads(3)
    def number():
        return cbnorm.get_num_threads()

    cbnorm.set_num_threads(5)
    assert [number(), number(), cbnorm.get_num_threads()] == [3, 3, 5]


@needs_openmp
def test_the_number_of_a_block_is_not_taken_for_the_default():
    code = (
        "import numpy as np, cbnorm, os\n"
        "from cbnorm import _kernels, _threads\n"
        "before = cbnorm.get_num_threads()\n"
        "with cbnorm.threads(before + 1): inside = cbnorm.get_num_threads()\n"
        "print(inside - before, _threads.threads_for(10**6) - before)"
    )
    assert run_python(code).stdout == "1 0\n"


@needs_openmp
def test_a_block_is_for_its_python_thread_alone():
    cbnorm.set_num_threads(5)
    inside, leave = threading.Event(), threading.Event()

    def block():
        with cbnorm.threads(2):
            inside.set()
            assert leave.wait(30)
            return cbnorm.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(block)
        assert inside.wait(30)
        here = cbnorm.get_num_threads()
        leave.set()
        assert (here, other.result(30)) == (5, 2)
        # What is set for the process holds in threads that were started before.
        cbnorm.set_num_threads(6)
        assert pool.submit(cbnorm.get_num_threads).result(30) == 6


@needs_openmp
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # from JAX, where an earlier test imported it
def test_a_forked_child_runs_on_one_thread_and_does_not_hang():
    with cbnorm.threads(2):
        want = results(*CASE)
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)

        def child():
            cbnorm.set_num_threads(2)
            assert_same_bits(results(*CASE), want)
            sender.send(cbnorm.get_num_threads())

        process = fork.Process(target=child, daemon=True)
        process.start()
        try:
            assert receiver.poll(20), "the child hangs"
            assert receiver.recv() == 1
            process.join(20)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
        assert cbnorm.get_num_threads() == 2
        assert_same_bits(results(*CASE), want)


def test_without_openmp_there_is_one_thread_and_info_says_why(monkeypatch, capsys):
    monkeypatch.setattr(_threads, "_single", "built without OpenMP")
    cbnorm.set_num_threads(4)
    with pytest.raises(ValueError, match=r"^num_threads: expected 1 to 1024, got 0"):
        cbnorm.set_num_threads(0)
    with cbnorm.threads(8):
        assert cbnorm.get_num_threads() == 1
    cbnorm.show_config()
    assert "threads  1 (built without OpenMP)\n" in capsys.readouterr().out
    config = cbnorm.show_config("dicts")
    assert (config["threads"], config["threads_by"]) == (1, "built without OpenMP")
