"""What Python tells the library is laid out as `native.h` has it."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from lushan.backbones import native, native_compiling, native_structures
from lushan.backbones.native_structures import (
    Adapted,
    DocumentJob,
    Layer,
    LowRank,
    LowRankJob,
    Matrix,
    Moved,
    SlotJob,
    StepLayer,
    TrainedDocuments,
)

STRUCTURES = (
    *(Matrix, LowRank, Adapted, Layer, StepLayer, SlotJob, DocumentJob),
    *(TrainedDocuments, LowRankJob, Moved),
)


@pytest.mark.skipif(native_compiling.find_compiler() is None, reason="no C++ compiler")
def test_fields_stand_where_the_library_looks(tmp_path: Path) -> None:
    lines = ["#include <cstddef>", '#include "native.h"', "using namespace lushan;"]
    for each in STRUCTURES:
        name = each.__name__
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(each)});")
        places = {field: getattr(each, field).offset for field, *_ in each._fields_}
        lines += [
            f"static_assert(offsetof({name}, {field}) == {place});"
            for field, place in places.items()
        ]
    (tmp_path / "places.cpp").write_text("\n".join(lines) + "\n", encoding="utf-8")
    header = Path(native.__file__).parent
    words = ["-std=c++17", "-fsyntax-only", f"-I{header}", str(tmp_path / "places.cpp")]
    compiler = native_compiling.find_compiler()
    assert compiler is not None
    done = subprocess.run([compiler, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_structure_is_looked_at() -> None:
    known = vars(native_structures).values()
    structures = {
        each for each in known if isinstance(each, type) and issubclass(each, ctypes.Structure)
    }
    assert structures == set(STRUCTURES)
