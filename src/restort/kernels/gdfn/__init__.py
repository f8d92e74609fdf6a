"""Apply the attention, add, LayerNorm, expand, depthwise 3x3, gate, project, add: one pass over the image.

The expanded channels live in shared memory only, so a pixel costs about 3 C numbers of memory traffic instead of 19 C.
"""
