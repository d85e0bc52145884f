"""The run-time checker behind jaxtyping's import hook: beartype, with integers welcome where floats are."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
