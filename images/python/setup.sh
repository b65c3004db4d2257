#!/bin/sh
# Lists the fonts once, for root and for every new home: otherwise each interpreter that is not the
# warmed one would do it on its first import of matplotlib, which takes seconds.
set -eu
for home in /root /etc/skel; do
    HOME=$home MPLBACKEND=Agg python3 -B -c 'import matplotlib.font_manager'
done
