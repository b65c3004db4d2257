"""Run by the guest's interpreter before the snapshot, so that no clone pays for these imports.

Drawing a figure and showing a frame runs what the libraries load and build only when first used.
"""

import io
import os

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from vmpool_agent import forms, notebook


def warm() -> None:
    """Use each library once, and leave nothing behind."""
    frame = pd.DataFrame({"x": np.arange(3), "y": np.linspace(0.0, 1.0, 3), "s": list("abc")})
    repr(frame)
    frame.describe().to_string()
    frame._repr_html_()  # how a notebook shows it
    frame.groupby("s").sum().merge(frame, on="x", how="left").to_csv(io.StringIO())
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot(frame["x"], frame["y"], label="y")
    axes.set_title("warm")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    forms.chart(figure)
    forms.table(frame)
    plt.close(figure)
    notebook.rehearse()
    plt.switch_backend("Agg")  # for code that runs in no context


warm()
