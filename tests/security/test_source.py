"""The package's source has nothing that could run what it reads: no unpickling, no `eval`, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hssl_dist

PACKAGE = Path(hssl_dist.__file__).parent

UNPICKLERS = (
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
)
RUNS_TEXT = ("eval", "exec", "compile", "__import__")
SHELLS = ("os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput")
LOADS_CODE = (
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "runpy.run_path"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "mlflow.sklearn.load_model"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle"),
    *(
        "dist.all_gather_object",
        "dist.gather_object",
        "dist.broadcast_object_list",
        "dist.scatter_object_list",
    ),
)


RANKS_TRUST_EACH_OTHER = "collectives.py"
"""The ranks of one job, which run the same code, send one another pickled objects; no file is read so."""


def offences(source: str) -> list[str]:
    """What a module does that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.Call):
            found += _offences_of_call(node)
    return found


def _offences_of_call(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    keys = {key.arg: ast.unparse(key.value) for key in call.keywords}
    if name in RUNS_TEXT or name in SHELLS or any(name.endswith(end) for end in LOADS_CODE):
        return [f"calls {name}"]
    if name == "torch.load" and keys.get("weights_only") != "True":
        return ["calls torch.load without weights_only=True"]
    if keys.get("allow_pickle", "False") != "False":
        return [f"calls {name} with allow_pickle"]
    return [f"calls {name} with a shell"] if keys.get("shell", "False") != "False" else []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import joblib.numpy_pickle",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "np.load(path, allow_pickle=True)",
        "numpy.lib.format.read_array(stream, allow_pickle=yes)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
        "mlflow.pyfunc.load_model(uri)",
        "torch.distributed.dist.all_gather_object(out, value)",
    ],
)
def test_what_could_run_data_is_noticed(source: str) -> None:
    assert len(offences(source)) == 1


def test_what_cannot_is_not() -> None:
    fine = (
        "torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); subprocess.run(w); network.eval()"
    )
    assert offences(fine) == []


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_could_run_what_it_reads(path: Path) -> None:
    found = offences(path.read_text())
    if path.name == RANKS_TRUST_EACH_OTHER:
        found = [offence for offence in found if not offence.startswith("calls dist.")]
    assert found == []
