# pyarrow ships no types, and those on the package index are of an older release and wrong in
# places. To pyright everything in it is Any, so that strictness goes to the code of this project.
from typing import Any

def __getattr__(name: str) -> Any: ...
