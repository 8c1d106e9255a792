"""The type checker of jaxtyping's import hook: beartype, with int accepted where float is declared (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
