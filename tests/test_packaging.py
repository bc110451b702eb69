"""One inference engine, one OpenCV and one FAISS: in every lock, resolution and environment."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

_EXTRAS = {
    "cpu": ["cpu", "postgres", "parquet"],
    "openvino": ["openvino", "postgres", "parquet"],
    "gpu": ["gpu", "postgres", "parquet"],
    "insightface": ["cpu", "postgres", "parquet", "insightface"],
    "gpu-insightface": ["gpu", "postgres", "parquet", "insightface"],
    "export": ["cpu", "postgres", "parquet", "export"],
    "lab": ["lab"],
    "dev": ["cpu", "postgres", "parquet", "insightface", "export", "lab", "dev"],
}
LOCK_EXTRAS = {lock: [*extras, "headless"] for lock, extras in _EXTRAS.items()}
# What a lock leaves out of its extras, and the files that tell uv so.
_EXCLUDES = {
    "gpu-insightface": ["gpu"],
    "openvino": ["openvino"],
    "export": ["export"],
    "dev": ["export"],
}
EXCLUDES = {lock: [*_EXCLUDES.get(lock, []), "headless"] for lock in LOCK_EXTRAS}
# Distributions of one family install the same import package over one another.
FAMILIES = {
    "onnxruntime": re.compile(r"(onnxruntime|ort)(-|$)"),
    "opencv": re.compile(r"opencv-"),
    "faiss": re.compile(r"faiss(-|$)"),
}
EXPECTED = {
    "cpu": {"onnxruntime", "opencv-python-headless", "faiss-cpu"},
    "openvino": {"onnxruntime", "opencv-python-headless", "faiss-cpu"},
    "gpu": {"onnxruntime-gpu", "opencv-python-headless", "faiss-gpu-cuvs"},
    # Beside the service of either kind.
    "lab": {"opencv-python-headless"},
}
PYTHONS = ["3.11", "3.12", "3.13"]
RESOLVE_SECONDS = 60
BUILD_SECONDS = 120

locks = pytest.mark.parametrize("lock", LOCK_EXTRAS)


def linux_environment(python: str) -> dict[str, str]:
    """The marker environment of the platform that every extra supports."""
    linux = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    return {key: str(value) for key, value in default_environment().items()} | linux


def parse(lock: str) -> list[tuple[Requirement, int]]:
    """Every requirement of a requirements file, with the number of hashes it carries."""
    joined = lock.replace("\\\n", " ")
    lines = [
        line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return [
        (Requirement(line.split("--hash=")[0].strip()), line.count("--hash=sha256:"))
        for line in lines
    ]


def read(lock: str) -> str:
    return (REQUIREMENTS / f"{lock}.txt").read_text()


def pins(lock: str, python: str = "3.12") -> dict[str, str]:
    """Name to version, as installed on Linux with one Python."""
    environment = linux_environment(python)
    return {
        canonicalize_name(requirement.name): str(requirement.specifier)
        for requirement, _ in parse(lock)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


def families(names: set[str]) -> set[str]:
    return {name for name in names for family in FAMILIES.values() if family.match(name)}


def declared(extras: list[str]) -> list[Requirement]:
    project = PYPROJECT["project"]
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in project["dependencies"] + optional]


def expected(lock: str) -> set[str]:
    (kind,) = EXPECTED.keys() & set(LOCK_EXTRAS[lock]) if lock != "dev" else ("cpu",)
    return EXPECTED[kind]


def test_every_lock_is_tested() -> None:
    files = {path.stem for path in REQUIREMENTS.glob("*.txt")}
    excludes = {f"{name}.excludes" for names in EXCLUDES.values() for name in names}
    assert files == excludes | set(LOCK_EXTRAS)


def excluded(lock: str) -> set[str]:
    return {
        requirement.name
        for name in EXCLUDES.get(lock, [])
        for requirement, _ in parse(read(f"{name}.excludes"))
    }


def test_without_a_lock_there_is_one_build_of_opencv() -> None:
    """InsightFace asks for the same one."""
    named = {one.name for one in declared(["cpu", "insightface"]) if "opencv" in one.name}
    assert named == {"opencv-python"}


def test_the_service_installs_nothing_of_the_laboratory() -> None:
    """But `onnx` beside a GPU, for which it prepares the networks."""
    lab = {"jinja2", "matplotlib", "onnx", "fonttools", "insightface", "scikit-image"}
    assert lab & pins(read("cpu")).keys() == set()
    assert lab & pins(read("gpu")).keys() == {"onnx"}
    assert lab - {"insightface", "scikit-image"} <= pins(read("lab")).keys()
    assert lab <= pins(read("dev")).keys()


def test_pytorch_is_in_the_export_extra_alone() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    naming = [name for name, lines in extras.items() if any("torch" in line for line in lines)]
    assert naming == ["export"]
    assert not any("torch" in line for line in PYPROJECT["project"]["dependencies"])
    assert all("torch" not in pins(read(lock)) for lock in LOCK_EXTRAS)


def test_openvino_comes_without_what_reports_its_use() -> None:
    """Its wheel asks for it, for a converter that is not used."""
    assert pins(read("openvino")).keys() - pins(read("cpu")).keys() == {"openvino"}


@locks
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_one_distribution_of_each_family(lock: str, python: str) -> None:
    assert families(set(pins(read(lock), python))) == expected(lock)


@locks
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_pyproject(lock: str, python: str) -> None:
    environment = linux_environment(python)
    locked = pins(read(lock), python)
    wanted = [
        requirement
        for requirement in declared(LOCK_EXTRAS[lock])
        if requirement.name not in excluded(lock)
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    unsatisfied = [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(
            locked.get(canonicalize_name(requirement.name), "==0").removeprefix("==")
        )
    ]
    assert unsatisfied == []
    assert "hatchling" in locked, "the project itself must install without a download"


@locks
def test_every_locked_requirement_is_pinned_and_hashed(lock: str) -> None:
    loose = [
        str(requirement)
        for requirement, hashes in parse(read(lock))
        if hashes == 0 or not re.fullmatch(r"==[^,*]+", str(requirement.specifier))
    ]
    assert loose == []


@locks
def test_lock_names_no_address_and_no_machine(lock: str) -> None:
    text = read(lock)
    for trace in ("://", "--index-url", "--extra-index-url", "--find-links", "file:", " /"):
        assert trace not in text


@locks
def test_lock_agrees_with_the_development_lock(lock: str) -> None:
    """Only then does `make serve` after `make test` find everything in place."""
    ours, development = pins(read(lock)), pins(read("dev"))
    assert {
        name for name in ours.keys() & development.keys() if ours[name] != development[name]
    } == set()
    if lock == "cpu":
        assert ours.keys() <= development.keys()


@locks
@pytest.mark.slow
def test_fresh_resolution_holds_one_distribution_of_each_family(lock: str) -> None:
    """Not the pins but today's newest releases: none of them may bring a second engine."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", "pyproject.toml"]
    command += [part for extra in LOCK_EXTRAS[lock] for part in ("--extra", extra)]
    for name in EXCLUDES.get(lock, []):
        command += ["--excludes", f"requirements/{name}.excludes.txt"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=RESOLVE_SECONDS, check=False
        )
    except FileNotFoundError:
        pytest.skip("uv is not installed")
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package registry did not answer within {RESOLVE_SECONDS} s")
    if done.returncode and re.search(
        r"error sending request|dns error|timed out", done.stderr, re.I
    ):
        pytest.skip("the package registry cannot be reached")
    assert done.returncode == 0, done.stderr
    assert families(set(pins(done.stdout))) == expected(lock)


def test_this_environment_holds_one_distribution_of_each_family() -> None:
    installed = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    for name, family in FAMILIES.items():
        assert len([each for each in installed if family.match(each)]) == 1, name


@pytest.mark.slow
def test_wheel_carries_the_code_and_the_packs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*command, str(tmp_path)], cwd=ROOT, check=True, timeout=BUILD_SECONDS)
    (wheel,) = tmp_path.glob("likeness-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packs = {path.relative_to(ROOT) for path in (ROOT / "models").glob("*/*")}
    assert "app/__init__.py" in names
    assert "app/cli/__init__.py" in names
    assert {f"app/{path.as_posix()}" for path in packs} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"app", f"likeness-{PYPROJECT['project']['version']}.dist-info"}


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_image_is_labelled_with_this_version() -> None:
    assert f"ARG VERSION={PYPROJECT['project']['version']}\n" in dockerfile()
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", dockerfile()))
    assert {"title", "description", "licenses", "version", "revision", "base.name"} <= labels


def test_the_image_needs_no_library_of_the_system() -> None:
    """So there is none that a vulnerability scanner could miss."""
    assert not re.search(r"dpkg-deb|apt-get|apt ", dockerfile())


def test_the_image_is_trimmed_for_both_devices() -> None:
    assert dockerfile().count("/opt/venv/bin/python scripts/trim_packages.py") == 2
    assert "!scripts/trim_packages.py" in (ROOT / ".dockerignore").read_text()


def test_the_base_image_is_pinned_by_digest_in_one_place() -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", dockerfile(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    for other in (ROOT / "scripts").glob("*.sh"):
        assert "python:3" not in other.read_text(), other


def test_the_image_needs_the_base_image_alone() -> None:
    """No build frontend from a registry, and no image of the same name that somebody else made."""
    assert "# syntax" not in dockerfile()
    assert set(re.findall(r"^FROM (\S+)", dockerfile(), re.MULTILINE)) - {"${BASE_IMAGE}"} <= set(
        re.findall(r"^FROM \S+ AS (\S+)", dockerfile(), re.MULTILINE)
    )
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["likeness"]
    assert service["pull_policy"] == "never"


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_the_image_leaves_the_build_backend_out(lock: str) -> None:
    """Everything that the lock has for hatchling alone."""
    only_to_build = {"hatchling"}
    for block in re.split(r"\n(?=\S)", read(lock)):
        found = re.match(r"([\w-]+)==", block)
        comments = re.findall(r"^ +# +(?:via *)?(.*)$", block, re.MULTILINE)
        by = {one for one in comments if one and not one.startswith("-c ")}
        if found and by and by <= {"hatchling"}:
            only_to_build.add(found[1])
    assert len(only_to_build) > 3
    removed = re.findall(r"pip uninstall --yes ([\w -]+?)\s*(?:&&|\n)", dockerfile())
    assert [set(one.split()) for one in removed] == [{*only_to_build, "pip"}] * 2


def test_the_health_check_follows_the_port_and_is_written_once() -> None:
    (check,) = re.findall(r"^HEALTHCHECK.*$", dockerfile(), re.MULTILINE)
    assert "os.environ['LIKENESS_PORT']" in check
    for file in ROOT.glob("docker-compose*.yml"):
        assert "healthcheck" not in yaml.safe_load(file.read_text())["services"]["likeness"]


def test_compose_passes_every_setting_but_those_of_the_container() -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["likeness"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    assert service["environment"]["LIKENESS_HOST"] == "0.0.0.0"
    assert service["environment"]["LIKENESS_DATA_DIR"] == "/data"
    port = "${LIKENESS_PORT:-8000}"
    assert service["environment"]["LIKENESS_PORT"] == port
    assert service["ports"] == ["${LIKENESS_PUBLISH:-127.0.0.1:" + port + "}:" + port]
    known = {f"LIKENESS_{name.upper()}" for name in Settings.model_fields}
    assert set(service["environment"]) <= known


def test_make_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    stamp = tmp_path / "venv" / ".stamps" / "venv"
    done = subprocess.run(
        ["make", "PYTHON=python3.99", f"VENV={tmp_path}/venv", str(stamp)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "There is no 'python3.99' here." in done.stderr


@pytest.mark.parametrize("breaks", [False, True])
def test_make_names_what_it_installs_and_sees_a_failure(tmp_path: Path, breaks: bool) -> None:
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\n"
        'echo "Collecting numpy==2.4.6 (from -r requirements/cpu.txt (line 3))"\n'
        'echo "  Downloading numpy-2.4.6.whl (16 MB)"\n'
        'echo "Installing collected packages: numpy"\n' + ("exit 1\n" if breaks else "")
    )
    pip.chmod(0o755)
    stamp = tmp_path / "venv" / ".stamps" / "serve-cpu"
    done = subprocess.run(
        ["make", "PYTHON=true", f"VENV={tmp_path}/venv", f"PIP={pip}", str(stamp)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert " numpy" in done.stdout
    assert "Downloading" not in done.stdout
    assert (done.returncode != 0, stamp.exists()) == (breaks, not breaks), done.stderr
