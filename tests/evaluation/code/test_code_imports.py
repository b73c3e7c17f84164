"""Problems whose tests import what the sandbox does not have: named, never failed; packages that are let in."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from bytemtp.common.errors import UserError
from bytemtp.evaluation.code.execute import Sample, Verdict, judge, launched
from bytemtp.evaluation.code.imports import checked, statements
from bytemtp.evaluation.code.problems import problem_of

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")
PACKAGES = Path(np.__file__).parents[1]


def problem(name, *imports, body="", prompt="", expected="2"):
    test = "\n".join(
        [*imports, "def check(candidate):", f"    {body or 'pass'}", f"    assert candidate(1) == {expected}"]
    )
    record = {"task_id": name, "prompt": f"{prompt}def f(x):\n", "entry_point": "f", "test": test}
    return problem_of(record | {"canonical_solution": "    return 2\n"})


@pytest.mark.parametrize(
    ("imports", "body", "found"),
    [
        (["import numpy as np"], "", {"import numpy as np"}),
        (["from numpy.linalg import norm as n, det"], "", {"from numpy.linalg import norm as n, det"}),
        ([], "import a, b.c", {"import a, b.c"}),
        (["try:\n    import numpy\nexcept ImportError:\n    numpy = None"], "", set()),
        (["try:\n    import numpy\nfinally:\n    pass"], "", {"import numpy"}),
        (["import sys\nif sys.version_info > (9, 9):\n    import numpy"], "", {"import sys"}),
        (["np = __import__('numpy')"], "", {"from numpy import *"}),
        (["import importlib"], "importlib.import_module('a.b')", {"import importlib", "from a.b import *"}),
        (["import importlib"], "importlib.import_module('.b', 'a')", {"import importlib"}),
    ],
)
def test_imports_that_tests_come_to_are_found(imports, body, found):
    assert statements(problem("a", *imports, body=body)) == found


def test_tests_may_have_an_expression_of_a_thousand_terms():
    assert statements(problem("a", "import math", body="s = " + "+".join(["1"] * 1200))) == {"import math"}


def test_imports_of_the_prompt_and_of_mbpps_solution_count_too():
    assert statements(problem("a", prompt="import numpy\n")) == {"import numpy"}
    record = {"task_id": 1, "text": "", "code": "import numpy as np\ndef f(x): return x", "test_list": ["assert f(1)"]}
    assert statements(problem_of(record)) == {"import numpy as np"}


MISSING = {
    "module": ("import no_such_module as m", "m"),
    "name": ("from collections import Mapping", "Mapping"),
    "submodule": ("import json.no_such_module", "json"),
    "relative": ("from . import no_such_module", "no_such_module"),
    "star": ("from no_such_module import *", "pass"),
    "call": ("n = __import__('no_such_module')", "pass"),
}


@needs_bubblewrap
def test_tests_that_import_what_is_not_there_are_not_judged_and_the_others_are():
    """A right and a wrong answer: neither has failed."""
    problems = [problem(name, line, body=body) for name, (line, body) in MISSING.items()]
    problems.append(problem("prompt", prompt="import no_such_module\n"))
    problems.append(problem("fine", "import json, unittest.mock"))
    samples = [Sample(p.task_id, f"    return x + {i}\n") for p in problems for i in (0, 1)]
    verdicts = list(judge(problems, samples, timeout=20.0))
    assert [v.passed for v in verdicts[-2:]] == [False, True] and all(v.judged for v in verdicts[-2:])
    for verdict in verdicts[:-2]:
        assert not verdict.judged and verdict.fields_of_line()["passed"] is None
        assert verdict.result.startswith("not judged: its tests need `") and "Error: " in verdict.result


@needs_bubblewrap
def test_if_no_problem_can_be_judged_it_is_said_with_what_to_do(capsys):
    launch = launched(1, 3.0, 1024, unsafe=False, site_packages=None)
    with pytest.raises(
        UserError, match=r"none of the 1 problems.*a \(its tests need `import no_such.*--site-packages DIR"
    ):
        checked(launch, [problem("a", "import no_such_module as n", body="n")])
    [_, left_out] = checked(launch, [problem("a"), problem("b", "import no_such_module as n", body="n")])
    assert "No module named 'no_such_module'" in left_out.fault
    assert "left out, because they cannot be judged: b (its tests need" in capsys.readouterr().err


def test_a_folder_of_packages_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder; --site-packages must name one"):
        launched(1, 3.0, 1024, unsafe=True, site_packages=tmp_path / "no")


@needs_bubblewrap
@pytest.mark.parametrize("unsafe", [False, True])
def test_packages_that_are_let_in_serve_tests_and_programs(unsafe, tmp_path):
    """Also from a folder below /tmp, which programs have of their own, and with a space in its name."""
    folder = tmp_path / "site packages"
    (folder / "parcel").mkdir(parents=True)
    (folder / "parcel/__init__.py").write_text("content = 2\n")
    for parent in (folder, *list(folder.parents)[:-2]):
        parent.chmod(0o755)
    known = problem("a", "from parcel import content", expected="content")
    samples = [Sample("a", "    import parcel\n    return parcel.content\n"), Sample("a", "    return 3\n")]
    verdicts = judge([known], samples, timeout=20.0, unsafe=unsafe, site_packages=folder)
    assert [v.passed for v in verdicts] == [True, False]


@needs_bubblewrap
def test_programs_cannot_change_the_packages(tmp_path):
    (tmp_path / "parcel.py").write_text("content = 2\n")
    (tmp_path / "parcel.py").chmod(0o666)
    for parent in (tmp_path, *list(tmp_path.parents)[:-2]):
        parent.chmod(0o755)
    change = "    import parcel\n    open(parcel.__file__, 'a').write('content = 1')\n    return 2\n"
    [verdict] = judge([problem("a")], [Sample("a", change)], timeout=20.0, site_packages=tmp_path)
    assert verdict == Verdict(False, "failed: OSError: [Errno 30] Read-only file system: '/packages/parcel.py'")


@needs_bubblewrap
def test_numpy_in_tests_and_programs():
    """The tests of HumanEval+ and MBPP+ compare with it; its numbers travel as Python's, its arrays do not."""
    returned = {
        "np.add(x, 1)": True,
        "np.float32(2)": True,
        "np.array(2)": True,
        "np.longdouble(2)": False,
        "np.array([2])": False,
        "np.dtype(int)": False,
        "np.bool_(x)": False,
        "x": False,
    }
    known = problem("a", "import numpy as np", body="assert np.allclose(candidate(1), 2)")
    samples = [Sample("a", f"    import numpy as np\n    return {value}\n") for value in returned]
    verdicts = list(judge([known], samples, timeout=60.0, site_packages=PACKAGES))
    assert [v.passed for v in verdicts] == list(returned.values()) and all(v.judged for v in verdicts)
    assert verdicts[4].result == "failed: TypeError: f returned a ndarray, which is no plain value"


@needs_bubblewrap
def test_imports_of_names_that_tests_do_not_use_are_not_needed():
    """As those of a known solution that needs a package, where other answers do not."""
    record = {"task_id": "mbpp", "text": "", "code": "import no_such_module\ndef f(x): return x", "test_list": ["f(1)"]}
    problems = [
        problem("top", "import no_such_module as n"),
        problem("inner", body="import no_such_module"),
        problem_of(record),
    ]
    samples = [Sample("top", "    return 2\n"), Sample("inner", "    return 2\n"), Sample("mbpp", "def f(x): return x")]
    assert list(judge(problems, samples, timeout=20.0)) == [Verdict(True, "passed")] * 3
    assert not next(judge(problems, [Sample("top", "    return 1\n")], timeout=20.0)).passed
