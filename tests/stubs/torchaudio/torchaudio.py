"""Stand-in for torchaudio on CPU test machines: it imports, and refuses to decode."""

from types import SimpleNamespace

__version__ = "2.11.0+cpu.stub"


def load(*_args, **_kwargs):
    raise RuntimeError("this torchaudio is a stand-in for tests; install the real one for audio")


info = save = load
functional = SimpleNamespace(resample=load)
