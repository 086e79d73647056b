"""What hostile tests leave out until it is mended: a line each, with its reason. Delete the line with the mend."""

ITEM_5 = "item 5: sequences of masked arrays lose their masks"

KNOWN = {
    "list of masked arrays": ITEM_5,
    "tuple of lists of masked arrays": ITEM_5,
    "list of masked numbers": ITEM_5,
    "empty arrays": "new, of item 1's mend: an x that is an empty view is refused by backward as one that was resized",
    "eps of 1e-300": "new, akin to item 6: float32 of a constant set gives NaN, as inv_std is infinite in float32",
    "batches of recompute_stats are called x": "new: an error names x, which is no argument of recompute_stats",
    "largest float32": "item 10: x - mean overflows",
    "largest float64": "item 10: x - mean overflows",
    "overflow encountered in cast": "item 9: results and parameters that overflow float16 or float32 warn",
}


def allowed(names):
    """Those that are not left out."""
    return [name for name in names if name not in KNOWN]
