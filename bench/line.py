"""Line: the one line of Python that everything is compared by."""

LINE = "print(6*7)"

OUTPUT = b"42\n"

FIRST_OUTPUT = "first output"
"""The phase that peers are compared by: from nothing, or from the request, to the output."""
