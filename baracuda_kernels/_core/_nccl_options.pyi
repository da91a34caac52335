DEFAULT_TIMEOUT: float
DEFAULT_MAX_CTAS: int
DEFAULT_EXCHANGE: str

def exchange_info() -> dict[str, str]: ...
def check_options(
    device: int | str | None,
    max_ctas: int | None,
    exchange: str | None,
    timeout: float | None,
) -> None: ...
