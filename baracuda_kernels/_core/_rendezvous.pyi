from collections.abc import Callable
from typing import Any

def attempt(prepare: Callable[[], Any]) -> Any: ...
def agreed(everyone: list[Any], rank: int) -> list[Any]: ...
def ready_to_join(
    rank: int,
    device: int | str | None,
    max_ctas: int | None,
    exchange: str | None,
    timeout: float | None,
) -> bytes | None: ...
