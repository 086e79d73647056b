"""What hostile tests leave out until it is mended: a line each, with its reason. Delete the line with the mend."""

KNOWN = {
    "eps of 1e-300": "new, akin to item 6: float32 of a constant set gives NaN, as inv_std is infinite in float32",
    "batches of recompute_stats are called x": "new: an error names x, which is no argument of recompute_stats",
    "largest float32": "item 10: x - mean overflows",
    "largest float64": "item 10: x - mean overflows",
}


def allowed(names):
    """Those that are not left out."""
    return [name for name in names if name not in KNOWN]
