# UTF-8 for login shells, whoever starts them.
export LANG="${LANG:-C.UTF-8}"
