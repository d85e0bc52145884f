"""Image sources, one class each. Data path step 1.

Every source is a map-style dataset of square images with the methods of :class:`~datamodules.images.source.ImageSource`.
"""
