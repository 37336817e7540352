import pytest

from debias.doctor import versions

BOUNDS = {
    "debias": [
        "torch>=2.6",
        "transformers>=5.20",
        "deepspeed<0.20,>=0.19.8; extra == 'deepspeed'",
        "flash-attn>=2.7; (platform_system == 'Linux') and extra == 'flash'",
        "pytest>=8.3; extra == 'dev'",
        "pywin32>=1; sys_platform == 'win32'",
    ],
    "transformers": ["tokenizers<0.24,>=0.23", "torch>=2.4; extra == 'torch'", "nowhere>=1"],
}
HEALTHY = {"debias": "0.1", "torch": "2.13.0+cpu", "transformers": "5.23.0", "tokenizers": "0.23.1"}


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed; the bounds are BOUNDS."""

    def install(**changes):
        here = {**HEALTHY, **{name.replace("_", "-"): version for name, version in changes.items()}}

        def version(name):
            if here.get(name) is None:
                raise versions.metadata.PackageNotFoundError(name)
            return here[name]

        monkeypatch.setattr(versions.metadata, "version", version)
        monkeypatch.setattr(versions.metadata, "requires", BOUNDS.get)

    return install


def test_what_fits_is_one_line(installed):
    installed()
    (check,) = versions.versions()
    assert check.ok
    assert "torch 2.13.0+cpu" in check.found


@pytest.mark.parametrize(
    ("changes", "found", "cure"),
    [
        ({"torch": "2.5.1"}, "torch 2.5.1, but debias needs >=2.6", "pip install 'torch>=2.6'"),
        ({"torch": None}, "torch is not installed", "pip install 'torch>=2.6'"),
        ({"flash_attn": "2.6.3"}, "flash-attn 2.6.3, but debias needs >=2.7", "pip install 'flash-attn>=2.7'"),
        (
            {"tokenizers": "0.24.1"},
            "tokenizers 0.24.1, but transformers 5.23.0 needs <0.24,>=0.23",
            "pip install 'tokenizers<0.24,>=0.23'",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_cure(changes, found, cure, installed):
    installed(**changes)
    (check,) = versions.versions()
    assert (check.stops, check.found, check.cure) == (True, found, cure)


@pytest.mark.parametrize(
    ("version", "ok"), [("0.19.8", True), ("0.19.9", True), ("0.19.7", False), ("0.20.0", False), (None, True)]
)
def test_an_unknown_deepspeed_is_named(version, ok, installed):
    installed(deepspeed=version)
    check = versions.deepspeed()
    assert check.ok == ok
    assert (check.cure == "pip install 'deepspeed<0.20,>=0.19.8'") == (not ok)


def test_a_checkout_that_is_not_installed_is_only_a_warning(monkeypatch):
    def absent(name):
        raise versions.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "requires", absent)
    (check,) = versions.versions()
    assert not check.ok
    assert not check.stops


def test_the_bounds_are_those_of_this_package():
    """Nothing is written twice: the real metadata is what is looked at."""
    assert any(need.name == "torch" for need in versions._requirements("debias", ""))
    assert [need.name for need in versions._requirements("debias", "deepspeed")] == ["deepspeed"]
