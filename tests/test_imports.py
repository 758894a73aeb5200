"""Imports go one way, from the foundations up: nothing below knows what is above."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "eden_hf"
#: Rooms from the lowest up; what stands on one line may import one another.
ORDER = (
    {"anatomy", "configuration_eden", "modeling_eden_dense"},
    {"modeling_eden_trunk"},
    {"modeling_eden_base"},
    {"modeling_eden_heads", "modeling_eden_matching", "modeling_eden_pretraining", "modeling_eden_v2"},
    {"modeling_eden"},
    {"image_processing_eden_pixels", "image_processing_eden_resizing"},
    {"image_processing_eden_labels"},
    {"image_processing_eden"},
    {"auto_classes"},
    {"model_names"},
    {"data"},
    {"encoders", "plots"},
    {"training"},
    {"matching"},
    {"retrieval"},
    {"evaluation"},
    {"hub"},
    {"benchmarks"},
    {"command_line"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}


def imported_rooms(file: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and file.parent == PACKAGE:
                names.add(f"eden_hf.{node.module}")
            elif node.module == "eden_hf":
                names |= {f"eden_hf.{alias.name}" for alias in node.names}
            elif node.module:
                names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("eden_hf.")}


def test_every_room_has_its_place_and_imports_only_what_is_below():
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in HEIGHT, f"{file.name}: say in ORDER where the room {room!r} stands"
        above = {other for other in imported_rooms(file) & HEIGHT.keys() if HEIGHT[other] > HEIGHT[room]}
        wrong += [f"{file.relative_to(PACKAGE)} imports {other}" for other in sorted(above)]
    assert wrong == []
