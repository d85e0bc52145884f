"""Names of a layer's variants: ``mid__leace`` is the layer ``mid`` behind the mitigation ``leace``.

Variants stand beside their layer as if they were layers. Whatever is drawn at random for a layer is keyed by
:func:`base_of`, so that a variant differs from its layer in the mitigation alone, and the two can be compared in pairs.
"""

SEPARATOR = "__"
OVER_NONE = "gain_over_none"  # what a variant measures above its layer


def variant(layer: str, label: str) -> str:
    """Name of a layer behind a mitigation.

    >>> variant("mid", "leace")
    'mid__leace'
    """
    return f"{layer}{SEPARATOR}{label}"


def base_of(name: str) -> str:
    """The layer itself.

    >>> base_of("mid__leace"), base_of("mid")
    ('mid', 'mid')
    """
    return name.split(SEPARATOR)[0]


def label_of(name: str) -> str:
    """Which mitigation; empty for the layer itself.

    >>> label_of("mid__leace"), label_of("mid")
    ('leace', '')
    """
    return name.partition(SEPARATOR)[2]
