"""The data room: from a source (generator, local file, hub id) to checked examples, with a planted shortcut if wanted.

`load_examples` reads, `plant` writes the shortcut into texts, `paint` into pictures; importing this package loads
neither torch nor datasets.
"""

from debias.data.examples import Example
from debias.data.generator import generate
from debias.data.painted import paint
from debias.data.planted import plant
from debias.data.shards import resolve_path
from debias.data.sources import load_examples

__all__ = ["Example", "generate", "load_examples", "paint", "plant", "resolve_path"]
